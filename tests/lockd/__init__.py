"""Tests of the lock daemon that stands in virtlockd's place."""
