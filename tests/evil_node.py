"""A node that lies, as a process of its own: the client's own code, whose reports are changed before they are signed.

    python evil_node.py join --policy FOLDER/policy.toml

What it does stands in FOLDER/lies.json, a number of a round and a lie, and may change while it runs:

    longer, empty, odd            an update of another length; odd: no whole number of numbers
    oversized                     40 MB of zeros
    nan, infinite, enormous       as many numbers as expected: NaN, infinite, of norm 10^9
    another-round, another-client, extra    signed properly, with other scalars than the order has
    unsigned, wrongly-signed, other-key     a good report under no signature, a wrong one, one of another key
    other-policy                  a good report that says it was made for another policy
    replayed                      the report of the first round, as it was signed then
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import discreet
from client.node import orders
from common.consortium import seals
from common.transparency.notes import Signer

honest = orders.report
kept: list[orders.SealedReport] = []


def update_of(lie: str, update: bytes) -> bytes:
    """The update that is sent instead."""
    others = {"longer": update + update[:4], "empty": b"", "odd": update[:-1]}
    if lie in others:
        return others[lie]
    if lie == "oversized":
        return bytes(40_000_000)
    numbers = np.frombuffer(update, "<f4").copy()
    match lie:
        case "nan":
            numbers[0] = np.nan
        case "infinite":
            numbers[-1] = np.inf
        case "enormous":
            numbers[:] = 1e9 / np.sqrt(len(numbers))
    return numbers.tobytes()


def scalars_of(lie: str, scalars: Any) -> Any:
    """The scalars that are sent instead."""
    changes = {
        "another-round": {"round": scalars["round"] + 1},
        "another-client": {"client": 0},
        "extra": {"loss": "0.5"},
    }
    return {**scalars, **changes.get(lie, {})}


def lying(scalars: Any, update: bytes, **bound: Any) -> orders.SealedReport:
    """A report as the lie of this round wants it."""
    path = Path(sys.argv[sys.argv.index("--policy") + 1]).with_name("lies.json")
    lie = json.loads(path.read_text()).get(str(scalars["round"]), "") if path.exists() else ""
    if lie == "other-policy":
        bound["policy"] = "0" * 64
    report = honest(scalars_of(lie, scalars), update_of(lie, update), **bound)
    kept.append(report)
    match lie:
        case "unsigned":
            return replace(report, signature=b"")
        case "wrongly-signed":
            return replace(report, signature=report.signature[::-1])
        case "other-key":
            signer = Signer.new(bound["standing"].name)
            return replace(report, signature=seals.seal(signer, b"whatever"))
        case "replayed":
            return kept[0]
    return report


if __name__ == "__main__":
    orders.report = lying
    discreet.main()
