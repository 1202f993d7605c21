"""Figures: ours beside the raw device and beside real sanlock, in one run."""
