"""The empirical audit: what a run's canaries say about its claim, by numbers alone."""
