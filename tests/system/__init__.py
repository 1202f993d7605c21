"""The engine and the Python API on real files, loop devices and processes."""
