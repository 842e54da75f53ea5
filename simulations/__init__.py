"""Many virtual clients on one machine: data sets, partitions, the in-process grid, scenarios."""
