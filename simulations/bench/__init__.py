"""Benchmarks: contestants that alternate within one call, and what they reach of their targets."""
