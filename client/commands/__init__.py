"""The owner's verbs of the command line."""
