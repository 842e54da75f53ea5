"""Crashes: wherever a node is killed, nothing was read that is not in its ledger, and the ledger is whole.

The kills are real (SIGKILL) and in the middle of real orders: see `crashing_node`. They end a process, not the machine:
that a disk keeps what it said it keeps is the disk's word, and SQLite's.
"""

import functools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import crashing_node
import pytest

from common.ledger import Ledger
from common.privacy import accounting
from common.transparency import export, verification

DEFAULT = {"calls": [(number + 0.5) / 20 for number in range(20)]}
_CHANCE = random.Random(20261122)  # noqa: S311 - where to kill is no secret
MANY = {
    "calls": [_CHANCE.random() * 0.98 for _ in range(150)],
    "times": [_CHANCE.random() * 0.9 for _ in range(50)],
}
ADMITTED = 3  # two rounds and a spare one


@pytest.fixture(autouse=True)
def _count_each_history_once(monkeypatch):
    """The accountants are pure and slow, and all nodes spend alike."""
    monkeypatch.setattr(accounting, "check", functools.lru_cache(accounting.check))


def killed_at(folder, points):
    """Kill a node at every point; return what happened."""
    root = Path(crashing_node.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "ignore", crashing_node.__file__, str(folder), json.dumps(points)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["nodes"]


def lines(path):
    """The lines of a note, if it was ever written."""
    return path.read_text().splitlines() if path.exists() else []


def account_of(path):
    """The run in a ledger that opens, reads, exports and verifies; and its checkpoint. None before the first entry."""
    with closing(Ledger(path)) as ledger:
        if ledger.books.size == 0:
            return None, None
        checkpoint, books = ledger.checkpoint, vars(ledger.books)
    out = path.with_name("export")
    export.write(path, out)
    read = export.read(out)
    assert vars(read.books) == books
    assert read.leaves == export.read(path).leaves
    verification.verify(read, key=read.key, extends=checkpoint)
    account = read.books.accounts["digits"]
    return account.runs.get("r"), checkpoint


def refute_any_loss(folder, node):
    """Assert that one killed node lost nothing, spent nothing unseen, and works on; return what was found."""
    killed, later = folder / f"{node['node']}-killed", folder / node["node"]
    assert node["ended"] in {-9, 0}  # 0: it was done before the blow fell
    assert node["asked"] == 0
    # As it was found: whatever was read is charged, whatever was answered is settled.
    run, checkpoint = account_of(killed / "a.ledger")
    seen = set() if run is None else {number for number, _ in run.seen}
    waiting = set() if run is None else {number for number, _ in run.unsettled}
    read = [int(line) for line in lines(killed / "read.txt")]
    answered = [line.split() for line in lines(killed / "answered.txt")]
    assert set(read) <= seen
    assert len(read) == len(set(read)) <= len(seen)
    assert all(word == "trained" for _, word in answered)
    assert {int(number) for number, _ in answered} <= seen - waiting
    assert run is None or (run.charged == len(seen) and run.admitted == ADMITTED)
    # As it went on: what was charged is never trained again, everything else is, up to what was admitted.
    words = dict(line.split() for line in lines(later / "again.txt"))
    expected = {str(number): "already-trained" for number in seen}
    free = [number for number in range(1, 20) if number not in seen][: ADMITTED - len(seen)]
    expected |= {str(number): "trained" for number in free}
    assert words == expected | {str(max(map(int, expected)) + 1): "budget-spent"}
    reread = [int(line) for line in lines(later / "read.txt")]
    assert len(reread) == len(set(reread))  # nobody's records twice for one order
    run, _ = account_of(later / "a.ledger")
    assert set(reread) <= {number for number, _ in run.seen}
    assert run.charged == run.admitted == ADMITTED
    if checkpoint is not None:
        (later / "seen.note").write_text(checkpoint)
        Ledger(later / "a.ledger", memory=later / "seen.note").close()
    return {"charged": len(seen), "read": len(read), "answered": len(answered), "without an end": len(waiting)}


def test_a_killed_node_never_read_what_it_had_not_charged(tmp_path):
    """Killed at 20 points of two orders: the ledger is whole, nothing is unrecorded, and the next orders work."""
    nodes = killed_at(tmp_path, DEFAULT)
    assert sum(node["ended"] == -9 for node in nodes) >= 19  # of 20
    for node in nodes:
        refute_any_loss(tmp_path, node)
    charged = {len(lines(tmp_path / f"{node['node']}-killed" / "read.txt")) for node in nodes}
    assert charged == {0, 1, 2}  # the points lie before, between and behind the two trainings


@pytest.mark.audit
def test_a_node_killed_at_200_random_points_never_read_what_it_had_not_charged(tmp_path):
    """150 between any two calls of our own code, 50 at any time, inside SQLite and the training too."""
    nodes = killed_at(tmp_path, MANY)
    killed = sum(node["ended"] == -9 for node in nodes)
    assert killed >= 150  # of 200
    found = Counter()
    for node in nodes:
        found.update(refute_any_loss(tmp_path, node))
    sys.stdout.write(f"\n{killed} of {len(nodes)} nodes killed; orders {dict(found)}; unrecorded 0, unreadable 0\n")
