"""Events: frozen facts that come back exactly as they were written."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy.events import SampledGaussian, from_json

EVENT = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(256, 60000), steps=14062)

any_event = st.builds(
    SampledGaussian,
    noise_multiplier=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    sampling_rate=st.fractions(0, 1, max_denominator=10**18).filter(lambda rate: rate > 0),
    steps=st.integers(1, 10**18),
    unit=st.sampled_from(["record", "client"]),
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
        {"unit": "person"},
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
