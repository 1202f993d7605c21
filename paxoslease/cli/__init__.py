"""The `paxoslease` command."""
