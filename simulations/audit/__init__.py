"""`discreet audit`: attacks a run of a scenario's model, through the real trainer."""
