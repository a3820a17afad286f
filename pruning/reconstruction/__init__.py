"""This package holds what repairs a cut, one method a file: which channels stay, and with which weights they are read."""
