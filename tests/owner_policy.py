"""A policy file for tests, and the scenario of digits that fits it."""

import tomllib
from pathlib import Path

import tomli_w

RECORDS = 40

_POLICY = f"""
version = 2
owner = "St Mary"

[data]
lineage = "wards"
version = "1"
records = {RECORDS}
unit = "record"

[budget]
adjacency = "zero-out"
delta = 1e-5
epsilon = 8.0

[limits]
min_noise_multiplier = 0.1
max_grad_norm = 1.0
max_steps_per_round = 1
"""


def write_policy(path: Path, **changes: object) -> Path:
    """Write a policy that allows just the run of these tests, but for `table__key=value`; None removes a key."""
    tables = tomllib.loads(_POLICY)
    for place, value in changes.items():
        table, _, key = place.partition("__")
        if value is None:
            del tables[table][key]
        elif key:
            tables[table][key] = value
        else:
            tables[table] = value
    path.write_text(tomli_w.dumps(tables))
    return path
