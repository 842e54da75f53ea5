"""A log that strangers can check: canonical bytes, a Merkle tree, signed checkpoints, and what they say."""
