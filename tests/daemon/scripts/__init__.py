"""The scripts: each function plays steps on a stage."""
