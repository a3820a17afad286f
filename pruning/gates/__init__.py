"""This package holds the gates of a unit: so far they are masks of 0 and 1."""
