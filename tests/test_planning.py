"""What `discreet plan` foretells: what a ledger would admit, who runs out when, what else could be planned."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from common.config import Scenario, parse
from common.errors import BadInputError, PlanRefusedError
from common.ledger import Charge, Ledger, Share
from common.privacy.accounting import epsilon
from common.privacy.accounts import account_names, client_account, terms_of
from common.transparency import export
from server.observer import Observer, RoundRecord
from simulations import planning, single_run, tradeoff
from simulations.single_plan import plan_of

ROOT = Path(__file__).resolve().parents[1]


def scenario(*overrides: str) -> Scenario:
    """Return four clients with 359 digits each, three of them a round, and a budget of 3.2."""
    text = """
    run = {name = "small", rounds = 5, seed = 3}
    data = {dataset = "digits", clients = 4}
    model = {name = "cnn", channels = [4, 4, 4], dense = 8}
    training = {batch_size = 36, local_steps = 1}
    server = {cohort = 3, spare_rounds = 0}
    privacy = {noise_multiplier = 1.0, budget = 3.2}
    engine = {kind = "sequential"}
    """
    return parse(text, overrides=overrides)


def planned(given: Scenario, ledger: Path) -> dict[str, Any]:
    """Return what `plan --ledger` says."""
    return planning.report(given, check=False, ledger=ledger)


def spend(ledger: Path, given: Scenario, *, participations: int, clients: Sequence[int] = range(4)) -> None:
    """Charge a whole run to the accounts of some clients, without training; the ledger is made where it is missing."""
    plan = plan_of(given)
    terms, events = terms_of(given, plan), plan.accounts[0].events
    names = [name for client, name in enumerate(account_names(given, plan)) if client in clients]
    with closing(Ledger(ledger) if ledger.exists() else Ledger.create(ledger)) as opened:
        opened.open_accounts(terms)
        opened.begin_run(plan.run, {name: Share(events=events, wanted=participations) for name in names})
        for number in range(1, participations + 1):
            charges = [Charge(account=name, run=plan.run, round=number, attempt=1, events=events) for name in names]
            assert opened.reserve(charges) == [None] * len(names)
            opened.settle(charges)
        opened.end_run(plan.run)


def uneven(ledger: Path, given: Scenario) -> None:
    """Charge client 2 once more often than the others."""
    spend(ledger, given, participations=3, clients=(0, 1, 3))
    spend(ledger, given, participations=4, clients=(2,))


def test_a_client_runs_out_in_the_round_that_asks_once_too_often():
    """All four take part in each of six rounds: whoever may train four times refuses in the fifth."""
    given = scenario("run.rounds=6", "server.cohort=4")
    assert planning.exhaustion(given, [6, 4, 9, 5]) == planning.Exhaustion(
        runs_out=((1, 5), (3, 6)), last_possible_round=6
    )


def test_a_run_ends_before_the_round_in_which_all_are_out():
    """With twice each, all four refuse in round 3, so that round 2 is the last; with none at all there is no round."""
    given = scenario("run.rounds=6", "server.cohort=4")
    all_out = planning.exhaustion(given, [2, 2, 2, 2])
    assert all_out.runs_out == ((0, 3), (1, 3), (2, 3), (3, 3))
    assert all_out.last_possible_round == 2
    assert planning.exhaustion(given, [0, 0, 0, 0]).last_possible_round == 0


def test_a_run_ends_before_the_round_in_which_too_few_are_left():
    """When four replies are demanded, the first client that is out ends the run."""
    given = scenario("run.rounds=6", "server.cohort=4", "server.min_replies=4")
    assert planning.exhaustion(given, [6, 4, 9, 5]).last_possible_round == 4


def test_a_client_that_is_left_out_of_a_round_runs_out_later():
    """Three of four a round: after four rounds each was asked three times, so nobody's third time comes later."""
    given = scenario("run.rounds=4")
    assert planning.exhaustion(given, [3, 3, 3, 3]).runs_out == ()
    rounds = [number for _, number in planning.exhaustion(given, [2, 2, 2, 2]).runs_out]
    assert len(rounds) == 4
    assert set(rounds) <= {3, 4}


def test_the_clients_of_a_population_run_out_together():
    """For unit client everybody is charged each round: with two of five admitted, round 3 is not begun."""
    given = scenario("privacy.unit=client", "privacy.delta=1e-4")
    assert planning.exhaustion(given, [2]) == planning.Exhaustion(
        runs_out=((0, 3), (1, 3), (2, 3), (3, 3)), last_possible_round=2
    )
    assert planning.exhaustion(given, [5]).runs_out == ()


def test_a_ledger_that_is_not_there_is_a_fresh_one(tmp_path):
    """Nothing was spent before, all is admitted, PLD decides, and no file is made."""
    table = planned(scenario(), tmp_path / "none.db")["ledger"]
    assert table["is_fresh"]
    assert [account["admitted"] for account in table["accounts"]] == [4, 4, 4, 4]
    assert {account["gate"] for account in table["accounts"]} == {"pld"}
    assert {account["epsilon_before"] for account in table["accounts"]} == {0.0}
    assert (table["runs_out"], table["first_refusal_round"], table["last_possible_round"]) == ([], None, 5)
    assert not list(tmp_path.iterdir())


def test_a_ledger_without_an_entry_counts_as_fresh(tmp_path):
    """`discreet ledger new` makes one; it has no checkpoint yet, and nothing was spent."""
    Ledger.create(tmp_path / "new.db").close()
    table = planned(scenario(), tmp_path / "new.db")["ledger"]
    assert [account["runs_before"] for account in table["accounts"]] == [0, 0, 0, 0]


def test_what_was_spent_before_is_counted_by_both_figures(tmp_path):
    """Four participations before: their epsilon by PLD, more by the filter; the figures after hold what is admitted."""
    ledger, given = tmp_path / "owners.db", scenario()
    spend(ledger, given, participations=4)
    account = planned(given, ledger)["ledger"]["accounts"][0]
    event = plan_of(given).accounts[0].event
    assert account["epsilon_before"] == epsilon((event.times(4),), delta=1e-5)
    assert account["filter_epsilon_before"] > account["epsilon_before"]
    assert account["gate"] == "filter"
    assert account["epsilon_after"] == epsilon((event.times(4 + account["admitted"]),), delta=1e-5)
    assert account["filter_epsilon_before"] < account["filter_epsilon_after"] <= 3.2


def test_a_plan_reads_a_ledger_without_its_private_key(tmp_path):
    """Neither the ledger's file nor an export of it needs the key, and both say the same."""
    ledger, given = tmp_path / "owners.db", scenario()
    spend(ledger, given, participations=1)
    export.write(ledger, tmp_path / "owners.jsonl")
    (tmp_path / "owners.db.key").unlink()
    of_file, of_export = planned(given, ledger)["ledger"], planned(given, tmp_path / "owners.jsonl")["ledger"]
    assert of_file["accounts"] == of_export["accounts"]


def test_a_ledger_of_another_split_is_refused(tmp_path):
    """With another seed the records lie elsewhere: what an account spent says nothing about them."""
    ledger = tmp_path / "owners.db"
    spend(ledger, scenario(), participations=1)
    with pytest.raises(PlanRefusedError, match="two accounts"):
        planned(scenario("run.seed=4"), ledger)


def test_nothing_is_asked_of_a_plan_without_privacy(tmp_path):
    """Unit none spends nothing: a ledger, trials and trade-offs of it are bad input."""
    given = scenario("privacy.unit=none", "privacy.noise_multiplier=", "privacy.budget=")
    for options in ({"ledger": tmp_path / "none.db"}, {"trials": 2}, {"trade_off": True}):
        with pytest.raises(BadInputError):
            planning.report(given, check=False, **options)


def test_who_runs_out_is_said_in_words(tmp_path, capsys):
    """A plan that the ledger does not admit in full names the first client and its round; nothing fails."""
    ledger, given = tmp_path / "owners.db", scenario("run.rounds=8", "server.cohort=4")
    uneven(ledger, given)
    table = planned(given, ledger)
    planning.show(table)
    said = " ".join(capsys.readouterr().out.split())
    assert table["ledger"]["runs_out"][0] == {"client": 2, "round": table["ledger"]["first_refusal_round"]}
    assert f"warn ledger: Client 2 runs out in round {table['ledger']['first_refusal_round']} of 8" in said
    assert json.loads(json.dumps(table))["ledger"] == table["ledger"]


def test_a_spent_ledger_is_warned_of_before_the_first_round(tmp_path, capsys):
    """Where nobody may train once, the plan says that nothing would be trained."""
    ledger, given = tmp_path / "owners.db", scenario("run.rounds=8", "server.cohort=4")
    spend(ledger, given, participations=8)
    table = planned(given, ledger)
    planning.show(table)
    assert "refuse ledger: 4 clients run out in round 1 of 8" in " ".join(capsys.readouterr().out.split())
    assert table["ledger"]["last_possible_round"] == 0


def test_the_run_is_refused_in_the_round_that_its_plan_named(tmp_path):
    """Client 2 spent more before: it refuses first, the others a round later, and the run ends there, as was told."""
    ledger, given = tmp_path / "owners.db", scenario("run.rounds=8", "server.cohort=4")
    uneven(ledger, given)
    told = planned(given, ledger)["ledger"]
    watcher = Refusals()
    outcome = single_run.simulate(given, out=tmp_path / "run", ledger=ledger, watcher=watcher)
    assert 1 < told["first_refusal_round"] == told["last_possible_round"] < 8
    assert outcome.rounds == told["last_possible_round"]
    assert outcome.stopped is not None
    assert watcher.first == {2: told["first_refusal_round"]}  # the others refused in the round that was lost
    assert told["runs_out_count"] == 4


def test_a_population_is_refused_in_the_round_that_its_plan_named(tmp_path):
    """For unit client the coordinator's own ledger stops the run, in the round that was told."""
    ledger = tmp_path / "owners.db"
    given = scenario(
        "privacy.unit=client", "privacy.delta=1e-4", "server.cohort=2", "run.rounds=7",
        "privacy.noise_multiplier=1.5", "privacy.budget=5.4",
    )  # fmt: skip
    spend(ledger, given, participations=5)
    told = planned(given, ledger)["ledger"]
    outcome = single_run.simulate(given, out=tmp_path / "run", ledger=ledger, watcher=Observer())
    assert 1 < told["first_refusal_round"] < 7
    assert outcome.rounds == told["last_possible_round"] == told["first_refusal_round"] - 1
    assert outcome.stopped is not None


class Refusals(Observer):
    """Notes the first round that each client refused."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}

    def round_done(self, record: RoundRecord) -> None:
        """Note who refused."""
        for client, _ in record.refused:
            self.first.setdefault(client, record.round)


def test_twice_the_rounds_need_root_two_of_the_noise():
    """Without sampling n steps at noise z are one Gaussian at z / sqrt(n): twice the rounds, z times 1.414."""
    given = scenario("training.batch_size=359", "server.cohort=4", "run.rounds=8", "privacy.noise_multiplier=8.0")
    rows = {row.rounds: row for row in tradeoff.trade_off(given, plan_of(given)).rows}
    assert sorted(rows) == [4, 6, 8, 12, 16]
    assert rows[16].noise_multiplier / rows[8].noise_multiplier == pytest.approx(2**0.5, rel=0.01)


def test_the_noise_of_the_trade_off_is_enough():
    """For each number of rounds, epsilon on the fine grid is at most the target and at least 0.98 of it."""
    given = scenario("privacy.noise_multiplier=", "privacy.epsilon=2.0")
    plan = plan_of(given)
    table = tradeoff.trade_off(given, plan)
    assert table.target_epsilon == 2.0
    for row in table.rows:
        shape = plan.accounts[0].event
        event = type(shape)(
            noise_multiplier=row.noise_multiplier, sampling_rate=shape.sampling_rate, steps=row.reserved
        )
        assert 0.98 * 2.0 < epsilon((event,), delta=1e-5) <= 2.0


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    """Each line of the table is above the one before it, and falls from left to right."""
    table = tradeoff.trade_off(scenario(), plan_of(scenario()))
    assert all(list(row.epsilons) == sorted(row.epsilons, reverse=True) for row in table.rows)
    columns = list(zip(*(row.epsilons for row in table.rows), strict=True))
    assert all(list(column) == sorted(column) for column in columns)


def test_a_target_that_no_noise_reaches_is_said():
    """What is released beside the updates may spend more than the target alone."""
    assert tradeoff.enough_noise(lambda noise: 2.0 + 1 / noise, guess=1.0, target=1.9) is None


def test_as_many_trials_are_admitted_as_were_planned(tmp_path):
    """One run after the other on a ledger: the first that does not fit as a whole is the one after `admitted`."""
    given = scenario("run.rounds=4", "server.cohort=4", "server.spare_rounds=1", "privacy.budget=4.0")
    figures = tradeoff.trials(given, plan_of(given), wanted=3)
    assert figures.admitted > 1
    ledger, name = tmp_path / "owners.db", client_account(given, 0)
    for _ in range(figures.admitted):
        assert admitted(ledger, given, name) == 5
        spend(ledger, given, participations=4)
    assert admitted(ledger, given, name) < 5


def admitted(ledger: Path, given: Scenario, name: str) -> int:
    """Return how many participations of the plan one account has room for."""
    accounts = planned(given, ledger)["ledger"]["accounts"]
    return next(account["admitted"] for account in accounts if account["account"] == name)


def test_the_noise_for_several_trials_makes_room_for_them():
    """With it as many fit as were asked for; with 2 % less they do not."""
    given = scenario("run.rounds=4", "server.cohort=4", "privacy.budget=2.3")
    needed = tradeoff.trials(given, plan_of(given), wanted=5).noise_multiplier
    for noise, fits in ((needed, True), (needed * 0.98, False)):
        changed = scenario("run.rounds=4", "server.cohort=4", "privacy.budget=2.3", f"privacy.noise_multiplier={noise}")
        assert (tradeoff.trials(changed, plan_of(changed), wanted=5).admitted >= 5) is fits


def test_one_trial_is_the_plan_itself():
    """It spends what the plan says, and fits."""
    plan = plan_of(scenario())
    figures = tradeoff.trials(scenario(), plan, wanted=1)
    assert figures.epsilon == plan.epsilon
    assert figures.admitted == 1
    assert asdict(figures)["planned_noise_multiplier"] == 1.0


@pytest.mark.parametrize("suffix", tradeoff.PICTURES)
def test_the_picture_is_of_the_kind_that_was_named(tmp_path, suffix):
    """A file of each kind is written, and begins as that kind does."""
    path = tmp_path / f"plan{suffix}"
    planning.report(scenario(), check=False, plot=path)
    begins = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(begins)


def test_another_kind_of_picture_is_refused(tmp_path):
    """An unknown suffix is named, with those that are known."""
    with pytest.raises(BadInputError, match=r"\.svg, \.png, \.pdf"):
        planning.report(scenario(), check=False, plot=tmp_path / "plan.bmp")


def test_a_plan_starts_no_library_that_takes_seconds(tmp_path):
    """Without options neither torch, Flower, Opacus, pandas, matplotlib nor the ledger's cryptography is imported."""
    heavy = ("torch", "flwr", "opacus", "pandas", "matplotlib", "cryptography", "sklearn")
    code = (
        f"import sys; sys.argv = ['discreet', 'plan', {str(ROOT / 'simulations/scenarios/mnist-silos.toml')!r}]\n"
        "import discreet\n"
        "try: discreet.main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.rstrip().endswith("[]")
