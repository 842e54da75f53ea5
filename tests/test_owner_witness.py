"""An owner whose policy names a witness: nothing is written and nothing is read without it."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import ledger_reader
import numpy as np
import pytest
from ledger_reader import charged, settled
from owner_policy import RECORDS, write_policy
from sample_consortium import make

from client import owner as owners
from client.owner import Owner
from client.witness import Witness, cosigned_file
from common.config import Scenario, parse
from common.errors import ForkedError, RefusedError, RolledBackError, WitnessDownError, WitnessError
from common.ledger import Ledger
from common.messages import Order, Refusal
from common.privacy.plan import make_plan
from common.transparency.notes import read
from server.witness.service import start
from server.witness.store import Store

TEXT = """
run = {name = "x", rounds = 2}
data = {dataset = "digits", clients = 2}
training = {batch_size = 10, local_steps = 1}
server = {spare_rounds = 1}
privacy = {epsilon = 8.0}
"""
SCENARIO = parse(TEXT)
OPEN = parse(TEXT.replace("epsilon = 8.0", 'unit = "none"').replace("server = {spare_rounds = 1}", ""))


class FakeWitness:
    """Answers as it is told, and remembers how many entries the ledger had when it was asked."""

    def __init__(self, *answers: WitnessError | None, name: str = "w") -> None:
        self.name = name
        self.answers = list(answers)
        self.asked: list[int] = []

    def cosign(self, ledger: Ledger) -> None:
        self.asked.append(ledger.books.size)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with a policy that names the witness `w`, and an empty ledger."""
    write_policy(tmp_path / "policy.toml", limits__witness="w")
    Ledger.create(tmp_path / "ledger.db").close()
    return tmp_path


def owner(place: Path, witness: object, **named: float) -> Owner:
    return Owner(policy=place / "policy.toml", ledger=place / "ledger.db", witness=witness, **named)  # type: ignore[arg-type]


def order(number: int = 1, *, run: str = "r") -> Order:
    plan = make_plan(SCENARIO, records=(RECORDS,) * 2, run=run)
    return Order(
        run=run,
        round=number,
        attempt=1,
        client=0,
        weights_P=np.zeros(0, np.float32),
        mechanism=plan.mechanism(0),
    )


def kinds(ledger: Path) -> list[str]:
    """The types of all entries; none where nothing was ever written."""
    with closing(Ledger(ledger)) as opened:
        is_empty = not opened.books.size
    return [] if is_empty else ledger_reader.kinds(ledger)


def unprotected(run: str = "r") -> Order:
    return Order(run=run, round=1, attempt=1, client=0, weights_P=np.zeros(0, np.float32))


def asked(owner: Owner, number: int = 1, *, run: str = "r") -> str | None:
    """Carry an order out, and return the word of its refusal or None."""
    try:
        with owner.charged(order(number, run=run), SCENARIO):
            return None
    except RefusedError as error:
        return error.word.value


# --- before and after the charge --------------------------------------------------------------------------------------


def test_the_witness_is_asked_before_the_charge_and_before_training(place):
    """First of the ledger as it was found, then with the charge in it: GENESIS, the run, the order."""
    witness = FakeWitness()
    with owner(place, witness).charged(order(), SCENARIO):
        assert witness.asked == [0, 3]
    assert settled(place / "ledger.db") == [("COMMIT", 1, 1, "wards")]


@pytest.mark.parametrize("answer", [RolledBackError("old"), ForkedError("fork"), WitnessError("no member")])
def test_a_ledger_that_is_not_cosigned_is_not_written_to(place, answer):
    """One charge on a copy from yesterday would fork it: the refusal stands in the log alone."""
    assert asked(owner(place, FakeWitness(answer))) == "not-witnessed"
    assert kinds(place / "ledger.db") == []


@pytest.mark.parametrize("answer", [RolledBackError("old"), ForkedError("fork"), WitnessError("no member")])
def test_a_charge_that_is_not_cosigned_is_spent_and_nothing_is_read(place, answer):
    """The order expires, charged in full, and never comes again."""
    witness = FakeWitness(None, answer)
    assert asked(owner(place, witness)) == "not-witnessed"
    assert charged(place / "ledger.db") == [(1, 1, "wards")]
    assert settled(place / "ledger.db") == [("EXPIRE", 1, 1, "wards")]
    assert asked(owner(place, witness)) == "already-trained"


def test_a_run_outside_the_policy_is_noted_only_with_the_witness(place):
    """A refusal is an entry too."""
    write_policy(place / "policy.toml", limits__witness="w", limits__min_cohort=3)
    assert asked(owner(place, FakeWitness(RolledBackError("old")))) == "not-witnessed"
    assert kinds(place / "ledger.db") == []
    assert asked(owner(place, FakeWitness())) == "outside-policy"
    assert kinds(place / "ledger.db") == ["GENESIS", "REFUSE"]


@pytest.mark.parametrize("witness", [None, FakeWitness(name="other")], ids=["none", "another"])
def test_a_policy_whose_witness_is_not_there_to_ask_refuses(place, witness):
    """As on a stock Flower node, which has none."""
    one = owner(place, witness)
    expected = pytest.raises(RefusedError, match=r"witness: expected 'w' to cosign, got (none|'other') to ask")
    with expected as caught, one.charged(order(), SCENARIO):
        pass
    assert caught.value.word is Refusal.NOT_WITNESSED
    assert kinds(place / "ledger.db") == []
    assert one.offer(SCENARIO, "r") is Refusal.NOT_WITNESSED


def test_a_policy_that_names_nobody_asks_nobody(place):
    """A witness that is there all the same is left alone."""
    write_policy(place / "policy.toml")
    witness = FakeWitness(WitnessError("never"))
    assert asked(owner(place, witness)) is None
    assert witness.asked == []


# --- a witness that is down -------------------------------------------------------------------------------------------


def test_a_witness_that_is_down_means_no_where_the_policy_says_so(place):
    """After a second, since a restart takes a moment; nothing is charged."""
    witness = FakeWitness(*[WitnessDownError("down")] * 99)
    assert asked(owner(place, witness)) == "not-witnessed"
    assert 2 <= len(witness.asked) < 10
    assert kinds(place / "ledger.db") == []


def test_a_witness_that_is_back_in_a_moment_was_not_down(place):
    """One refusal of the connection costs no round."""
    assert asked(owner(place, FakeWitness(WitnessDownError("down")))) is None


def test_a_witness_that_is_down_is_waited_for_where_the_policy_says_so(place):
    """Until it is back."""
    write_policy(place / "policy.toml", limits__witness="w", limits__witness_down="wait")
    witness = FakeWitness(*[WitnessDownError("down")] * 3)
    assert asked(owner(place, witness, wait_s=30)) is None
    assert len(witness.asked) == 5


def test_the_wait_has_an_end(place):
    """Then the order is refused."""
    write_policy(place / "policy.toml", limits__witness="w", limits__witness_down="wait")
    assert asked(owner(place, FakeWitness(*[WitnessDownError("down")] * 99), wait_s=0.3)) == "not-witnessed"


def test_a_rollback_is_not_waited_for(place):
    """However long one waits, the ledger stays what it is."""
    write_policy(place / "policy.toml", limits__witness="w", limits__witness_down="wait")
    witness = FakeWitness(RolledBackError("old"))
    assert asked(owner(place, witness, wait_s=600)) == "not-witnessed"
    assert witness.asked == [0]


# --- offers, and the end of a run -------------------------------------------------------------------------------------


def test_an_offer_is_what_the_order_would_meet(place):
    """Free, outside, spent: the same words, and nothing is written."""
    one = owner(place, FakeWitness())
    assert one.offer(SCENARIO, "r") is None
    assert kinds(place / "ledger.db") == []
    assert [asked(one, number) for number in (1, 2, 3)] == [None] * 3
    before = kinds(place / "ledger.db")
    assert one.offer(SCENARIO, "r") is Refusal.BUDGET_SPENT  # its three orders are used
    assert one.offer(SCENARIO, "s") is Refusal.BUDGET_SPENT  # and with them the lifetime of 8
    assert kinds(place / "ledger.db") == before
    assert asked(one, 4) == "budget-spent"


def test_an_offer_says_what_the_policy_has_against_it(place):
    """The reasons stand in the log alone."""
    write_policy(place / "policy.toml", limits__witness="w", limits__min_cohort=3)
    assert owner(place, FakeWitness()).offer(SCENARIO, "r") is Refusal.OUTSIDE_POLICY
    assert kinds(place / "ledger.db") == []


def test_an_offer_of_a_scenario_without_a_plan_is_outside_the_policy(place):
    """A batch of 41 of 40 records cannot be drawn."""
    of = parse(TEXT.replace("batch_size = 10", "batch_size = 41"))
    assert owner(place, FakeWitness()).offer(of, "r") is Refusal.OUTSIDE_POLICY


@pytest.mark.parametrize(
    ("down", "answer", "word"),
    [
        ("refuse", WitnessDownError("down"), Refusal.NOT_WITNESSED),
        ("wait", WitnessDownError("down"), None),
        ("wait", RolledBackError("old"), Refusal.NOT_WITNESSED),
        ("refuse", ForkedError("fork"), Refusal.NOT_WITNESSED),
    ],
)
def test_an_offer_asks_the_witness_once(place, down, answer, word):
    """A coordinator that waits for offers is not kept waiting."""
    write_policy(place / "policy.toml", limits__witness="w", limits__witness_down=down)
    witness = FakeWitness(answer)
    assert owner(place, witness).offer(SCENARIO, "r") is word
    assert len(witness.asked) == 1


def test_a_run_that_ended_frees_what_it_did_not_use(place):
    """The second run's offer is refused while the first holds the budget, and none after."""
    one = owner(place, FakeWitness())
    small = parse(TEXT.replace("epsilon = 8.0", "epsilon = 3.0"))
    assert asked(one) is None
    assert one.offer(small, "s") is Refusal.BUDGET_SPENT
    one.end("r")
    assert one.offer(small, "s") is None
    written = kinds(place / "ledger.db")
    one.end("r")
    one.end("unheard of")
    assert kinds(place / "ledger.db") == written


def test_a_run_is_not_ended_on_an_older_copy(place):
    """That too would be an entry."""
    one = owner(place, FakeWitness())
    assert asked(one) is None
    before = kinds(place / "ledger.db")
    stopped = owner(place, FakeWitness(RolledBackError("old")))
    with pytest.raises(RefusedError) as caught:
        stopped.end("r")
    assert caught.value.word is Refusal.NOT_WITNESSED
    assert kinds(place / "ledger.db") == before


def test_an_owner_tells_its_constants(place):
    """What an offer carries: public, and not read from the data."""
    one = owner(place, None)
    assert (one.name, one.units(SCENARIO), len(one.policy_digest)) == ("St Mary", RECORDS, 64)


# --- runs without privacy ---------------------------------------------------------------------------------------------


def test_a_run_without_privacy_is_refused(place):
    """Unless the policy says that the data are public anyway."""
    one = owner(place, FakeWitness())
    expected = pytest.raises(
        RefusedError, match=r"unit: expected record, or with limits\.without_privacy none, got none"
    )
    with expected, one.charged(unprotected(), OPEN):
        pass
    assert one.offer(OPEN, "r") is Refusal.OUTSIDE_POLICY


def test_a_run_without_privacy_is_let_through_where_the_policy_says_so(place, caplog):
    """One line in the log, nothing in the ledger, no witness asked."""
    write_policy(place / "policy.toml", limits__witness="w", limits__without_privacy=True)
    witness = FakeWitness()
    one = owner(place, witness)
    assert one.offer(OPEN, "r") is None
    with one.charged(unprotected(), OPEN):
        assert kinds(place / "ledger.db") == []
    assert [record.message for record in caplog.records] == [
        "run r, round 1: trains WITHOUT privacy; nothing is charged"
    ]
    assert (kinds(place / "ledger.db"), witness.asked) == ([], [])


def test_a_run_without_privacy_keeps_to_the_other_limits(place):
    """Models, cohort and code are as narrow as ever; and whole clients are not protected here."""
    write_policy(place / "policy.toml", limits__without_privacy=True, limits__models=["transformer"])
    assert owner(place, None).offer(OPEN, "r") is Refusal.OUTSIDE_POLICY
    write_policy(place / "policy.toml", limits__without_privacy=True)
    clients = 'unit = "client", noise_multiplier = 1.0'
    whole: Scenario = parse(TEXT.replace("epsilon = 8.0", clients).replace("server = {spare_rounds = 1}", ""))
    assert owner(place, None).offer(whole, "r") is Refusal.OUTSIDE_POLICY


# --- all of it --------------------------------------------------------------------------------------------------------


def test_a_ledger_restored_from_yesterday_trains_nothing(tmp_path):
    """A real witness over TLS: the copy is refused in a fresh process before a charge forks it, and not for ever."""
    consortium = make(tmp_path, owners=1, ledgers=True, witness_address="127.0.0.1:9444")
    own, ledger = consortium.witness, consortium.ledgers[0]
    assert own is not None
    write_policy(tmp_path / "policy.toml", limits__witness="witness")
    running = start(own, store=Store(tmp_path / "w.db"), host="127.0.0.1", port=0)
    witness = Witness(running.address, name="witness", key=own.signer.key, identity=consortium.owners[0], timeout_s=5)

    def fresh() -> Owner:
        owners._opened.cache_clear()  # as a new process would
        return Owner(policy=tmp_path / "policy.toml", ledger=ledger, witness=witness)

    with closing(witness):
        assert asked(fresh(), 1) is None
        _put_away(ledger, tmp_path / "yesterday")
        assert asked(fresh(), 2) is None
        assert read(cosigned_file(ledger).read_text()).size == 5  # opened, run, order, commit, order
        _put_away(ledger, tmp_path / "today")
        _bring_back(ledger, tmp_path / "yesterday")
        before = kinds(ledger)
        assert asked(fresh(), 2) == "not-witnessed"
        assert kinds(ledger) == before
        _bring_back(ledger, tmp_path / "today")
        assert asked(fresh(), 3) is None
    running.stop(grace_s=0)
    assert charged(ledger) == [(1, 1, "wards"), (2, 1, "wards"), (3, 1, "wards")]


def _put_away(ledger: Path, copy: Path) -> None:
    """As a backup of a file in use is made."""
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _bring_back(ledger: Path, copy: Path) -> None:
    owners._opened.cache_clear()
    for end in ("-wal", "-shm"):
        ledger.with_name(ledger.name + end).unlink(missing_ok=True)
    ledger.unlink()
    shutil.copyfile(copy, ledger)
