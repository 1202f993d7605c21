"""A whole cluster in virtual time: disks, hosts, their users, faults, and what must always hold."""
