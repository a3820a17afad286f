"""Data sets by name, a file each."""
