"""Sums of clipped per-unit gradients, by one backward pass or by Opacus's hooks."""
