"""Tests against the programs that share our formats: golden images and real peers."""
