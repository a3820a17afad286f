"""This package holds the data sets, a file each; the name of its class in lower case is the --dataset."""
