"""The lease daemon: sockets, clients and commands around the engine."""
