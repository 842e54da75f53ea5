"""The models that a scenario can name."""
