"""Small worlds in every possible order: the search, its worlds, and one order chosen by name."""
