"""Tests of and with the simulation."""
