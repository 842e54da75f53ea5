"""Orders and reports on the wire: they come back equal, and what is malformed raises WireError and nothing else."""

import dataclasses
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import WireError
from common.messages import Mechanism, Order, Refusal, Report
from common.wire import MAX_TEXT, Frame, decode_order, decode_report, encode_order, encode_report

MECHANISM = Mechanism(sampling_rate=Fraction(256, 60000), noise_multiplier=1.1, max_grad_norm=0.5, steps=4)
WEIGHTS = np.arange(3, dtype=np.float32)
ORDER = Order(run="r", round=3, attempt=2, client=17, weights_P=WEIGHTS, mechanism=MECHANISM)
REPORT = Report(run="r", round=3, attempt=2, client=17, update_P=WEIGHTS)

positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
whole = st.integers(1, 2**63 - 1)
flat = arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32))
address = {"run": st.text(max_size=MAX_TEXT), "round": whole, "attempt": whole, "client": st.integers(0, 2**63 - 1)}
mechanisms = st.builds(
    Mechanism,
    sampling_rate=st.builds(lambda a, b: Fraction(min(a, b), max(a, b)), whole, whole),
    noise_multiplier=positive,
    max_grad_norm=positive,
    steps=whole,
)
orders = st.builds(
    Order,
    **address,
    weights_P=flat,
    mechanism=st.none() | mechanisms,
    max_update_norm=st.none() | positive,
    metrics_noise_multiplier=st.none() | positive,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
reports = st.builds(Report, **address, update_P=flat, correct=st.none() | finite)


def facts(message):
    """A message with its array as bytes: equal to the last bit, NaN included."""
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in ((field.name, getattr(message, field.name)) for field in dataclasses.fields(message))
    }


@settings(max_examples=200, deadline=None)
@given(order=orders)
def test_an_order_comes_back_equal(order):
    """Decoding an encoded order gives the same order: rates as exact fractions, floats to the last bit."""
    assert facts(decode_order(encode_order(order))) == facts(order)


@settings(max_examples=100, deadline=None)
@given(report=reports)
def test_a_report_comes_back_equal(report):
    """Decoding an encoded report gives the same report."""
    assert facts(decode_report(encode_report(report))) == facts(report)


def test_exactly_the_report_leaves_a_client():
    """A report's frame holds which order it answers, and the update, a count only where there is one.

    A new field would be seen here.
    """
    frame = encode_report(REPORT)
    assert frame.scalars == {"run": "r", "round": 3, "attempt": 2, "client": 17}
    assert frame.array is WEIGHTS
    assert encode_report(dataclasses.replace(REPORT, correct=41.25)).scalars == frame.scalars | {"correct": "41.25"}
    assert [field.name for field in dataclasses.fields(Report)] == [
        "run", "round", "attempt", "client", "update_P", "correct",
    ]  # fmt: skip
    assert REPORT.correct is None


def test_an_order_is_written_without_floats():
    """Rates and norms travel as texts, so that no float conversion on the way changes them."""
    order = dataclasses.replace(ORDER, max_update_norm=0.25, metrics_noise_multiplier=20.0)
    assert encode_order(order).scalars == {
        "run": "r",
        "round": 3,
        "attempt": 2,
        "client": 17,
        "sampling-rate": "8/1875",  # 256/60000 in lowest terms
        "noise-multiplier": "1.1",
        "max-grad-norm": "0.5",
        "steps": 4,
        "max-update-norm": "0.25",
        "metrics-noise-multiplier": "20.0",
    }


def test_refusals_are_a_fixed_vocabulary():
    """What a client says instead of a report is one word out of these, and holds no data."""
    assert {refusal.value for refusal in Refusal} == {
        "not-in-plan", "outside-policy", "budget-spent", "already-trained", "not-recorded", "malformed", "data-unfit",
        "model-unfit", "failed", "worker-died", "timed-out", "no-answer", "forged", "bundle-refused", "awaits-approval",
        "refused-by-owner", "not-witnessed",
    }  # fmt: skip


def with_scalars(frame, **changes: object):
    """A frame with some scalars replaced, or taken out where the value is Ellipsis."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    scalars = {name: value for name, value in (frame.scalars | named).items() if value is not ...}
    return Frame(scalars=scalars, array=frame.array)


BAD_ADDRESSES = [
    {"run": ...},
    {"run": 3},
    {"run": b"r"},
    {"run": "r" * 201},
    {"round": ...},
    {"round": "3"},
    {"round": 3.0},
    {"round": True},
    {"attempt": ...},
    {"attempt": None},
    {"client": ...},
    {"client": [1]},
    {"surprise": 1},
    {"example-count": 60},
]
BAD_ORDERS = [
    *BAD_ADDRESSES,
    {"round": 0},
    {"round": -1},
    {"round": 10**400},
    {"attempt": 0},
    {"client": -1},
    {"client": 10**400},
    {"sampling_rate": ...},
    {"noise_multiplier": ...},
    {"max_grad_norm": ...},
    {"steps": ...},
    {"sampling_rate": "0"},
    {"sampling_rate": "-1/2"},
    {"sampling_rate": "3/2"},
    {"sampling_rate": "1/0"},
    {"sampling_rate": "0/0"},
    {"sampling_rate": "nan"},
    {"sampling_rate": "half"},
    {"sampling_rate": ""},
    {"sampling_rate": 0.5},
    {"sampling_rate": "1/" + "9" * 199},
    {"noise_multiplier": "0.0"},
    {"noise_multiplier": "-1.0"},
    {"noise_multiplier": "nan"},
    {"noise_multiplier": "inf"},
    {"noise_multiplier": "1e400"},
    {"noise_multiplier": "one"},
    {"noise_multiplier": 1.1},
    {"max_grad_norm": "0.0"},
    {"max_grad_norm": "nan"},
    {"steps": 0},
    {"steps": -4},
    {"steps": "4"},
    {"steps": True},
    {"steps": 10**400},
    {"max_update_norm": "0.0"},
    {"max_update_norm": "nan"},
    {"max_update_norm": "inf"},
    {"max_update_norm": 1.0},
    {"metrics_noise_multiplier": "0.0"},
    {"metrics_noise_multiplier": "-20.0"},
    {"metrics_noise_multiplier": "nan"},
    {"metrics_noise_multiplier": "inf"},
    {"metrics_noise_multiplier": 20.0},
    {"metrics_noise_multiplier": ""},
    {"correct": "41.25"},
]


@pytest.mark.parametrize("changes", BAD_ORDERS, ids=lambda changes: str(changes)[:60])
def test_a_malformed_order_is_refused(changes):
    """A field that is missing, unknown, of another type or impossible raises WireError."""
    with pytest.raises(WireError):
        decode_order(with_scalars(encode_order(ORDER), **changes))


BAD_COUNTS = [
    {"correct": value}
    for value in ("nan", "inf", "-inf", "1e400", "", "many", 41, 41.25, True, None, b"41", [41.25], "9" * 201)
]


@pytest.mark.parametrize("changes", [*BAD_ADDRESSES, *BAD_COUNTS, {"steps": 4}, {"accuracy": "0.9"}], ids=str)
def test_a_malformed_report_is_refused(changes):
    """A field that is missing, unknown or of another type raises WireError."""
    with pytest.raises(WireError):
        decode_report(with_scalars(encode_report(REPORT), **changes))


@pytest.mark.parametrize(
    "array",
    [
        WEIGHTS.astype(np.float64),
        WEIGHTS.astype(np.float16),
        WEIGHTS.astype(np.int32),
        WEIGHTS.astype(">f4"),
        WEIGHTS.reshape(1, 3),
        np.float32(1).reshape(()),
        np.array(["a"]),
        np.array([None]),
    ],
    ids=["float64", "float16", "int32", "big-endian", "two dimensions", "no dimension", "texts", "objects"],
)
def test_an_array_that_is_not_flat_float32_is_refused(array):
    """Weights and updates are one flat float32 array, on both ways."""
    with pytest.raises(WireError, match=r"^array: expected one flat float32 array, got .* dimensions\.$"):
        decode_order(Frame(scalars=encode_order(ORDER).scalars, array=array))
    with pytest.raises(WireError, match=r"^array: expected one flat float32 array, got .* dimensions\.$"):
        decode_report(Frame(scalars=encode_report(REPORT).scalars, array=array))


def test_a_mechanism_in_part_is_refused_by_name():
    """An order that names a rate and no noise says which it has and which it should have."""
    frame = with_scalars(encode_order(ORDER), noise_multiplier=..., steps=...)
    with pytest.raises(WireError, match=r"^An order names a mechanism in part: got \['max-grad-norm', 'sampling-rate'"):
        decode_order(frame)


def test_an_unknown_field_is_named():
    """The message names what is unknown, and asks about versions."""
    with pytest.raises(WireError, match=r"^A message has unknown fields: \['loss'\]\. Do both sides run the same vers"):
        decode_report(with_scalars(encode_report(REPORT), loss="0.3"))


scalar = st.one_of(
    st.integers(), st.floats(), st.text(max_size=250), st.booleans(), st.binary(max_size=20), st.none(),
    st.lists(st.integers(), max_size=2),
)  # fmt: skip
names = st.sampled_from(
    ["run", "round", "attempt", "client", "sampling-rate", "noise-multiplier", "max-grad-norm", "steps", "x", "correct"]
)
frames = st.builds(
    Frame,
    scalars=st.dictionaries(names, scalar).map(lambda changes: encode_order(ORDER).scalars | changes),
    array=st.sampled_from([WEIGHTS, WEIGHTS.astype(np.float64), WEIGHTS.reshape(3, 1)]),
)


@settings(max_examples=300, deadline=None)
@given(frame=frames)
def test_no_frame_raises_anything_else(frame):
    """Whatever the scalars hold, decoding gives a message or WireError."""
    for decode in (decode_order, decode_report):
        try:
            decoded = decode(frame)
        except WireError:
            continue
        assert decoded.run == frame.scalars["run"]
        assert decoded.round == frame.scalars["round"]


def test_a_short_frame_cannot_keep_a_client_busy():
    """A rate of 20 characters that stands for a number of 10^11 digits is refused at once, in 5 s of CPU time."""
    program = """
import resource, sys
import numpy as np
from common.errors import WireError
from common.wire import Frame, decode_order
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
scalars = {"run": "r", "round": 1, "attempt": 1, "client": 0, "sampling-rate": sys.argv[1],
           "noise-multiplier": "1.0", "max-grad-norm": "1.0", "steps": 1}
try:
    decode_order(Frame(scalars=scalars, array=np.zeros(3, np.float32)))
except WireError:
    print("refused")
"""
    command = [sys.executable, "-c", program]
    for rate in ("1e-99999999", "1e-99999999999"):
        ended = subprocess.run([*command, rate], capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr[-500:]
