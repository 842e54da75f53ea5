"""The coordinator: cohorts, rounds, aggregation, checkpoints."""
