"""What is set up for an audit: the scenario's mechanism, on canaries and synthetic rows."""

from fractions import Fraction

import numpy as np
import pytest

from common.canaries import IDLE, MARK
from common.config import Scenario, dump, parse
from common.errors import BadInputError, ModelRefusedError
from simulations.audit.evidence import coordinates
from simulations.audit.staging import ROUNDS, ROWS, _length, _units, stage
from simulations.partition import split
from simulations.single_plan import plan_of

DIGITS = """
run = {name = "digits", rounds = 200}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 72, local_steps = 1, learning_rate = 0.7, optimizer = "adam"}
server = {optimizer = "momentum", ema_decay = 0.9, spare_rounds = 5}
privacy = {epsilon = 8.0, metrics = "noisy"}
engine = {kind = "sequential"}
"""
CLIENT = DIGITS.replace('epsilon = 8.0, metrics = "noisy"', 'unit = "client", epsilon = 8.0, delta = 0.001').replace(
    "spare_rounds = 5", "cohort = 4"
)


def weights_pulled(scenario: Scenario, set_up) -> list[list[int | None]]:
    """For each client the weight that each of its rows pulls at, IDLE, or None for a record."""
    flat = set_up.dataset.train.features_ND.reshape(len(set_up.dataset.train), -1)
    return [[int(row[1]) if row[0] == MARK else None for row in flat[rows]] for rows in split(scenario, set_up.dataset)]


def test_an_audit_keeps_what_changes_privacy():
    """Sampling rate, steps of a round, bound, unit, model and engine are the scenario's; noise is planned for it."""
    scenario = parse(DIGITS)
    set_up = stage(scenario, canaries=1_000)
    event = plan_of(set_up.scenario, records=set_up.records).accounts[0].event
    assert (event.sampling_rate, event.steps, event.unit) == (Fraction(72, 143), 1, "record")
    assert (set_up.scenario.model, set_up.scenario.engine) == (scenario.model, scenario.engine)
    assert set_up.scenario.privacy.max_grad_norm == scenario.privacy.max_grad_norm
    assert (set_up.scenario.privacy.epsilon, set_up.rounds) == (8.0, 200)
    assert parse(dump(set_up.scenario)) == set_up.scenario, "workers read it as a file"


def test_what_is_computed_from_noised_sums_hides_nothing():
    """Plain SGD at clients and server, no average, no spare round, no noised count that would be charged too."""
    changed = stage(parse(DIGITS), canaries=100).scenario
    assert (changed.training.optimizer, changed.server.optimizer, changed.server.ema_decay) == ("sgd", "sgd", 0.0)
    assert (changed.server.spare_rounds, changed.privacy.metrics) == (0, "none")


def test_each_client_has_all_canaries_and_only_the_second_has_records():
    """Two clients, 50 canaries each; those whose coin fell the other way are idle rows, and so the number is public."""
    set_up = stage(parse(DIGITS), canaries=100)
    quiet, other = weights_pulled(set_up.scenario, set_up)
    assert len(quiet) == len(other) == set_up.records[0] == 143  # the fewest of which 72/143 is a whole number
    for client, pulled in enumerate((quiet, other)):
        assert sorted(w for w in pulled if w is not None and w >= 0) == np.flatnonzero(set_up.is_in_KM[client]).tolist()
    assert None not in quiet
    assert quiet.count(IDLE) == 143 - int(set_up.is_in_KM[0].sum())
    assert other.count(None) == 143 - 50
    assert set_up.quiet == (0,)


def test_the_coins_are_fair_and_drawn_anew():
    """Of 1,000 coins 500 are expected; more than 6 standard deviations (15.8) off has probability 2e-9."""
    first, second = (stage(parse(DIGITS), canaries=1_000).is_in_KM for _ in range(2))
    assert abs(int(first.sum()) - 500) < 95
    assert (first != second).any()


def test_without_privacy_there_is_nothing_but_the_rows():
    """The batch is the scenario's share of the records, and no plan is needed."""
    none = parse(DIGITS.replace('epsilon = 8.0, metrics = "noisy"', 'unit = "none"'))
    set_up = stage(none, canaries=100)
    assert (set_up.scenario.training.batch_size, set_up.records) == (72, (143, 143))
    assert plan_of(set_up.scenario, records=set_up.records).accounts == ()


def test_under_unit_client_each_client_is_a_canary():
    """All rows of a client pull at one weight, its own, or none of them does."""
    set_up = stage(parse(CLIENT), canaries=20)
    pulled = weights_pulled(set_up.scenario, set_up)
    assert pulled == [[client if set_up.is_in_KM[0, client] else IDLE] * 4 for client in range(20)]
    assert (set_up.scenario.server.cohort, set_up.scenario.data.clients) == (8, 20)
    assert set_up.is_in_KM.shape == (1, 20)


def test_a_person_is_a_canary_with_all_its_rows():
    """Two rows each, at the same weight; the split keeps them with one client."""
    text = DIGITS.replace('dataset = "digits", clients = 10', 'dataset = "mnist", clients = 3').replace(
        "epsilon = 8.0", 'unit_column = "writer", epsilon = 8.0'
    )
    set_up = stage(parse(text), canaries=20)
    train = set_up.dataset.train
    for rows in split(set_up.scenario, set_up.dataset):
        assert len(rows) == 2 * set_up.records[0]
        for person in np.unique(train.units_N[rows]):
            own = train.features_ND[train.units_N == person].reshape(2, -1)
            assert (own[0, 0] == MARK) == (own[1, 0] == MARK)
            assert own[0, 0] != MARK or own[0, 1] == own[1, 1]


def test_the_units_suit_the_rate_where_they_can():
    """143 divides 572; of 5,999 there would be ten times as many as needed, so that the rate is rounded instead."""
    assert _units(Fraction(72, 143), 560) == 572
    assert _units(Fraction(64, 5999), 560) == 560
    assert _units(Fraction(1), 560) == 560


def test_a_long_run_is_cut_short():
    """Rows trained on stay within what takes seconds, and at least two rounds are attacked."""
    assert _length(1, 10_000, orders=2, rows=10) == (1, ROUNDS)
    assert _length(1, 10_000, orders=2, rows=1_000) == (1, ROWS // 2_000)
    assert _length(10**6, 100, orders=2, rows=10) == (1_250, 2)
    assert _length(5, 1, orders=2, rows=10) == (5, 2)


def test_a_model_that_mixes_records_is_refused_by_its_layer():
    """Batch normalisation, without privacy since a private scenario cannot have it."""
    text = DIGITS.replace("dense = 8", 'dense = 8, normalization = "batch"').replace(
        'epsilon = 8.0, metrics = "noisy"', 'unit = "none"'
    )
    with pytest.raises(ModelRefusedError, match=r"layer features\.1 \(BatchNorm2d\) mixes the records"):
        stage(parse(text), canaries=100)


def test_records_of_one_number_have_no_room_for_a_canary():
    """A canary needs two numbers; the layer that would read it is named."""
    text = """
run = {name = "one", rounds = 2}
training = {batch_size = 10, local_steps = 1}
privacy = {epsilon = 8.0}
[data]
dataset = "csv"
path = "x.csv"
clients = 2
records = 100
[data.table]
label = "sick"
classes = ["no", "yes"]
columns = [{name = "age", center = 50, scale = 10}]
"""
    with pytest.raises(ModelRefusedError, match=r"layer layers\.0 reads records of a single number"):
        stage(parse(text), canaries=100)


def test_a_batch_larger_than_a_client_is_refused_as_in_a_plan():
    """The rate would be above 1."""
    with pytest.raises(BadInputError, match="expected at most the 143 units of the smallest client, got 144"):
        stage(parse(DIGITS.replace("batch_size = 72", "batch_size = 144")), canaries=100)


def test_a_scenario_that_has_a_pad_already_is_given_the_audits():
    """The pad of a live audit makes room for that of this one."""
    with_pad = parse(DIGITS + "audit = {canaries = 3}\n")
    assert stage(with_pad, canaries=100).scenario.audit.canaries == 50


def test_the_pads_weights_are_all_kept_and_of_others_some():
    """The pad's coordinates are the last of the flat weights."""
    set_up = stage(parse(DIGITS), canaries=100)
    where = coordinates(set_up.scenario)
    assert where.kept_D[where.pad].tolist() == list(range(where.size - 50, where.size))
    assert where.body["features.0.bias"] == slice(36, 40)
    assert len(where.kept_D) == where.pad.stop
