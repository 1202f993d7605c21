"""The protocols run without any hardware: in every possible order, or for years of virtual time."""
