"""This package holds the forms in which a network is shipped."""
