"""Events: frozen facts that come back exactly as they were written."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.events import (
    FixedSizeGaussian,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    SelectedRun,
    TreeGaussian,
    ZeroConcentrated,
    adjacency_of,
    from_json,
    merged,
)

EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(256, 60000), steps=14062)

ONE_OF_EACH = (
    EVENT,
    SampledLaplace(scale=2.0, sampling_rate=Fraction(1, 10), steps=20),
    ZeroConcentrated(rho=0.1, steps=3, unit="person"),
    TreeGaussian(noise_multiplier=8.0, leaves=2048, unit="client"),
    FixedSizeGaussian(noise_multiplier=2.0, sample_size=340, source_size=3400, steps=300),
    RandomizedResponse(noise_parameter=0.5, buckets=2),
    SelectedRun(run=(EVENT, EVENT.times(2)), mean_runs=10.0, distribution="poisson"),
)
kinds = pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: event.mechanism)

any_event = st.builds(
    SampledGaussian,
    noise_multiplier=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    sampling_rate=st.fractions(0, 1, max_denominator=10**18).filter(lambda rate: rate > 0),
    steps=st.integers(1, 10**18),
    unit=st.sampled_from(["record", "person", "client"]),
)


@settings(deadline=None)
@given(event=any_event)
def test_an_event_comes_back_from_json_equal(event):
    """Every event survives JSON text exactly, its rate as a fraction and its noise to the last bit."""
    assert from_json(json.loads(json.dumps(event.to_json()))) == event


def test_an_event_is_written_without_floats():
    """Whole numbers and decimal strings only: 256/60000 is 8/1875."""
    assert EVENT.to_json() == {
        "mechanism": "poisson-gaussian",
        "noise_multiplier": "1.1",
        "sampling_rate": "8/1875",
        "steps": 14062,
        "unit": "record",
        "adjacency": "zero-out",
    }


def test_an_event_with_a_numpy_number_comes_back():
    """A noise multiplier that NumPy computed is a float like any other: what was written can be read."""
    event = SampledGaussian(noise_multiplier=np.float64(1.1), sampling_rate=Fraction(1, 2), steps=1)
    assert from_json(event.to_json()) == event


def test_an_event_cannot_be_changed():
    """A stored fact is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVENT.noise_multiplier = 0.1


def test_times_multiplies_the_steps_and_nothing_else():
    """Three times 14062 steps are 42186 steps of the same event."""
    assert EVENT.times(3) == dataclasses.replace(EVENT, steps=42186)
    assert dataclasses.replace(EVENT, unit="client").times(2).unit == "client"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a number above 0, got 0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: expected a number above 0, got -1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier: expected a number above 0, got nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier: expected a number above 0, got inf"),
        ({"steps": 0}, "steps: expected a number above 0, got 0"),
        ({"steps": -3}, "steps: expected a number above 0, got -3"),
        ({"sampling_rate": Fraction(0)}, "sampling_rate: expected a number above 0 and at most 1, got 0"),
        ({"sampling_rate": Fraction(3, 2)}, "sampling_rate: expected a number above 0 and at most 1, got 3/2"),
    ],
)
def test_an_impossible_event_is_refused(change, words):
    """No event has noise, steps or a rate out of range."""
    with pytest.raises(ValueError, match=f"^{words}$"):
        dataclasses.replace(EVENT, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "laplace"},
        {"mechanism": ["poisson-gaussian"]},
        {"adjacency": "replace-one"},
        {"unit": "household"},
        {"unit": None},
        {"steps": 1.5},
        {"steps": "3"},
        {"steps": True},
        {"steps": 0},
        {"steps": -1},
        {"steps": None},
        {"noise_multiplier": "nan"},
        {"noise_multiplier": "inf"},
        {"noise_multiplier": "-1.0"},
        {"noise_multiplier": "one"},
        {"noise_multiplier": "1.10"},
        {"noise_multiplier": 1.1},
        {"noise_multiplier": None},
        {"sampling_rate": "0"},
        {"sampling_rate": "3/2"},
        {"sampling_rate": "-1/2"},
        {"sampling_rate": "half"},
        {"sampling_rate": []},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_stored_event_that_is_not_understood_is_refused(change):
    """An unknown mechanism, unit, adjacency or field, or an impossible number, is a ValueError, never skipped."""
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        from_json(EVENT.to_json() | change)


@pytest.mark.parametrize("change", [{"sampling_rate": "1/0"}, {"steps": 10**400}], ids=["rate 1/0", "steps 1e400"])
def test_a_stored_event_with_arithmetic_nonsense_is_refused(change):
    """A rate that divides by zero and steps that no float holds are a ValueError too, no stray arithmetic error."""
    with pytest.raises(ValueError):  # noqa: PT011 - any words will do
        from_json(EVENT.to_json() | change)


@pytest.mark.parametrize("field", ["mechanism", "noise_multiplier", "sampling_rate", "steps", "unit", "adjacency"])
def test_a_stored_event_without_a_field_is_refused(field):
    """No field has a default when it is read: what is not said is not guessed."""
    stored = EVENT.to_json()
    del stored[field]
    with pytest.raises(ValueError, match=r"event: expected the fields .*, got"):
        from_json(stored)


@kinds
def test_each_kind_comes_back_from_json_equal(event):
    """Every kind of event survives JSON text exactly."""
    assert from_json(json.loads(json.dumps(event.to_json()))) == event


@kinds
def test_each_kind_is_written_without_floats(event):
    """Whole numbers, decimal strings, and lists and objects of them: no float, whatever the kind."""

    def leaves(value):
        if isinstance(value, dict | list):
            return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)]
        return [value]

    assert {type(leaf) for leaf in leaves(event.to_json())} == {str, int}


@kinds
def test_each_kind_keeps_its_fields_apart(event):
    """A missing field, a surplus one, or the other adjacency is a ValueError for every kind."""
    stored = event.to_json()
    other = "zero-out" if event.adjacency == "replace-one" else "replace-one"
    wrong = [stored | {"surprise": 1}, stored | {"adjacency": other}, stored | {"unit": "household"}]
    wrong += [{name: value for name, value in stored.items() if name != gone} for gone in stored]
    for value in wrong:
        with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
            from_json(value)


@kinds
def test_each_kind_is_repeated_by_its_steps(event):
    """Doing any event three times is the same event with three times the steps."""
    assert event.times(3) == dataclasses.replace(event, steps=3 * event.steps)


def test_what_each_kind_is_stored_as():
    """The stored form of two further kinds, field by field."""
    assert ONE_OF_EACH[4].to_json() == {
        "mechanism": "fixed-size-gaussian",
        "noise_multiplier": "2.0",
        "sample_size": 340,
        "source_size": 3400,
        "steps": 300,
        "unit": "record",
        "adjacency": "replace-one",
    }
    assert ONE_OF_EACH[5].to_json() == {
        "mechanism": "randomized-response",
        "noise_parameter": "0.5",
        "buckets": 2,
        "steps": 1,
        "unit": "record",
        "adjacency": "replace-one",
    }


@pytest.mark.parametrize(
    ("event", "change", "words"),
    [
        (ONE_OF_EACH[1], {"scale": 0.0}, "scale: expected a number above 0, got 0.0"),
        (
            ONE_OF_EACH[1],
            {"sampling_rate": Fraction(2)},
            "sampling_rate: expected a number above 0 and at most 1, got 2",
        ),
        (ONE_OF_EACH[2], {"rho": math.nan}, "rho: expected a number above 0, got nan"),
        (ONE_OF_EACH[3], {"leaves": 0}, "leaves: expected a number above 0, got 0"),
        (ONE_OF_EACH[4], {"sample_size": 3401}, "sample_size: expected at most 3400, got 3401"),
        (ONE_OF_EACH[5], {"buckets": 1}, "buckets: expected 2 or more, got 1"),
        (ONE_OF_EACH[5], {"noise_parameter": 0.0}, "noise_parameter: expected a number above 0 and at most 1, got 0.0"),
        (ONE_OF_EACH[6], {"mean_runs": 0.5}, "mean_runs: expected a number of at least 1, got 0.5"),
        (ONE_OF_EACH[6], {"run": ()}, "runs: expected a number above 0, got 0"),
        (ONE_OF_EACH[6], {"distribution": "uniform"}, "distribution: expected one of .*, got 'uniform'"),
        (ONE_OF_EACH[0], {"unit": "household"}, "unit: expected one of .*, got 'household'"),
        (ONE_OF_EACH[0], {"adjacency": "replace-one"}, "adjacency: expected zero-out for .*, got 'replace-one'"),
    ],
)
def test_an_impossible_event_of_any_kind_is_refused(event, change, words):
    """Each kind checks its own numbers and words."""
    with pytest.raises(ValueError, match=f"^{words}$"):
        dataclasses.replace(event, **change)


def test_a_selected_run_holds_gaussians_only():
    """A stored run with another kind of event, itself included, is a ValueError."""
    stored = ONE_OF_EACH[6].to_json()
    for inner in (ONE_OF_EACH[2], ONE_OF_EACH[6]):
        with pytest.raises(ValueError, match="run: expected at most 64 poisson-gaussian events"):
            from_json(stored | {"run": [inner.to_json()]})


def test_a_history_of_all_kinds_has_one_canonical_order():
    """Mixed kinds in any order, whole or in parts, are merged to the same value, and nothing is lost."""
    backwards = tuple(reversed(ONE_OF_EACH))
    doubled = merged((*ONE_OF_EACH, *backwards))
    assert merged(ONE_OF_EACH) == merged(backwards)
    assert doubled == tuple(event.times(2) for event in merged(ONE_OF_EACH))
    assert set(merged(ONE_OF_EACH)) == set(ONE_OF_EACH)


def test_a_history_holds_for_the_weakest_adjacency_among_its_events():
    """Replace-one implies zero-out, so that only a history of replace-one events alone may say replace-one."""
    assert adjacency_of(ONE_OF_EACH) == "zero-out"
    assert adjacency_of(ONE_OF_EACH[4:6]) == "replace-one"
    assert adjacency_of(()) == "zero-out"
