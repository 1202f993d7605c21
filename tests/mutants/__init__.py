"""Mistakes seeded into the protocols, one a patch, and the checks that must catch them."""
