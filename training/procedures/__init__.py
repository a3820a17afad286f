"""A procedure is the plan of a run: a function of the settings that lists the stages of training, one procedure a file."""
