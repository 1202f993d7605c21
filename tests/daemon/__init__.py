"""The daemon, beside the real sanlock: the same calls, the same answers."""
