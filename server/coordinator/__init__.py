"""A run across organisations: its orders are signed, its answers are checked, and it survives a restart of the link."""
