"""Models of the original, literally as specified, bugs included: our hosts share disks with it."""
