"""Tests of single modules: milliseconds each."""
