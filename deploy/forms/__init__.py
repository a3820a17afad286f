"""This package holds the forms that a network is shipped in."""
