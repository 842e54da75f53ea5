"""The witness: it cosigns checkpoints of the owners' ledgers, and remembers each one."""
