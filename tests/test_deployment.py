"""What a coordinator asks before a run, whom it takes, and what it makes of the answers."""

import json
from dataclasses import replace

import pytest
from flwr.app import Error, Message
from sample_consortium import make
from sealed_replies import MailGrid

from common.config import parse
from common.consortium import seals
from common.errors import BadInputError, ConsortiumError, LinkError, RunFailedError, ScenarioError
from common.letters import letter
from common.messages import Offer, Refusal
from common.packing import unpacked
from server.coordinator import deployment, questions, run_record
from server.coordinator.organisations import taking_part
from server.coordinator.parties import Parties
from server.observer import Observer

SCENARIO = """
run = {name = "x", rounds = 2, purpose = "a test"}
data = {dataset = "digits", clients = 2}
training = {batch_size = 8, local_steps = 1}
privacy = {noise_multiplier = 1.0}
"""
RUN = "r" * 32


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make(tmp_path_factory.mktemp("consortium"), owners=2, witness=False)


@pytest.fixture
def parties(sample):
    return Parties(
        roster=sample.roster,
        signer=sample.coordinator.signer,
        flower_run=7,
        scenario="5" * 64,
        owners=sample.roster.owners,
        nodes=(2, 1),
    )


def answered(question: Message, parties: Parties, sample, **changes: object) -> Message:
    """An organisation's signed answer to an offer's question."""
    party = parties.nodes.index(question.metadata.dst_node_id)
    asked = unpacked(question.content["letter"])[0]["question"]
    fields = {"run": asked["run"]}
    if asked["kind"] == "offer":
        fields |= {"records": 10 + party, "policy": "a" * 64, "code": "c" * 64, "refusal": ""}
    fields |= changes
    statement = seals.answer_statement(
        roster=parties.roster.digest,
        consortium=parties.roster.consortium,
        sender=sample.owners[party].name,
        question=seals.digest(parties.question(party, kind=asked["kind"], run=asked["run"])),
        fields=fields,
    )
    seal = {"signature": seals.seal(sample.owners[party].signer, statement)}
    return Message(letter({"answer": fields, "seal": seal}, {}), reply_to=question)


def test_offers_come_by_place_in_the_roster(sample, parties):
    """Whatever numbers the link gave the nodes, an offer counts for the organisation that signed it."""
    grid = MailGrid(2, lambda question: answered(question, parties, sample))
    offers = questions.offers(grid, parties, run=RUN, wait_s=5)
    assert {party: offer.records for party, offer in offers.items()} == {0: 10, 1: 11}


def test_who_has_not_answered_is_asked_again(sample, parties):
    """An organisation that comes late is in time."""
    times = {1: 0, 2: 0}

    def late(question):
        node = question.metadata.dst_node_id
        times[node] += 1
        return (
            answered(question, parties, sample)
            if node == 2 or times[node] > 1
            else Message(Error(5, "gone"), reply_to=question)
        )

    assert questions.offers(MailGrid(2, late), parties, run=RUN, wait_s=10).keys() == {0, 1}
    assert times == {1: 2, 2: 1}


def test_an_offer_that_its_sender_did_not_sign_is_none(sample, parties):
    """A link cannot raise an organisation's number of records."""

    def changed(question):
        reply = answered(question, parties, sample)
        reply.content["letter"]["answer.records"] = 10_000
        return reply

    assert questions.offers(MailGrid(2, changed), parties, run=RUN, wait_s=0.5) == {}


@pytest.mark.parametrize(
    "changes",
    [{"run": "another"}, {"records": 0}, {"records": "10"}, {"refusal": "because"}],
    ids=["another run", "no records", "records as text", "a word of its own"],
)
def test_an_offer_that_makes_no_sense_is_none(sample, parties, changes):
    """What a member signed must still be an offer for this run."""
    grid = MailGrid(2, lambda question: answered(question, parties, sample, **changes))
    assert questions.offers(grid, parties, run=RUN, wait_s=0.5) == {}


def test_who_awaits_approval_is_asked_until_the_officer_has_decided(sample, parties):
    """An approval that comes while the coordinator waits lets the run begin."""
    times = {1: 0, 2: 0}

    def approving(question):
        node = question.metadata.dst_node_id
        times[node] += 1
        word = "awaits-approval" if times[node] == 1 else ""
        return answered(question, parties, sample, refusal=word)

    offers = questions.offers(MailGrid(2, approving), parties, run=RUN, wait_s=10)
    assert [offers[party].refusal for party in (0, 1)] == [None, None]


def test_the_end_is_told_to_all(sample, parties):
    """Every organisation hears that the run is over, under the coordinator's signature."""
    seen = []

    def listen(question):
        seen.append(question.content["letter"]["question.kind"])
        return answered(question, parties, sample)

    questions.end(MailGrid(2, listen), parties, run=RUN, wait_s=5)
    assert seen == ["end", "end"]


def offer(records: int = 10, refusal: Refusal | None = None) -> Offer:
    return Offer(run=RUN, records=records, policy="a" * 64, code="c" * 64, refusal=refusal)


def test_who_takes_part_is_kept_in_the_folder(tmp_path, sample):
    """The folder names each organisation with its declared records and its digests."""
    made = taking_part(tmp_path, sample.roster, {0: offer(10), 1: offer(20)})
    assert [(one.name, one.records) for one in made] == [("owner-0", 10), ("owner-1", 20)]
    assert run_record.organisations_in(tmp_path) == made


def test_a_missing_organisation_ends_the_run_before_it_begins(tmp_path, sample):
    """No plan is made without everybody's number of records; the message names who is missing and how to go on."""
    with pytest.raises(RunFailedError, match=r"No answer from owner-1\..*--resume"):
        taking_part(tmp_path, sample.roster, {0: offer()})


def test_all_refusing_ends_the_run_with_their_words(tmp_path, sample):
    """A run in which every organisation refuses fails, with each one's word."""
    refused = {0: offer(refusal=Refusal.OUTSIDE_POLICY), 1: offer(refusal=Refusal.BUDGET_SPENT)}
    with pytest.raises(RunFailedError, match=r"owner-0: outside-policy, owner-1: budget-spent.*Nothing was trained"):
        taking_part(tmp_path, sample.roster, refused)


def test_one_refusing_does_not_end_the_run(tmp_path, sample):
    """The others go on; who refuses is in the plan with its declared records, and is asked each round."""
    made = taking_part(tmp_path, sample.roster, {0: offer(refusal=Refusal.OUTSIDE_POLICY), 1: offer()})
    assert len(made) == 2


def test_a_resumed_run_goes_on_without_one_that_is_away(tmp_path, sample):
    """After a first start, an organisation that does not answer counts with what it declared then."""
    taking_part(tmp_path, sample.roster, {0: offer(10), 1: offer(20)})
    made = taking_part(tmp_path, sample.roster, {0: offer(10)})
    assert [one.records for one in made] == [10, 20]


def test_a_resumed_run_refuses_other_numbers_of_records(tmp_path, sample):
    """The plan was made for what was declared; another number is another run."""
    taking_part(tmp_path, sample.roster, {0: offer(10), 1: offer(20)})
    with pytest.raises(RunFailedError, match="owner-0 declared 10 records when the run was planned, and now 11"):
        taking_part(tmp_path, sample.roster, {0: offer(11), 1: offer(20)})


def test_a_resumed_run_refuses_other_organisations(tmp_path, sample):
    """Client numbers are places in the roster: a run does not outlive a change of who has which."""
    taking_part(tmp_path, sample.roster, {0: offer(), 1: offer()})
    names = json.loads((tmp_path / run_record.ORGANISATIONS).read_text())
    (tmp_path / run_record.ORGANISATIONS).write_text(json.dumps(names[::-1]))
    with pytest.raises(RunFailedError, match="begun by owner-1, owner-0"):
        taking_part(tmp_path, sample.roster, {0: offer(), 1: offer()})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.unit=client", "privacy.unit: expected 'record'"),
        ("data.clients=3", "data.clients: expected 2, the organisations of the roster"),
        ("run.purpose=", "run.purpose: expected a sentence"),
    ],
)
def test_a_scenario_that_does_not_fit_organisations_is_refused_before_anything_is_written(
    tmp_path, sample, override, message
):
    """What cannot run is said at once, with the key and the remedy."""
    scenario = parse(SCENARIO, overrides=[override, "server.cohort=2", "server.max_participations=2"])
    with pytest.raises(ScenarioError, match=message):
        deployment.run(coordinator(sample), scenario, test=None, out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_without_a_link_nothing_is_written(tmp_path, sample):
    """A coordinator whose link is down says so, and leaves no folder behind."""
    with pytest.raises(LinkError, match="discreet serve"):
        deployment.run(coordinator(sample), parse(SCENARIO), test=None, out=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_roster_that_not_all_have_signed_runs_nothing(tmp_path):
    """The coordinator alone cannot decide who is in the consortium."""
    sample = make(tmp_path / "c", owners=2, witness=False)
    text = json.loads(sample.folder.roster.read_text())
    del text["signatures"]["owner-1"]
    sample.folder.roster.write_text(json.dumps(text))
    with pytest.raises(ConsortiumError, match="owner-1"):
        deployment.run(coordinator(sample), parse(SCENARIO), test=None, out=tmp_path / "run")  # type: ignore[arg-type]


def test_a_folder_of_another_kind_is_not_resumed(tmp_path, sample):
    """Resuming needs the record of a deployed run."""
    with pytest.raises(BadInputError, match=r"run\.json"):
        deployment.resume(coordinator(sample), tmp_path, test=None)  # type: ignore[arg-type]


def coordinator(sample) -> deployment.Coordinator:
    return deployment.Coordinator(folder=sample.folder.path, watcher=Observer(), wait_s=1.0)


def test_parties_of_different_runs_sign_different_questions(parties):
    """A question of one run cannot be asked again in another."""
    asked = parties.question(0, kind="offer", run=RUN)
    assert asked != replace(parties, flower_run=8).question(0, kind="offer", run=RUN)
    assert asked != parties.question(1, kind="offer", run=RUN)
    assert asked != parties.question(0, kind="end", run=RUN)
