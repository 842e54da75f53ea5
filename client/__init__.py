"""One data owner: its data, its budget, its training."""
