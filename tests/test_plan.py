"""The plan: what a run will spend, decided from declared sizes before any record is read."""

import dataclasses
import json
from fractions import Fraction

import pytest

from common.config import Training, parse
from common.errors import PlanRefusedError, ScenarioError
from common.messages import Mechanism
from common.privacy import accounting
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian
from common.privacy.plan import Account, Plan, local_steps, make_plan
from common.privacy.plan_file import from_json_text, to_json

SCENARIO = """
run = {name = "x", rounds = 5}
data = {dataset = "digits", clients = 4}
training = {batch_size = 30, local_steps = 2}
server = {spare_rounds = 1}
privacy = {noise_multiplier = 2.0}
"""
CALIBRATED = ("privacy.noise_multiplier=", "privacy.epsilon=2.0")
CLIENT = ("privacy.unit=client", "data.clients=20", "server.cohort=5", "privacy.delta=1e-3")
NO_PRIVACY = ("privacy.unit=none", "privacy.noise_multiplier=")


def plan_of(*overrides: str, records=(300,) * 4) -> Plan:
    """The plan of the scenario above, with overrides."""
    return make_plan(parse(SCENARIO, overrides=overrides), records=records, run="r")


def test_a_silo_is_planned_from_its_declared_size():
    """Rate, steps and participations follow from the scenario and the number of records alone."""
    (account,) = plan_of().accounts
    assert account.records == 300
    assert account.members == 4
    assert account.event == SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(1, 10), steps=2)  # 30/300
    assert account.participations == 5  # every round
    assert account.reserved == 6  # and one spare


def test_the_sampling_rate_is_the_exact_fraction():
    """The rate is batch / records as a fraction, which no float is: 30/299 stays 30/299."""
    plan = plan_of(records=(299, 300, 301, 302))
    rates = [plan.account(client).event.sampling_rate for client in range(4)]
    assert rates == [Fraction(30, 299), Fraction(1, 10), Fraction(30, 301), Fraction(15, 151)]


def test_epsilon_is_that_of_all_participations():
    """The planned figure composes 5 rounds of 2 steps, the reserved figure 6 rounds of 2 steps."""
    (account,) = plan_of().accounts
    for spent, steps in ((account.epsilon, 10), (account.epsilon_reserved, 12)):
        event = SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(1, 10), steps=steps)
        assert spent == epsilon((event,), delta=1e-5)
    assert account.epsilon < account.epsilon_reserved


def test_without_spare_rounds_both_figures_are_equal():
    """What is reserved beyond the plan is the spare rounds and nothing else."""
    (account,) = plan_of("server.spare_rounds=0").accounts
    assert account.reserved == account.participations == 5
    assert account.epsilon_reserved == account.epsilon


@pytest.mark.parametrize("overrides", [CALIBRATED, (*CALIBRATED, *CLIENT)], ids=["record", "client"])
def test_calibrated_noise_keeps_every_account_within_epsilon(overrides):
    """Spares included, no account spends more than the scenario's epsilon, and the largest nearly all of it."""
    plan = plan_of(*overrides, records=(300, 300, 450, 450))
    assert all(account.epsilon_reserved <= 2.0 for account in plan.accounts)
    assert plan.epsilon_reserved >= 0.998 * 2.0
    assert plan.epsilon < plan.epsilon_reserved


def test_a_larger_client_needs_less_noise():
    """The same epsilon costs a client with more records less noise, its rate being lower."""
    plan = plan_of(*CALIBRATED, records=(300, 300, 450, 450))
    assert plan.account(0).event.noise_multiplier > plan.account(3).event.noise_multiplier


def test_equal_sizes_share_an_account_and_distinct_sizes_do_not():
    """Accounts are alike where sizes are; each client finds its own."""
    plan = plan_of(records=(400, 300, 400, 500))
    assert [(account.records, account.members) for account in plan.accounts] == [(300, 1), (400, 2), (500, 1)]
    assert plan.account_of == (1, 0, 1, 2)
    assert [plan.account(client).records for client in range(4)] == [400, 300, 400, 500]
    assert plan.records == (400, 300, 400, 500)


def test_the_plan_reports_its_largest_epsilon():
    """The run's figure is that of the client that spends most: the one with the fewest records."""
    plan = plan_of(records=(300, 450, 450, 450))
    assert plan.epsilon == plan.account(0).epsilon == max(account.epsilon for account in plan.accounts)
    assert plan.epsilon_reserved == plan.account(0).epsilon_reserved


def test_a_bounded_client_is_charged_for_its_own_rounds_only():
    """With half of the clients in each of 5 rounds, a client is planned for ceil(5 x 2 / 4) = 3 of them."""
    (account,) = plan_of("server.cohort=2").accounts
    assert (account.participations, account.reserved) == (3, 4)


def test_local_epochs_become_steps():
    """An epoch is ceil(records / batch) steps, so that a client of another size takes another number of them."""
    plan = plan_of("training.local_steps=", "training.local_epochs=2", records=(300, 301, 300, 300))
    assert plan.account(0).event.steps == 20  # 2 x 300/30
    assert plan.account(1).event.steps == 22  # 2 x ceil(301/30) = 2 x 11


@pytest.mark.parametrize(
    ("training", "records", "steps"),
    [
        (Training(batch_size=30, local_steps=7), 10**6, 7),  # steps do not depend on the size
        (Training(batch_size=30, local_epochs=1), 30, 1),
        (Training(batch_size=30, local_epochs=1), 31, 2),
        (Training(batch_size=30, local_epochs=3), 1, 3),  # a client smaller than a batch has one step an epoch
        (Training(batch_size=30), 60, 2),  # one epoch
    ],
)
def test_the_length_of_a_round_is_a_whole_number_of_steps(training, records, steps):
    """Steps are as given, or epochs of ceil(records / batch) steps."""
    assert local_steps(training, records=records) == steps


def test_a_population_is_charged_once_a_round_at_the_rate_of_the_cohort():
    """With unit client there is one account, one step a round, and q = cohort / clients, whoever takes part."""
    plan = plan_of(*CLIENT, records=(70,) * 20)
    (account,) = plan.accounts
    assert account.event == SampledGaussian(
        noise_multiplier=2.0, sampling_rate=Fraction(1, 4), steps=1, unit="client"
    )  # 5 of 20
    assert (account.records, account.members) == (20, 1)
    assert (account.participations, account.reserved) == (5, 6)  # rounds, and one spare
    assert plan.account_of == (0,) * 20
    assert account.epsilon == epsilon((account.event.times(5),), delta=1e-3)


def test_a_population_is_charged_whatever_the_participation_bound():
    """The bound on participations lowers no charge under unit client: everybody is charged every round."""
    (account,) = plan_of(*CLIENT, "server.max_participations=1", records=(70,) * 20).accounts
    assert account.participations == 5


PERSONS = ("data.dataset=mnist", "privacy.unit_column=writer")
METRICS = ("privacy.metrics=noisy", "privacy.metrics_noise_multiplier=9.0")


def test_persons_are_planned_like_records_and_named_in_the_event():
    """The rate is the batch's expected persons over all persons, an epoch is of persons, and the event says so."""
    plan = plan_of(*PERSONS, "training.local_steps=", "training.local_epochs=1", records=(134,) * 4)
    (account,) = plan.accounts
    # 30/134 = 15/67, and ceil(134/30) = 5 steps
    assert account.event == SampledGaussian(
        noise_multiplier=2.0, sampling_rate=Fraction(15, 67), steps=5, unit="person"
    )
    assert (account.records, plan.records, plan.unit) == (134, (134,) * 4, "record")
    assert plan.mechanism(0) == Mechanism(
        sampling_rate=Fraction(15, 67), noise_multiplier=2.0, max_grad_norm=1.0, steps=5
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "training.batch_size=135",
            "training.batch_size: expected at most the 134 persons of the smallest client, got",
        ),
        ("privacy.delta=8e-3", "privacy.delta: expected at most 1/134 = 0.00746 for 134 persons, got 0.008"),
    ],
)
def test_refusals_speak_of_persons(override, words):
    """Where persons are the unit, a plan that is refused counts persons."""
    with pytest.raises(ScenarioError) as refusal:
        plan_of(*PERSONS, override, records=(134,) * 4)
    assert str(refusal.value).startswith(words)


def test_metrics_are_an_event_of_their_own():
    """Each participation is charged for its steps and for one count: a plain Gaussian of sensitivity 1."""
    plan = plan_of(*METRICS)
    (account,) = plan.accounts
    count = SampledGaussian(noise_multiplier=9.0, sampling_rate=Fraction(1), steps=1)
    assert account.events == (account.event, count)
    assert account.history(6) == (account.event.times(6), count.times(6))
    assert [plan.metrics_noise_multiplier(client) for client in range(4)] == [9.0] * 4
    assert account.event == plan_of().accounts[0].event


def test_a_count_of_persons_protects_persons():
    """The unit of the count is that of the training."""
    plan = plan_of(*PERSONS, *METRICS, records=(134,) * 4)
    assert [event.unit for event in plan.accounts[0].events] == ["person", "person"]


def test_without_metrics_no_count_is_planned():
    """By default a participation is its training alone, under every unit."""
    (account,) = plan_of().accounts
    assert account.metrics_event is None
    assert account.events == (account.event,)
    for plan in (plan_of(), plan_of(*CLIENT, records=(70,) * 20), plan_of(*NO_PRIVACY)):
        assert plan.metrics_noise_multiplier(0) is None


def test_epsilon_is_that_of_training_and_metrics_together():
    """Both figures compose both events, and are above those of the training alone."""
    (account,), (alone,) = plan_of(*METRICS).accounts, plan_of().accounts
    for spent, without, times in (
        (account.epsilon, alone.epsilon, 5),
        (account.epsilon_reserved, alone.epsilon_reserved, 6),
    ):
        training = SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(1, 10), steps=2 * times)
        count = SampledGaussian(noise_multiplier=9.0, sampling_rate=Fraction(1), steps=times)
        assert spent == epsilon((training, count), delta=1e-5)
        assert spent > without


def test_calibration_leaves_room_for_the_metrics():
    """With metrics the training gets more noise, so that both together keep to epsilon and use nearly all of it."""
    plan, alone = plan_of(*CALIBRATED, *METRICS), plan_of(*CALIBRATED)
    assert 0.998 * 2.0 <= plan.epsilon_reserved <= 2.0
    assert plan.account(0).event.noise_multiplier > alone.account(0).event.noise_multiplier
    assert accounting.check(plan.account(0).history(6), delta=1e-5).pld <= 2.0


def test_metrics_that_leave_nothing_to_train_with_are_refused():
    """Six counts at noise 1 alone spend more than 2: both figures, and what to do."""
    words = (
        r"^The metrics of 6 rounds alone need epsilon 1\d\.\d+ and privacy\.epsilon is 2\.000\. Raise privacy\.metri"
    )
    with pytest.raises(PlanRefusedError, match=words):
        plan_of(*CALIBRATED, "privacy.metrics=noisy", "privacy.metrics_noise_multiplier=1.0")


def test_without_privacy_nothing_is_planned():
    """Unit none has no accounts, no epsilon and no mechanism."""
    plan = plan_of(*NO_PRIVACY)
    assert plan.accounts == ()
    assert plan.epsilon is None
    assert plan.epsilon_reserved is None
    assert plan.mechanism(0) is None


def test_the_mechanism_is_that_of_the_account():
    """What a client is ordered to do is what its account was planned for."""
    plan = plan_of("privacy.max_grad_norm=0.5", records=(300, 450, 450, 450))
    assert plan.mechanism(1) == Mechanism(
        sampling_rate=Fraction(1, 15), noise_multiplier=2.0, max_grad_norm=0.5, steps=2
    )  # 30/450


def test_a_client_has_no_mechanism_where_the_server_adds_the_noise():
    """With unit client the client itself adds nothing."""
    assert plan_of(*CLIENT, records=(70,) * 20).mechanism(3) is None


@pytest.mark.parametrize(
    ("overrides", "records", "words"),
    [
        (("privacy.delta=4e-3",), (300,) * 4, r"expected at most 1/300 = 0\.00333 for 300 records, got 0\.004"),
        (("privacy.delta=3e-3",), (300, 300, 300, 400), r"expected at most 1/400 = 0\.0025 for 400 records"),
        ((*CLIENT, "privacy.delta=0.06"), (70,) * 20, r"expected at most 1/20 = 0\.05 for 20 clients, got 0\.06"),
    ],
)
def test_a_delta_above_one_in_n_is_refused(overrides, records, words):
    """A delta at which whole records may be given away is refused for the largest account, with a usual one."""
    with pytest.raises(ScenarioError, match=rf"^privacy\.delta: {words}.* A delta of .* is usual\.$"):
        plan_of(*overrides, records=records)


def test_a_delta_of_one_in_n_is_accepted():
    """The bound itself is allowed: delta 1/250 for 250 records."""
    assert plan_of("privacy.delta=0.004", records=(250,) * 4).delta == 0.004


def test_a_batch_larger_than_a_client_is_refused():
    """A sampling rate above 1 does not exist: the smallest client decides."""
    with pytest.raises(ScenarioError, match=r"^training\.batch_size: expected at most the 29 records .*, got 30\. Lo"):
        plan_of(records=(300, 29, 300, 300))


def test_a_batch_of_all_records_is_accepted():
    """A rate of exactly 1 is the plain Gaussian mechanism."""
    assert plan_of(records=(30,) * 4).account(0).event.sampling_rate == 1


@pytest.mark.parametrize("overrides", [CLIENT, NO_PRIVACY], ids=["client", "none"])
def test_a_batch_larger_than_a_client_matters_to_record_privacy_only(overrides):
    """Where batches are not sampled for privacy, a client may be smaller than a batch."""
    assert plan_of(*overrides, records=(3,) * 20).records == (3,) * 20


def test_a_plan_over_budget_is_refused():
    """Spares included, a plan that needs more than the budget is refused with both figures and what to do."""
    needed = plan_of().epsilon_reserved
    with pytest.raises(PlanRefusedError) as refusal:
        plan_of(f"privacy.budget={needed - 0.001}")
    assert str(refusal.value).startswith(
        f"The plan needs epsilon {needed:.3f} and the budget is {needed - 0.001:.3f}. Lower run.rounds"
    )


def test_a_plan_that_only_the_spares_push_over_budget_is_refused():
    """It is the reserved figure that is compared with the budget, not the planned one."""
    plan = plan_of()
    with pytest.raises(PlanRefusedError):
        plan_of(f"privacy.budget={(plan.epsilon + plan.epsilon_reserved) / 2}")


def test_a_plan_of_exactly_the_budget_is_accepted():
    """The budget may be used up to its last digit."""
    needed = plan_of().epsilon_reserved
    assert plan_of(f"privacy.budget={needed!r}").epsilon_reserved == needed


def test_a_plan_cannot_be_changed():
    """A plan and its accounts are frozen."""
    plan = plan_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.delta = 1e-3
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.accounts[0].reserved = 1000


@pytest.mark.parametrize(
    ("overrides", "records"),
    [
        ((), (299, 300, 301, 300)),
        (CLIENT, (70,) * 20),
        (NO_PRIVACY, (300,) * 4),
        ((*PERSONS, *METRICS), (134,) * 4),
    ],
    ids=["record", "client", "none", "persons and metrics"],
)
def test_a_plan_comes_back_from_its_file_equal(overrides, records):
    """`from_json_text` of `to_json` is the same plan, to the last bit of every number."""
    plan = plan_of(*overrides, records=records)
    assert from_json_text(to_json(plan)) == plan


def test_a_plan_that_was_written_before_there_were_metrics_reads():
    """A file without `metrics_event` is a plan without metrics."""
    table = json.loads(to_json(plan_of()))
    for account in table["accounts"]:
        del account["metrics_event"]
    assert from_json_text(json.dumps(table)) == plan_of()


def test_the_plan_names_the_precision():
    """Half precision is the scenario's choice, and whoever reads the plan sees it."""
    plan = plan_of("training.precision=bf16")
    assert json.loads(to_json(plan))["precision"] == plan.precision == "bf16"
    assert from_json_text(to_json(plan)) == plan


def test_a_plan_that_was_written_before_there_was_a_precision_reads():
    """A file without `precision` is a plan in single precision."""
    table = json.loads(to_json(plan_of()))
    del table["precision"]
    assert from_json_text(json.dumps(table)) == plan_of()


def test_the_file_says_what_a_reader_looks_for():
    """The plan's file holds both figures and the adjacency, so that nobody has to recompute them."""
    plan = plan_of()
    table = json.loads(to_json(plan))
    assert (table["epsilon"], table["epsilon_reserved"]) == (plan.epsilon, plan.epsilon_reserved)
    assert (table["unit"], table["adjacency"], table["delta"]) == ("record", "zero-out", 1e-5)


def with_change(path, value):
    """The text of a plan in which one value is another."""
    table = json.loads(to_json(plan_of()))
    place = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(table)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"run": "r"', '{"accounts": []}'])
def test_what_is_no_plan_is_refused(text):
    """A file that holds something else, or half of a plan, raises one of the errors that `from_json_text` names."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json_text(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["accounts"], 3),
        (["accounts"], ["x"]),
        (["accounts", 0], {}),
        (["accounts", 0, "surprise"], 1),
        (["accounts", 0, "event", "mechanism"], "laplace"),
        (["accounts", 0, "event", "steps"], 0),
        (["accounts", 0, "event", "noise_multiplier"], "nan"),
        (["accounts", 0, "metrics_event"], 3),
        (["accounts", 0, "metrics_event"], {}),
        (["account_of"], None),
        (["records"], 7),
    ],
    ids=str,
)
def test_a_broken_plan_is_refused(path, value):
    """One wrong value raises one of the errors that `from_json_text` names."""
    text = with_change(path, value)
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json_text(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["accounts", 0, "event", "sampling_rate"], "1/0"),
        (["accounts", 0, "event", "steps"], 10**400),
        (["accounts", 0, "event"], []),
    ],
    ids=["rate 1/0", "steps 1e400", "event is a list"],
)
def test_a_plan_with_a_nonsensical_event_is_refused(path, value):
    """An event that is none raises one of the errors that `from_json_text` names too, no stray one."""
    text = with_change(path, value)
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json_text(text)


def test_an_account_is_found_by_position():
    """`account` follows `account_of`, also where clients are not in the order of sizes."""
    event = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=1)
    small, large = (
        Account(records=n, members=1, event=event, participations=1, reserved=1, epsilon=e, epsilon_reserved=e)
        for n, e in ((10, 3.0), (20, 1.0))
    )
    plan = Plan(
        run="r",
        unit="record",
        delta=1e-5,
        max_grad_norm=1.0,
        records=(20, 10),
        accounts=(small, large),
        account_of=(1, 0),
    )
    assert plan.account(0) is large
    assert plan.account(1) is small
    assert plan.epsilon == 3.0
