"""A coordinator that lies, as a process of its own: it has the coordinator's keys and signs whatever it likes.

    python evil_coordinator.py CONSORTIUM PLAYS.json

A play is a run: a scenario's text (any text), perhaps another bundle, and orders. Every organisation is asked what it
thinks of the run, and is then sent the orders whatever it said, one after the other or all of them `at_once`. An order
is the one that the plan of `plan` wants, with `scalars` put in its place (null takes one out), and weights of `seed`.
A line of JSON for each play says what came back.
"""

import base64
import json
import sys
import time
import uuid
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from common import bundle, flat
from common.config import parse
from common.consortium import identity, roster
from common.letters import config
from common.messages import Order
from common.models.registry import build
from common.privacy.plan import make_plan
from common.tasks import task_of
from common.wire import encode_order
from server.coordinator import questions
from server.coordinator.flower_link import FlowerLink
from server.coordinator.link_grid import LinkGrid
from server.coordinator.parties import Parties
from server.coordinator.sealed_grid import SealedGrid
from server.link.settings import LinkFolder, read_link

ANSWERED_S = 60.0


def begun(link: FlowerLink, play: dict[str, Any]) -> int:
    """Start a run at the link, with any text and any bundle."""
    content = base64.b64decode(play.get("bundle", "")) or bundle.shim()
    fab = Fab(hash_str=sha256(content).hexdigest(), content=content)
    told = user_config_to_proto({"scenario": play["scenario"]})
    return int(link._control.StartRun(StartRunRequest(fab=fab, override_config=told)).run_id)


def orders(play: dict[str, Any], asked: dict[str, Any], *, run: str, records: list[int]) -> list[Message]:
    """One order for each organisation."""
    scenario = parse(asked.get("plan", play.get("plan", play["scenario"])))
    plan = make_plan(scenario, records=tuple(asked.get("records", records)), run=run)
    weights_P = flat.flatten(build(scenario.model, task_of(scenario.data), seed=asked.get("seed", 0))).numpy()
    messages = []
    for party in range(len(records)):
        order = Order(run=run, round=1, attempt=1, client=party, weights_P=weights_P, mechanism=plan.mechanism(party))
        changed = {**encode_order(order).scalars, **asked.get("scalars", {})}
        scalars = {name: value for name, value in changed.items() if value is not None}
        arrays = ArrayRecord({"weights": Array(weights_P)})
        content = RecordDict({"arrays": arrays, "order": config(scalars)})
        messages.append(Message(content, party + 1, MessageType.TRAIN, ttl=ANSWERED_S, group_id="1"))
    return messages


def answered(grid: SealedGrid, messages: list[Message]) -> list[str]:
    """Send orders; return the word that each came back with, or `trained`."""
    names = list(grid.push_messages(messages))
    said: dict[str, str] = {}
    deadline = time.monotonic() + ANSWERED_S
    while len(said) < len(names) and time.monotonic() < deadline:
        for reply in grid.pull_messages([name for name in names if name not in said]):
            word = reply.error.reason if reply.has_error() else "trained"
            said[reply.metadata.reply_to_message_id] = word
    return [said[name] for name in names]


def played(folder: Path, play: dict[str, Any]) -> dict[str, Any]:
    """Play one run; return what each organisation answered to the proposal and to each order."""
    link, known = FlowerLink(read_link(LinkFolder(folder))), roster.load(folder / "roster.json")
    flower_run, run = begun(link, play), play.get("run") or uuid.uuid4().hex
    nodes = {node.public_key: node.id for node in link.nodes()}
    with link.task(flower_run) as task:
        grid = LinkGrid(link, task)
        parties = Parties(
            roster=known,
            signer=identity.load(folder / "identity").signer,
            flower_run=flower_run,
            scenario=sha256(play["scenario"].encode()).hexdigest(),
            owners=known.owners,
            nodes=tuple(nodes[owner.node.encode()] for owner in known.owners),
        )
        offers = questions.offers(grid, parties, run=run, wait_s=ANSWERED_S)
        sealed = SealedGrid(grid, replace(parties, policies={party: offers[party].policy for party in offers}))
        records = [offers[party].records for party in sorted(offers)]
        sets = [orders(play, asked, run=run, records=records) for asked in play["orders"]]
        if play.get("at_once"):
            words = answered(sealed, [message for each in sets for message in each])
        else:
            words = [word for each in sets for word in answered(sealed, each)]
        words = [words[first : first + len(records)] for first in range(0, len(words), len(records))]
        questions.end(grid, parties, run=run, wait_s=ANSWERED_S)
    offered = [offers[party].refusal.value if offers[party].refusal else "" for party in sorted(offers)]
    return {"name": play["name"], "run": run, "offered": offered, "words": words}


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[2]).read_text()):
        sys.stdout.write(json.dumps(played(Path(sys.argv[1]), each)) + "\n")
        sys.stdout.flush()
