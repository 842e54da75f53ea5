"""A deployment on one machine: real processes on loopback, for newcomers and for tests."""
