"""Bytes on sockets, without logic."""
