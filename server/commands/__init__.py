"""The coordinator's and the witness's verbs of the command line."""
