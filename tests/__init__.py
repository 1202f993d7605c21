"""The tests of paxoslease."""
