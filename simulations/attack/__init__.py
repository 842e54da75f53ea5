"""`discreet attack`: what an attacker sees of a model and of an update, as pictures."""
