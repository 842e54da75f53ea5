"""`discreet audit`, from a scenario to a verdict, through the real trainer. Honest runs are refuted with 1e-4 each."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

import discreet
from common.config import parse
from common.errors import BadInputError
from common.ledger import Ledger
from common.transparency.entries import Audit as AuditEntry
from common.transparency.export import read
from common.transparency.provenance import provenance
from common.transparency.verification import verify
from server.observer import Observer
from simulations import report
from simulations.audit.audit import audit

SMALL = """
run = {name = "small", rounds = 12}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 72, local_steps = 1, learning_rate = 0.5}
privacy = {epsilon = 4.0}
engine = {kind = "sequential"}
"""
NONE = SMALL.replace("epsilon = 4.0", 'unit = "none"')
CLIENT = SMALL.replace("epsilon = 4.0", 'unit = "client", epsilon = 4.0, delta = 0.001').replace(
    "engine =", "server = {cohort = 5}\nengine ="
)
PERSON = SMALL.replace('dataset = "digits", clients = 10', 'dataset = "mnist", clients = 3').replace(
    "epsilon = 4.0", 'unit_column = "writer", epsilon = 4.0'
)
STEPS = SMALL.replace("local_steps = 1", "local_steps = 4")
KEYS = {"claimed_epsilon", "lower_bounds", "verdict", "confidence", "checks", "layers", "canaries", "code", "libraries"}


def made(text: str, folder: Path, *, canaries: int = 400, ledger: Path | None = None):
    return audit(parse(text), canaries=canaries, out=folder, ledger=ledger, watcher=Observer())


@pytest.mark.parametrize(
    ("text", "canaries", "unit"),
    [(SMALL, 400, "record"), (STEPS, 400, "record"), (PERSON, 400, "person"), (CLIENT, 100, "client")],
)
def test_an_honest_run_is_not_refuted(tmp_path, text, canaries, unit):
    """Every unit, one step a round or several: all layers and all eight checks, and no alarm."""
    found = made(text, tmp_path / "run", canaries=canaries)
    assert found.findings.verdict == "not refuted", found.findings
    assert found.unit == unit
    assert found.findings.canaries == canaries
    assert {check.name for check in found.findings.checks} == {
        "noise", "noise on the body", "freshness", "contribution", "sampling rate", "spread", "charges", "composition",
        *(["cohorts"] if unit == "client" else []),
    }  # fmt: skip
    assert found.findings.claimed_epsilon == pytest.approx(4.0, abs=0.05)
    assert 0 < found.findings.lower_bounds.gaussian < found.findings.claimed_epsilon


def test_what_was_found_is_in_the_folder_in_the_ledger_and_in_the_report(tmp_path):
    """audit.json, an AUDIT entry a client bound to code and libraries, a ledger that verifies, a line on the page."""
    found = made(SMALL, tmp_path / "run")
    table = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert table.keys() >= KEYS
    assert table == json.loads(json.dumps(found.to_json()))
    statement = read(tmp_path / "run" / "ledger.db")
    entries = [entry for entry in statement.entries if isinstance(entry, AuditEntry)]
    assert [entry.account for entry in entries] == ["digits/client-000000", "digits/client-000001"]
    for entry in entries:
        assert entry.findings["verdict"] == "not refuted"
        assert entry.findings["code"] == provenance().code
        assert f"torch={provenance().libraries['torch']}" in entry.findings["libraries"]
        assert entry.run == found.plan.run
    verify(statement)
    page = report.write(tmp_path / "run", out=None).read_text()
    assert "400 canaries" in page.replace("</bdi>", "").replace("<bdi>", "")
    assert "the one that charged" in page


def test_a_verdict_is_noted_in_an_owners_ledger_too(tmp_path):
    """On each of its accounts, beside what it spent."""
    first = made(SMALL, tmp_path / "first", canaries=200)
    made(SMALL, tmp_path / "second", canaries=200, ledger=tmp_path / "first" / "ledger.db")
    with closing(Ledger(tmp_path / "first" / "ledger.db")) as ledger:
        accounts = ledger.books.accounts.values()
        assert [len(account.audits) for account in accounts] == [2, 2]
        assert all(account.audits[0].run == first.plan.run != account.audits[1].run for account in accounts)


def test_without_privacy_an_audit_tells_the_bound_that_it_finds(tmp_path):
    """Every guess is right, since an idle canary's weight does not move at all: there is no ledger and no verdict."""
    found = made(NONE, tmp_path / "run")
    assert found.findings.verdict == "no claim to refute"
    assert found.findings.correct == found.findings.guesses == 300  # three quarters
    assert found.findings.claimed_epsilon is None
    # Steinke with 300 right of 300 at 95 %, shared among three attacks: q^300 <= 1/60, epsilon = 4.28 without delta
    assert 3.0 < found.findings.lower_bounds.steinke < 4.28
    assert not (tmp_path / "run" / "ledger.db").exists()


def test_too_few_canaries_are_refused_before_anything_is_trained(tmp_path):
    """It says how many would do, and with so many it is made."""
    with pytest.raises(BadInputError, match=r"expected at least (\d+) for so large an epsilon, got 10") as refused:
        made(SMALL, tmp_path / "run", canaries=10)
    assert "--canaries" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_command_shows_what_was_found_and_exits_with_the_verdict(tmp_path):
    """0 for not refuted; people see the bounds, the checks and what was attacked (`planted_bugs` has 1, and --json)."""
    scenario = tmp_path / "small.toml"
    scenario.write_text(SMALL)
    done = CliRunner().invoke(
        discreet.app,
        ["audit", str(scenario), "--canaries", "200", "--out", str(tmp_path / "a"), "--set", "run.rounds=4"],
    )
    assert done.exit_code == 0, done.output
    for words in ("claimed is", "Whether the run did what it says", "not refuted", "gradients by one backward pass"):
        assert words in done.stdout
    assert json.loads((tmp_path / "a" / "audit.json").read_text()).keys() >= KEYS
