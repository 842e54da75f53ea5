"""A simulated run's ledger: whose it is, where it lies, and what of it is remembered."""

from contextlib import closing
from pathlib import Path

import pytest
from ledger_reader import kinds

from common.config import Scenario, parse
from common.errors import BadInputError, LedgerError, PlanRefusedError
from common.ledger import Ledger
from common.privacy.accounts import account_names, split_of, terms_of
from common.privacy.plan import Plan, make_plan
from simulations import run_ledger


def scenario(privacy: str = 'unit = "record", noise_multiplier = 2.0', *overrides: str) -> Scenario:
    return parse(
        'run = {name = "x", rounds = 2}\ndata = {dataset = "digits", clients = 2}\n'
        f"training = {{batch_size = 10, local_steps = 1}}\nprivacy = {{{privacy}}}\n",
        overrides=overrides,
    )


RECORD = scenario()
CLIENT = scenario('unit = "client", noise_multiplier = 2.0, delta = 0.05')
NONE = scenario('unit = "none"')


def plan(of: Scenario, run: str = "r") -> Plan:
    return make_plan(of, records=(40, 40), run=run)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run's folder."""
    made = tmp_path / "run"
    made.mkdir()
    return made


def claimed(folder: Path, of: Scenario = RECORD, *, run: str = "r", is_resumed: bool = False) -> bool:
    """Claim a run's accounts and let go of them; whether there was a budget."""
    with run_ledger.claim(folder, of, plan(of, run), is_resumed=is_resumed) as budget:
        return budget is not None


# --- where it lies ----------------------------------------------------------------------------------------------------


def test_a_run_has_a_ledger_of_its_own_unless_one_is_named(folder, tmp_path):
    """It is a file in the run's folder, or there a link to the one that is named, made when it is not there."""
    run_ledger.attach(folder, None, RECORD)
    assert (folder / "ledger.db").is_file()
    assert not (folder / "ledger.db").is_symlink()
    shared = tmp_path / "two"
    shared.mkdir()
    run_ledger.attach(shared, tmp_path / "owners.db", RECORD)
    assert (shared / "ledger.db").resolve() == tmp_path / "owners.db"
    with closing(Ledger(shared / "ledger.db")) as through_the_link, closing(Ledger(tmp_path / "owners.db")) as itself:
        assert through_the_link.key == itself.key


def test_a_ledger_that_is_there_is_kept(folder, tmp_path):
    """Attaching a second run writes nothing into it."""
    Ledger.create(tmp_path / "owners.db").close()
    before = (tmp_path / "owners.db").read_bytes()
    run_ledger.attach(folder, tmp_path / "owners.db", RECORD)
    assert (tmp_path / "owners.db").read_bytes() == before


def test_a_run_without_privacy_gets_no_ledger(folder):
    """It spends nothing."""
    run_ledger.attach(folder, None, NONE)
    assert list(folder.iterdir()) == []
    assert not claimed(folder, NONE)


# --- which ledgers are refused ----------------------------------------------------------------------------------------


def test_a_ledger_for_nothing_is_bad_input(tmp_path):
    """Unit none with --ledger is a mistake of whoever asks."""
    with pytest.raises(BadInputError, match="--ledger: expected none of it"):
        run_ledger.refuse_unfit(tmp_path / "owners.db", NONE)


@pytest.mark.parametrize("of", [RECORD, CLIENT, NONE], ids=["record", "client", "none"])
def test_no_ledger_is_never_unfit(of):
    """Each unit may go without a ledger that is named."""
    assert run_ledger.refuse_unfit(None, of) is None


OTHERS = {
    "seed": scenario('unit = "record", noise_multiplier = 2.0', "run.seed=8"),
    "clients": scenario('unit = "record", noise_multiplier = 2.0', "data.clients=3"),
    "partition": scenario('unit = "record", noise_multiplier = 2.0', "data.partition=dirichlet"),
    "unit": CLIENT,
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_split_is_refused_by_name(folder, other):
    """The message says which split the ledger is for, and which the scenario is for."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    with pytest.raises(PlanRefusedError, match="a record would be in two accounts") as caught:
        run_ledger.refuse_unfit(folder / "ledger.db", OTHERS[other])
    assert split_of(RECORD) in str(caught.value)
    assert split_of(OTHERS[other]) in str(caught.value)


def test_the_concentration_of_a_dirichlet_split_tells_splits_apart(folder):
    """It decides where a record lies; without a Dirichlet split it says nothing."""
    half, one = (scenario("noise_multiplier = 2.0", "data.partition=dirichlet", f"data.alpha={a}") for a in (0.5, 1.0))
    assert split_of(half) != split_of(one)
    assert split_of(scenario("noise_multiplier = 2.0", "data.alpha=0.7")) == split_of(RECORD)


def test_persons_and_records_are_different_splits():
    """A person's records stay together: another split, and epsilon of another unit."""
    mnist = 'run = {name = "x", rounds = 2}\ndata = {dataset = "mnist", clients = 2}\ntraining = {batch_size = 10}\n'
    records = parse(mnist + "privacy = {noise_multiplier = 2.0}")
    persons = parse(mnist + 'privacy = {noise_multiplier = 2.0, unit_column = "writer"}')
    assert split_of(records) != split_of(persons)


def test_the_same_split_is_welcome_again(folder):
    """More rounds, another model or another budget leave every record where it is."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    more = scenario('unit = "record", noise_multiplier = 3.0, budget = 50.0', "run.rounds=5", "model.dense=8")
    assert run_ledger.refuse_unfit(folder / "ledger.db", more) is None


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_opens_an_account_for_each_client_and_reserves_the_run(folder):
    """Two clients: two accounts under the scenario's terms, two reservations, and nothing more when claimed again."""
    run_ledger.attach(folder, None, RECORD)
    assert claimed(folder)
    assert kinds(folder / "ledger.db") == ["GENESIS"] * 2 + ["RESERVE"] * 2
    with closing(Ledger(folder / "ledger.db")) as ledger:
        accounts = ledger.books.accounts
        assert list(accounts) == account_names(RECORD, plan(RECORD)) == ["digits/client-000000", "digits/client-000001"]
        assert {name: account.terms for name, account in accounts.items()} == {
            name: [terms] for name, terms in terms_of(RECORD, plan(RECORD)).items()
        }
    assert claimed(folder, is_resumed=True)
    assert kinds(folder / "ledger.db") == ["GENESIS"] * 2 + ["RESERVE"] * 2


def test_the_budget_is_what_the_run_needs_unless_the_scenario_names_one():
    """Without a lifetime budget the first run may spend what it reserved, and nothing is left for another."""
    (need,) = {terms.budget for terms in terms_of(RECORD, plan(RECORD)).values()}
    assert need == plan(RECORD).epsilon_reserved
    named = scenario('unit = "record", noise_multiplier = 2.0, budget = 50.0')
    assert {terms.budget for terms in terms_of(named, plan(named)).values()} == {50.0}


def test_admissions_foresee_what_a_claim_reserves(folder):
    """What `discreet plan --ledger` says of each account is what the run then gets; asking writes nothing."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        before = kinds(folder / "ledger.db")
        larger = scenario('unit = "record", noise_multiplier = 2.0, budget = 3.5', "run.rounds=9")
        foreseen = run_ledger.admissions(ledger.books, larger, plan(larger, "s"))
        assert kinds(folder / "ledger.db") == before
        assert claimed(folder, larger, run="s")
        got = [account.runs["s"].admitted for account in ledger.books.accounts.values()]
    assert [answer.participations for answer in foreseen] == got
    assert [answer.gate for answer in foreseen] == ["filter"] * 2
    assert 0 < got[0] < 11  # nine rounds and two spares were wanted


def test_the_end_closes_the_run(folder):
    """Nothing was trained: both accounts are closed with nothing charged, once."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    for _ in range(2):
        run_ledger.end(folder, plan(RECORD))
        assert kinds(folder / "ledger.db") == ["GENESIS"] * 2 + ["RESERVE"] * 2 + ["COMMIT"] * 2


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_the_ledger_looked_like_is_remembered(folder):
    """After the claim and after the end, the folder holds the newest checkpoint."""
    run_ledger.attach(folder, None, RECORD)
    for act in (lambda: claimed(folder), lambda: run_ledger.end(folder, plan(RECORD))):
        act()
        with closing(Ledger(folder / "ledger.db")) as ledger:
            assert (folder / "ledger.note").read_text() == ledger.checkpoint


def test_another_ledger_in_its_place_is_refused(folder):
    """Its checkpoints are signed with another key."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    for path in folder.glob("ledger.db*"):
        path.unlink()
    run_ledger.attach(folder, None, RECORD)
    with pytest.raises(LedgerError, match="the checkpoint seen before is not of this ledger"):
        claimed(folder, is_resumed=True)


def test_a_resume_without_what_was_seen_is_refused(folder):
    """A run that had begun and does not know what its ledger looked like cannot tell a copy from it."""
    run_ledger.attach(folder, None, RECORD)
    claimed(folder)
    (folder / "ledger.note").unlink()
    (folder / "checkpoint").mkdir()
    with pytest.raises(LedgerError, match="expected what the ledger looked like, got no file"):
        claimed(folder, is_resumed=True)


def test_a_run_that_died_before_its_claim_resumes(folder):
    """No checkpoint of the run and none of the ledger: nothing was trained, and the claim is made now."""
    run_ledger.attach(folder, None, RECORD)
    assert claimed(folder, is_resumed=True)
    assert kinds(folder / "ledger.db") == ["GENESIS"] * 2 + ["RESERVE"] * 2
