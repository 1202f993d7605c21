"""Random calls, the same to the real sanlock and to ours: what is drawn, done and compared."""
