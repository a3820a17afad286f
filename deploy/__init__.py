"""This package ships a network: it folds, saves, times and exports it, and puts model files to use."""
