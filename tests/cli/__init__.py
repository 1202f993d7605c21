"""The command: what it prints and does, for real."""
