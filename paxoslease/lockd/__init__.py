"""POSIX record locks held on behalf of clients, as virtlockd does: spec/lock-drivers.md.

`space` is the table of locks, `session` what a connection may do with it, `daemon` the process
around both, `client` the other end of the socket, `naming` how a disk becomes a resource's name.
"""
