"""Approvals: a run trains when a person said so, of exactly this scenario, and the ledger keeps who."""

from contextlib import closing
from dataclasses import replace

import pytest
import sample_consortium
from organisation import SCENARIO, make

from client.node import approvals as approval_files
from client.node import decisions
from client.node.approvals import APPROVALS, Approvals, Proposed
from common.errors import BadInputError, SettingsError
from common.ledger import Ledger
from common.messages import Refusal

RUN = "3f1c09aa"
PROPOSED = Proposed(run=RUN, purpose="a trial", scenario=SCENARIO, coordinator="hub", asked=1_790_000_000.0)


@pytest.fixture
def approvals(tmp_path):
    with closing(Approvals(tmp_path / "approvals.db")) as opened:
        yield opened


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return sample_consortium.make(tmp_path_factory.mktemp("consortium"), owners=1, witness=False, ledgers=True)


@pytest.fixture
def organisation(consortium):
    made = make(consortium, "localhost:1", limits__approval=True)
    made.state.mkdir(exist_ok=True)
    (made.state / APPROVALS).unlink(missing_ok=True)
    with closing(Approvals(made.state / APPROVALS)) as opened:
        opened.note(PROPOSED)
    return made


def decide(organisation, run, decision, by="Dr Grey"):
    return decisions.decide(organisation.folder / "node.toml", organisation.policy, run, decision=decision, by=by)


def test_a_run_waits_until_a_person_decided(approvals):
    """Unknown, known, approved, refused: the last decision counts."""
    words = [approvals.refusal(RUN, PROPOSED.digest)]
    approvals.note(PROPOSED)
    words.append(approvals.refusal(RUN, PROPOSED.digest))
    for decision in ("approved", "refused"):
        approvals.decide(RUN, decision=decision, by="Dr Grey")
        words.append(approvals.refusal(RUN, PROPOSED.digest))
    assert words == [Refusal.AWAITS_APPROVAL, Refusal.AWAITS_APPROVAL, None, Refusal.REFUSED_BY_OWNER]


def test_another_scenario_under_an_approved_run_is_refused(approvals):
    """What was approved is a text, and not a name."""
    approvals.note(PROPOSED)
    approvals.decide(RUN, decision="approved", by="Dr Grey")
    other = replace(PROPOSED, scenario=SCENARIO + "\n", purpose="something else")
    approvals.note(other)
    assert approvals.refusal(RUN, other.digest) is Refusal.NOT_IN_PLAN
    assert approvals.refusal(RUN, PROPOSED.digest) is None
    assert [one.purpose for one in approvals.all()] == ["a trial"]


def test_a_flood_of_proposals_fills_no_disk(approvals, monkeypatch):
    """Those that nobody decided on are bounded; a run that is not noted waits all the same."""
    monkeypatch.setattr(approval_files, "MOST_WAITING", 3)
    for number in range(10):
        approvals.note(replace(PROPOSED, run=f"run-{number}"))
    assert len(approvals.all()) == 3
    assert approvals.refusal("run-9", PROPOSED.digest) is Refusal.AWAITS_APPROVAL


def test_the_ledger_keeps_who_decided_what(organisation):
    """With the purpose and the scenario's digest; the account is opened when it is the first thing that happens."""
    said = decide(organisation, "3f1c", "approved")
    assert "Run 3f1c09aa (a trial) is approved by Dr Grey" in said
    with closing(Ledger(organisation.ledger)) as ledger:
        kept = ledger.books.accounts["wards"].approvals[-1]
    assert (kept.run, kept.decision, kept.by, kept.purpose) == (RUN, "approved", "Dr Grey", "a trial")
    assert kept.scenario == PROPOSED.digest
    with closing(Approvals(organisation.state / APPROVALS)) as approvals:
        assert approvals.refusal(RUN, PROPOSED.digest) is None


@pytest.mark.parametrize("run", ["", "9", "3f1c09aaa"])
def test_a_run_is_named_by_how_it_begins(organisation, run):
    """Nothing is decided unless it is clear on what."""
    with pytest.raises(BadInputError, match=r"expected one proposed run that begins with .* got 0"):
        decide(organisation, run, "approved")


@pytest.mark.parametrize("by", ["", "  ", "a\nb", "x" * 201])
def test_who_decides_has_a_name(organisation, by):
    """The ledger keeps it for good."""
    with pytest.raises(BadInputError, match="--by"):
        decide(organisation, RUN, "refused", by=by)


def test_the_list_says_what_a_run_is_for_and_what_it_would_cost(organisation):
    """Every participation counted, spares too, by the owner's own number of records."""
    (row,) = decisions.runs(organisation.folder / "node.toml", organisation.policy)
    assert (row["run"], row["purpose"], row["coordinator"], row["decision"]) == (RUN, "a trial", "hub", None)
    assert 3.9 < row["epsilon"] <= 4.0


def test_a_scenario_that_does_not_read_is_shown_with_its_mistake(organisation):
    """The person sees it and can refuse."""
    with closing(Approvals(organisation.state / APPROVALS)) as approvals:
        approvals.note(replace(PROPOSED, run="bad", scenario="rubbish"))
    rows = {row["run"]: row for row in decisions.runs(organisation.folder / "node.toml", organisation.policy)}
    assert "not a TOML file" in rows["bad"]["objection"]


def test_the_command_line_lists_and_decides(organisation):
    """`runs`, `refuse` as a person types them."""
    listed = organisation.command("runs")
    assert "a trial" in listed.stdout, listed.stderr
    refused = organisation.command("refuse", "3f1", "--by", "Dr Grey")
    assert "is refused by Dr Grey" in refused.stdout, refused.stderr
    assert '"decision": "refused"' in organisation.command("runs", "--json").stdout


def test_a_file_that_is_none_of_ours_is_named(tmp_path):
    """Nothing is approved by accident."""
    (tmp_path / "approvals.db").write_text("not SQLite" * 200)
    with pytest.raises(SettingsError, match=r"approvals\.db: expected the node's approvals"):
        Approvals(tmp_path / "approvals.db")
