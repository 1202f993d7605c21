"""The real world: runs protocols on disks, clocks and processes."""
