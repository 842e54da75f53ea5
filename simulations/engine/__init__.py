"""The in-process grid, and where it calls the clients' app."""
