"""Lies: whoever lies, coordinator, link or node, trains nothing outside a policy, and the others go on.

Every liar is a process of its own that has the real keys of its part (`evil_coordinator`, `evil_link`, `evil_node`);
link, witness and the other nodes are as delivered.
"""

import base64
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from lying_stage import LIAR, SCENARIO, LyingStage, change_policy, lying, prepared

from common import bundle
from simulations.trials.processes import Started
from simulations.trials.trial import finished

pytestmark = pytest.mark.slow  # minutes of real processes: `make test-slow`

TEXT = SCENARIO.replace("[server]", "[server]\ncohort = 3\nmax_participations = 3")
RESERVED = 5  # three rounds and two spare ones


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingStage]:
    """Everybody, ready."""
    with lying(prepared(tmp_path_factory.mktemp("lies"))) as made:
        yield made


@pytest.fixture(autouse=True)
def _from_here_on(stage: LyingStage) -> None:
    stage.mark()


def words(run: Started) -> str:
    """What `discreet run` said, without the breaks of its lines."""
    return " ".join(run.said().split())


def proposed(name: str, old: str = "", new: str = "", **scalars: Any) -> dict[str, Any]:
    """A run whose scenario is another one, and one order of that scenario."""
    return {"name": name, "scenario": TEXT.replace(old, new), "orders": [{"scalars": scalars}]}


BEYOND = {
    "no noise": ("malformed", "noise_multiplier: expected greater than 0, got 0.0"),
    "less noise": ("outside-policy", "noise_multiplier: expected at least 1.0, got 0.5"),
    "noise that nobody can count": ("outside-policy", "the privacy loss is too large for its grid"),
    "no bound": ("outside-policy", "max_grad_norm: expected at most 1.0, got 1000000000.0"),
    "a model that mixes records": ("malformed", "model.name: expected 'cnn', .* got 'resnet-batchnorm'"),
    "a million steps": ("outside-policy", "steps: expected at most 1 a round, got 1000000"),
    "every record each time": ("outside-policy", "epsilon: expected at most .* a run, got 11"),
    "no privacy": ("outside-policy", "unit: expected record, .* got none"),
    "privacy of whole clients": ("outside-policy", "unit: expected record, .* got client"),
    "other records": ("outside-policy", r"data\.layout: expected .* as agreed; the scenario declares"),
    "other persons": ("malformed|outside-policy", "unit"),
    "a cohort of one": ("outside-policy", "cohort: expected at least 3, got 1"),
}


def test_what_a_policy_forbids_is_refused_by_everybody(stage):
    """As proposed and as ordered, with its word; nothing is charged, and each owner reads why in one line a message."""
    noise = "noise_multiplier = 1.0"
    plays = [
        proposed("no noise", noise, "noise_multiplier = 0.0", **{"noise-multiplier": "0.0"}) | {"plan": TEXT},
        proposed("less noise", noise, "noise_multiplier = 0.5"),
        proposed("noise that nobody can count", noise, "noise_multiplier = 0.001") | {"plan": TEXT},
        proposed("no bound", noise, f"{noise}\nmax_grad_norm = 1e9"),
        proposed("a model that mixes records", '"cnn"', '"resnet-batchnorm"') | {"plan": TEXT},
        proposed("a million steps", "local_steps = 1", "local_steps = 1000000"),
        proposed("every record each time", "batch_size = 40", "batch_size = 479"),
        proposed("no privacy", noise, 'unit = "none"'),
        proposed("privacy of whole clients", noise, f'{noise}\nunit = "client"') | {"plan": TEXT},
        proposed("other records", '"digits"', '"mnist"') | {"plan": TEXT},
        proposed("other persons", noise, f'{noise}\nunit_column = "writer"') | {"plan": TEXT},
        proposed("a cohort of one", "cohort = 3", "cohort = 1"),
    ]
    for came in stage.play(*plays):
        word, why = BEYOND[came["name"]]
        assert all(re.fullmatch(word, said) for said in came["offered"]), came
        assert all(re.fullmatch(word, said) for (said, *_) in zip(came["words"][0], strict=True)), came
        assert len(came["offered"]) == len(came["words"][0]) == 3
        for name in stage.cast.organisations:
            assert re.search(f"run {came['run'][:8]}.*{why}", stage.said(name)), (name, came["name"])
            assert stage.run_of(name, came["run"]) is None  # not so much as reserved


OTHERWISE = [
    {"noise-multiplier": "0.9"},
    {"noise-multiplier": "1.1"},
    {"max-grad-norm": "1000000000.0"},
    {"steps": 1_000_000},
    {"sampling-rate": "1"},
    {"metrics-noise-multiplier": "5.0"},
    {"max-update-norm": "1.0"},
    {"noise-multiplier": None, "sampling-rate": None, "max-grad-norm": None, "steps": None},
    {"client": 7},
]


def test_an_order_that_differs_from_what_was_proposed_is_refused(stage):
    """In any number, also towards more noise; the scenario was fine, and still nothing is charged."""
    orders = [{"scalars": scalars} for scalars in OTHERWISE] + [{"records": [100, 100, 100]}]
    (came,) = stage.play({"name": "otherwise", "scenario": TEXT, "orders": orders, "at_once": True})
    assert came["offered"] == [""] * 3
    assert came["words"] == [["not-in-plan"] * 3] * len(orders)
    for name in stage.cast.organisations:
        run = stage.run_of(name, came["run"])
        assert (run.charged, run.is_closed, run.seen) == (0, True, set())
        assert len(re.findall(r"WARNING.*refused: not-in-plan", stage.said(name))) >= len(orders)


def test_no_more_is_trained_than_was_reserved(stage):
    """Whatever round an order names; twice the same is answered once; other weights under its number are refused."""
    rounds = [{"scalars": {"round": number, "attempt": number}} for number in (1, 2, 3, 50)]
    orders = [{"scalars": {"round": 100}}, {"scalars": {"round": 100}}, {"scalars": {"round": 100}, "seed": 5}]
    beyond = [{"scalars": {"round": 4}}, {"scalars": {"round": 1, "attempt": 99}}]
    (came,) = stage.play({"name": "more", "scenario": TEXT, "orders": [*orders, *rounds, *beyond]})
    words = ["trained", "trained", "already-trained", *["trained"] * 4, "budget-spent", "budget-spent"]
    assert came["words"] == [[word] * 3 for word in words]
    again = {"name": "again", "scenario": TEXT, "run": came["run"], "orders": [*rounds[:1], *beyond]}
    (later,) = stage.play(again)  # the run was closed
    assert not any("trained" in said for said in later["words"][1:]), later
    for name in stage.cast.organisations:
        run = stage.run_of(name, came["run"])
        assert (run.charged, run.admitted, len(run.seen), len(run.unsettled)) == (RESERVED, RESERVED, RESERVED, 0)
        assert stage.said(name).count(f"run {came['run'][:8]}, round 100: trained") == 1
        assert "another order with these numbers was answered before" in stage.said(name)


def test_discreet_run_fails_when_everybody_refuses(stage, tmp_path):
    """Exit code 1, each organisation with its word, and how to go on."""
    run = stage.discreet_run(tmp_path / "run", "privacy.noise_multiplier=0.001")
    assert run.process.wait(60) == 1
    assert re.search(r"Every organisation refused \(.*\)\. Nothing was trained\.", words(run))
    for name in stage.cast.organisations:
        assert words(run).count(f"{name}: outside-policy") == 1
        assert "the privacy loss is too large for its grid" in stage.said(name)


# --- bundles ----------------------------------------------------------------------------------------------------------

MARK = "bundle-was-run"


def built(files: dict[str, bytes]) -> bytes:
    """A bundle as Flower makes it."""
    from flwr.cli.build import build_fab_from_files

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return bytes(build_fab_from_files(files)[0])


def with_code(where: Path) -> bytes:
    """A bundle whose code leaves a mark wherever it is imported."""
    code = f"from pathlib import Path\nPath({str(where)!r}).write_text('here')\nfrom client.app import app\n"
    content = built(
        {
            "pyproject.toml": bundle.PYPROJECT.encode(),
            "client/app.py": code.encode(),
            "client/__init__.py": code.encode(),
            "numpy.py": code.encode(),
        }
    )
    assert {"client/app.py", "numpy.py"} <= set(ZipFile(BytesIO(content)).namelist())
    return content


def files(folder: Path) -> set[str]:
    """Names of all files below a folder, but for those a database keeps beside itself."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(("-wal", "-shm", "-journal", "__pycache__"))}


def test_a_bundle_with_code_or_of_another_hash_is_refused_and_never_unpacked(stage, tmp_path):
    """Also where an owner's policy allows the hash of the one with code; nothing is imported, nothing written."""
    mark = tmp_path / MARK
    code = with_code(mark)
    other = built({"pyproject.toml": bundle.PYPROJECT.replace("No code", "Nothing").encode()})
    change_policy(stage.cast, "organisation-2", "bundles", [sha(code), bundle.SHA256])
    before = {name: files(stage.cast.of(name)) for name in stage.cast.organisations}
    try:
        plays = [
            proposed(name) | {"bundle": base64.b64encode(content).decode()}
            for name, content in (("code", code), ("other", other))
        ]
        for came in stage.play(*plays):
            assert came["offered"] == ["bundle-refused"] * 3
            assert came["words"] == [["bundle-refused"] * 3]
            assert all(stage.run_of(name, came["run"]) is None for name in stage.cast.organisations)
    finally:
        change_policy(stage.cast, "organisation-2", "bundles", [])
    assert not mark.exists()
    assert {name: files(stage.cast.of(name)) for name in stage.cast.organisations} == before
    assert f"its SHA-256 {sha(code)} is not allowed" in stage.said("organisation-1")
    assert "expected nothing in it but .info/CONTENT and pyproject.toml" in stage.said("organisation-2")
    (came,) = stage.play(proposed("honest"))  # the same nodes, a minute later
    assert came["words"] == [["trained"] * 3]


def sha(content: bytes) -> str:
    """Its SHA-256, hexadecimal."""
    from hashlib import sha256

    return sha256(content).hexdigest()


# --- the link, and a node ---------------------------------------------------------------------------------------------

LINK_LIES = {2: "weights", 3: "swap", 4: "replay", 5: "refusal", 6: "error"}
FOUND_OUT = {
    2: {"organisation-1": "forged"},
    3: {"organisation-1": "forged", "organisation-2": "forged"},
    4: {"organisation-1": "forged"},
    5: {"organisation-1": "forged"},
    6: {"organisation-1": "no-answer"},
}
NODE_LIES = {
    2: ("longer", "wrong-size"),
    4: ("empty", "wrong-size"),
    5: ("odd", "wrong-size"),
    6: ("oversized", "wrong-size"),
    7: ("nan", "not-finite"),
    8: ("infinite", "not-finite"),
    9: ("another-round", "another-round"),
    10: ("another-client", "another-client"),
    11: ("extra", "malformed"),
    12: ("unsigned", "forged"),
    13: ("wrongly-signed", "forged"),
    14: ("other-key", "forged"),
    15: ("other-policy", "forged"),
    16: ("replayed", "forged"),
    17: ("enormous", None),  # a record's bound says nothing about an update's norm: it counts
}
ROUNDS = max(NODE_LIES)


@dataclass(frozen=True)
class Lied:
    """A run in which link and node lied: its identifier, what the coordinator read, who was refused in each round."""

    run: str
    said: str
    refused: dict[int, dict[str, str]]
    figures: dict[str, Any]


@pytest.fixture(scope="module")
def lied(stage: LyingStage, tmp_path_factory: pytest.TempPathFactory) -> Lied:
    """Run once, with both."""
    stage.mark()
    with stage.lies(link=LINK_LIES, node={number: lie for number, (lie, _) in NODE_LIES.items()}):
        out = tmp_path_factory.mktemp("run")
        run = stage.discreet_run(out, f"run.rounds={ROUNDS}", f"server.max_participations={ROUNDS}")
        figures = finished(run, within_s=240)
    refused: dict[int, dict[str, str]] = {}
    for number, client, word in re.findall(r"round (\d+): client (\d+): (\S+)", words(run)):
        refused.setdefault(int(number), {})[f"organisation-{int(client) + 1}"] = word
    return Lied(run=figures["run"], said=words(run), refused=refused, figures=figures)


def test_a_link_that_lies_is_found_out_on_both_sides(stage, lied):
    """Changed weights, swapped and old orders train nobody; an invented refusal counts for nothing; the run goes on."""
    assert lied.figures["rounds"] == ROUNDS
    told = {number: {who: word for who, word in found.items() if who != LIAR} for number, found in lied.refused.items()}
    assert {number: found for number, found in told.items() if found} == FOUND_OUT
    # organisation-1 got another's or an old order in rounds 2, 3 and 4, organisation-2 in round 3
    charged = [stage.run_of(who, lied.run).charged for who in stage.cast.organisations]
    assert charged == [ROUNDS - 3, ROUNDS - 1, ROUNDS]
    assert not any(stage.run_of(who, lied.run).unsettled for who in stage.cast.organisations)
    said = stage.nodes["organisation-1"].said()
    assert said.count("refused: forged") == 2  # weights, swap
    assert stage.nodes["organisation-2"].said().count("refused: forged") == 1
    assert f"run {lied.run[:8]}, round 1: answered before" in said  # the replay
    assert lied.said.count("organisation-1: the answer is not what it signed") == 4
    assert "organisation-1 does not answer: budget-spent" in lied.said  # the link's word is nobody's word


def test_a_node_that_lies_harms_nobody_but_by_an_update_that_fits(stage, lied):
    """Each lie is one word and a line that names the organisation; the others count in every round.

    An update of norm 10^9 is used: under unit `record` no bound on an update's norm is agreed.
    """
    words_of = {number: found[LIAR] for number, found in lied.refused.items() if LIAR in found}
    assert words_of == {number: word for number, (_, word) in NODE_LIES.items() if word}
    run = stage.run_of(LIAR, lied.run)
    assert (run.charged, len(run.unsettled)) == (ROUNDS, 0)  # its own ledger says what it did
    assert lied.said.count(f"{LIAR}: the answer is not what it signed") == 5
    assert lied.figures["metrics"]["loss"] > 5  # the enormous update went in; who guesses has ln 10 = 2.3
