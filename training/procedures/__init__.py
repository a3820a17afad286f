"""This package holds the procedures, one a file: each is a function that maps the settings to a list of stages."""
