"""Lock drivers: one interface over three ways to keep a guest from running twice.

`base` has the interface and the objects it speaks of, `registry` finds drivers by name. The
drivers of this package are `nop`, `fcntl` and `paxos`; others come from other distributions through
the entry point group `paxoslease.drivers` (docs/drivers.md).
"""
