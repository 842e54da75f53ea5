"""Epsilon from events: against published and independently computed values, and what must hold of every history."""

import json
import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AccountingError
from common.privacy.accounting import (
    COARSE,
    SMALLEST_DELTA,
    Verdict,
    check,
    epsilon,
    prv_interval,
    pure_epsilon,
    refuse_disagreement,
    renyi_divergences,
    renyi_epsilon,
)
from common.privacy.calibration import calibrate
from common.privacy.events import (
    FixedSizeGaussian,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    TreeGaussian,
    ZeroConcentrated,
    merged,
)

REFERENCE = Path(
    os.environ.get(
        "DISCREET_REFERENCE", Path(__file__).resolve().parents[1].parent / "shared" / "reference" / "epsilons.json"
    )
)


def gaussian(noise_multiplier, sampling_rate=1, steps=1, unit="record"):
    """Write an event in one line."""
    return SampledGaussian(
        noise_multiplier=noise_multiplier, sampling_rate=Fraction(sampling_rate), steps=steps, unit=unit
    )


def reference_rows():
    """The rows of the reference file that are compositions of Poisson-subsampled Gaussians."""
    if not REFERENCE.exists():
        skip = pytest.mark.skip(reason=f"{REFERENCE} is not there; DISCREET_REFERENCE names another place")
        return [pytest.param(None, id="no reference file", marks=skip)]
    rows = json.loads(REFERENCE.read_text())["rows"]
    return [pytest.param(row, id=row["id"]) for row in rows if "segments" in row]


def history_of(row):
    """A reference row's events; its rates are fractions of small numbers written as floats."""
    return tuple(
        gaussian(s["noise_multiplier"], Fraction(s["sampling_rate"]).limit_denominator(10**6), s["steps"])
        for s in row["segments"]
    )


# Shapes for calibration, from one step to many: sampling rate, steps, target epsilon, delta.
SHAPES = [
    (Fraction(1), 1, 8.0, 1e-5),
    (Fraction(1), 100, 3.0, 1e-3),
    (Fraction(1, 2), 20, 0.5, 1e-5),
    (Fraction(1, 10), 512, 1.0, 1e-6),
]

events = st.builds(
    SampledGaussian,
    noise_multiplier=st.integers(8, 100).map(lambda tenths: tenths / 10),
    sampling_rate=st.builds(Fraction, st.integers(1, 20), st.sampled_from([20, 200, 2000])),
    steps=st.integers(1, 200),
    unit=st.sampled_from(["record", "client"]),
)
laplaces = st.builds(
    SampledLaplace,
    scale=st.integers(5, 200).map(lambda tenths: tenths / 10),
    sampling_rate=st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(1, 50)]),
    steps=st.integers(1, 50),
)
mixtures = st.lists(st.one_of(events, laplaces), min_size=1, max_size=3).map(tuple)
strangers = (
    ZeroConcentrated(rho=0.1),
    TreeGaussian(noise_multiplier=8.0, leaves=100),
    FixedSizeGaussian(noise_multiplier=2.0, sample_size=1, source_size=100),
    RandomizedResponse(noise_parameter=0.5, buckets=3),
)
histories = st.lists(events, min_size=1, max_size=3).map(tuple)
deltas = st.integers(3, 9).map(lambda digits: 10.0**-digits)


@pytest.mark.parametrize(
    ("history", "delta", "expected"),
    [
        # each by dp-accounting's own PLDAccountant on its default grid
        ((gaussian(1.1, "256/60000", 14062),), 1e-5, 2.381686),  # the MNIST tutorial of TensorFlow Privacy, 60 epochs
        ((gaussian(1.3, "256/60000", 3515),), 1e-5, 0.864459),  # the same, 15 epochs
        ((gaussian(4, "1/100", 10_000),), 1e-5, 0.946999),  # Abadi et al. 2016, section 5.1: 1.26 by moments
        ((gaussian(3, "1/10", 512),), 1e-6, 3.769687),  # the documentation of jax-privacy: 3.77
        ((gaussian(10, 1, 100),), 1e-3, 3.138671),  # mu = sqrt(100)/10 = 1, analytic Gaussian
        ((gaussian(1.0, "1/100", 500), gaussian(1.5, "2/100", 500)), 1e-5, 1.897483),  # two kinds of steps
    ],
)
def test_pld_gives_the_published_values(history, delta, expected):
    """PLD agrees with six published or independently computed values to five digits."""
    assert epsilon(history, delta=delta) == pytest.approx(expected, rel=1e-5)


def test_the_plain_gaussian_has_its_analytic_epsilon():
    """One Gaussian step with sigma 1 spends what the closed formula of Balle and Wang 2018 says, 4.3772."""
    spent = epsilon((gaussian(1.0),), delta=1e-5)

    def delta_at(eps):  # Phi(1/2 - eps) - e^eps Phi(-1/2 - eps) for mu = 1
        cdf = [math.erfc(-x / math.sqrt(2)) / 2 for x in (0.5 - eps, -0.5 - eps)]
        return cdf[0] - math.exp(eps) * cdf[1]

    assert delta_at(spent) <= 1e-5  # an upper bound
    assert delta_at(spent - 1e-5) > 1e-5  # and a tight one


def test_many_plain_gaussian_steps_are_one_with_less_noise():
    """25 steps at sigma 5 spend what one step at sigma 1 does, since mu = sqrt(25) / 5 = 1."""
    assert epsilon((gaussian(5.0, 1, 25),), delta=1e-5) == pytest.approx(epsilon((gaussian(1.0),), delta=1e-5), 1e-6)


@pytest.mark.parametrize("row", reference_rows())
def test_pld_matches_the_reference(row):
    """PLD agrees with every row of the reference file to two parts in 1e5; the file itself asks for 0.5 %."""
    spent = epsilon(history_of(row), delta=row["delta"])
    assert [float(event.sampling_rate) for event in history_of(row)] == [s["sampling_rate"] for s in row["segments"]]
    # never below; above by the rounding that is taken off delta: for 4120 steps at delta 1e-9 that is 1.3e-5
    assert -1e-6 < spent / row["expected_add_remove"] - 1 < 2e-5


@pytest.mark.parametrize("row", reference_rows())
def test_renyi_bounds_pld_and_matches_the_reference(row):
    """RDP is never below PLD, and agrees with every row that the reference has an RDP figure for."""
    spent = renyi_epsilon(history_of(row), delta=row["delta"])
    assert row["expected_add_remove"] <= spent
    if "dp_accounting_rdp" in row["eps"]:
        assert spent == pytest.approx(row["eps"]["dp_accounting_rdp"], rel=1e-4)


@pytest.mark.parametrize("row", reference_rows()[4:21:2])
def test_prv_encloses_the_reference(row):
    """For every second row that the reference has PRV for, its interval is 0.012 or less away, and encloses PLD."""
    low, middle, high = prv_interval(history_of(row), delta=row["delta"])
    expected = row["expected_add_remove"]
    assert low <= expected <= high
    assert abs(middle - expected) <= 0.012
    assert high <= expected + 0.012


def test_three_accountants_agree_on_an_ordinary_history():
    """`check` returns all three figures of a history, in the order that they must have."""
    verdict = check((gaussian(2.0, "1/10", 200),), delta=1e-5)
    assert verdict.prv_low is not None
    assert verdict.prv_high is not None
    # reference row sgm-e: PLD 3.35966, PRV 3.34946 to 3.36986, RDP 3.67975
    assert verdict.pld == pytest.approx(3.35966, abs=1e-5)
    assert (verdict.prv_low, verdict.prv_high) == pytest.approx((3.34946, 3.36986), abs=1e-4)
    assert verdict.rdp == pytest.approx(3.67975, abs=1e-5)
    assert verdict.unanswered == ""


def test_the_sum_of_the_rounds_is_not_the_spent_epsilon():
    """A hundred rounds spend 5.42, neither the 61.4 of their sum nor the 0.61 of the last."""
    one_round = gaussian(1.0, "1/125", 125)
    last, total = (epsilon((one_round.times(rounds),), delta=1e-5) for rounds in (1, 100))
    assert last == pytest.approx(0.6139, abs=1e-4)
    assert total == pytest.approx(5.4178, abs=1e-4)
    assert 100 * last == pytest.approx(61.39, abs=0.01)


def test_an_empty_history_spends_nothing():
    """Epsilon of nothing is 0, by PLD and by RDP."""
    assert epsilon((), delta=1e-5) == 0.0
    assert renyi_epsilon((), delta=1e-5) == 0.0


@pytest.mark.parametrize("delta", [9e-11, 0.0, -1e-5, 1.0, math.nan])
@pytest.mark.parametrize(
    "answer",
    [
        lambda delta: epsilon((gaussian(1.0),), delta=delta),
        lambda delta: epsilon((), delta=delta),
        lambda delta: renyi_epsilon((gaussian(1.0),), delta=delta),
        lambda delta: prv_interval((gaussian(1.0),), delta=delta),
        lambda delta: check((gaussian(1.0),), delta=delta),
        lambda delta: calibrate(gaussian(1.0), target_epsilon=1.0, delta=delta),
    ],
    ids=["pld", "pld of nothing", "rdp", "prv", "check", "calibrate"],
)
def test_a_delta_that_rounding_decides_is_refused(answer, delta):
    """No accountant answers for a delta below 1e-10, of 1 or more, or that is no number."""
    with pytest.raises(AccountingError, match=r"delta: expected a number from 1e-10 to below 1, got"):
        answer(delta)


def test_the_smallest_delta_is_answered():
    """At delta 1e-10 exactly, all accountants answer, agree, and are right to six digits."""
    # mu = sqrt(4) / 2 = 1; the closed formula in 40 digits gives 6.5479241
    assert check((gaussian(2.0, 1, 4),), delta=SMALLEST_DELTA).pld == pytest.approx(6.547924, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(history=histories, more=events, delta=deltas)
def test_epsilon_never_falls_when_an_event_is_added(history, more, delta):
    """Whatever was done before, doing more never costs less, wherever in the history it stands."""
    before = epsilon(history, delta=delta, grid=COARSE)
    assert before <= epsilon((*history, more), delta=delta, grid=COARSE)
    assert before <= epsilon((more, *history), delta=delta, grid=COARSE)


@settings(max_examples=10, deadline=None)
@given(history=st.lists(events, min_size=2, max_size=4), delta=deltas, data=st.data())
def test_epsilon_does_not_depend_on_the_order_of_events(history, delta, data):
    """Any order of the same events gives the same figure, bit for bit."""
    shuffled = data.draw(st.permutations(history))
    assert epsilon(tuple(history), delta=delta, grid=COARSE) == epsilon(tuple(shuffled), delta=delta, grid=COARSE)


@settings(max_examples=5, deadline=None)
@given(history=st.lists(events, min_size=1, max_size=2).map(tuple), delta=deltas)
def test_a_coarser_grid_is_never_below_a_finer_one(history, delta):
    """The coarse grid's figure is an upper bound on the fine grid's."""
    assert epsilon(history, delta=delta) <= epsilon(history, delta=delta, grid=COARSE)


@settings(max_examples=100, deadline=None)
@given(history=st.lists(events, max_size=6))
def test_merging_keeps_every_step_of_every_kind(history):
    """`merged` has each kind of event once, with the steps of all its occurrences."""
    totals = {}
    for event in history:
        kind = (event.noise_multiplier, event.sampling_rate, event.unit)
        totals[kind] = totals.get(kind, 0) + event.steps
    together = merged(tuple(history))
    assert {(e.noise_multiplier, e.sampling_rate, e.unit): e.steps for e in together} == totals
    assert len(together) == len(totals)


def test_merging_is_canonical():
    """Histories that differ in order and grouping alone are merged to the same value."""
    a, b = gaussian(1.0, "1/2", 3), gaussian(2.0, "1/3", 5)
    assert merged((a, b, a)) == merged((b, gaussian(1.0, "1/2", 6))) == (b, gaussian(1.0, "1/2", 6))  # 1/3 < 1/2
    assert merged(()) == ()


def test_events_of_two_units_are_not_added_up():
    """A record's steps and a client's steps stay two events."""
    history = (gaussian(1.0, unit="record"), gaussian(1.0, unit="client"))
    assert len(merged(history)) == 2


def test_calibration_finds_the_published_noise():
    """Epsilon 1 at q 0.1, 512 steps and delta 1e-6 needs 9.66, as jax-privacy's documentation says."""
    assert calibrate(gaussian(1.0, "1/10", 512), target_epsilon=1.0, delta=1e-6) == pytest.approx(9.6618, rel=2e-3)


@pytest.mark.parametrize(("rate", "steps", "target", "delta"), SHAPES)
def test_calibrated_noise_spends_at_most_the_target_and_nearly_it(rate, steps, target, delta):
    """The result spends between 0.998 of the target and the target, on the fine grid."""
    noise = calibrate(gaussian(1.0, rate, steps), target_epsilon=target, delta=delta)
    assert 0.998 * target <= epsilon((gaussian(noise, rate, steps),), delta=delta) <= target


def test_calibration_keeps_the_target_where_the_coarse_grid_is_far_from_the_truth():
    """A small epsilon over many steps, which the coarse grid overstates, is not exceeded."""
    noise = calibrate(gaussian(1.0, "1/1000", 3000), target_epsilon=0.05, delta=1e-5)
    assert epsilon((gaussian(noise, "1/1000", 3000),), delta=1e-5) <= 0.05


def test_calibration_wastes_nothing_where_the_coarse_grid_is_far_from_the_truth():
    """A small epsilon over many steps gets noise that spends at least 0.998 of it too."""
    noise = calibrate(gaussian(1.0, "1/1000", 3000), target_epsilon=0.05, delta=1e-5)
    assert epsilon((gaussian(noise, "1/1000", 3000),), delta=1e-5) >= 0.998 * 0.05


@settings(max_examples=4, deadline=None)
@given(
    rate=st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(1, 20)]),
    steps=st.integers(1, 100),
    target=st.integers(5, 40).map(lambda tenths: tenths / 10),
    delta=deltas,
)
def test_calibration_never_exceeds_the_target(rate, steps, target, delta):
    """Whatever the shape, the calibrated noise spends at most the target."""
    noise = calibrate(gaussian(1.0, rate, steps), target_epsilon=target, delta=delta)
    assert epsilon((gaussian(noise, rate, steps),), delta=delta) <= target


def test_calibration_ignores_the_noise_of_the_shape():
    """Two shapes that differ in noise alone are calibrated to the same noise."""
    first, second = (calibrate(gaussian(noise, 1, 4), target_epsilon=2.0, delta=1e-5) for noise in (0.7, 50.0))
    assert first == second


def test_calibration_refuses_what_no_noise_reaches():
    """A target that a million times the sensitivity does not reach is refused with what to do."""
    with pytest.raises(AccountingError, match=r"No noise multiplier up to 1e6 reaches epsilon 1e-09\. Raise"):
        calibrate(gaussian(1.0), target_epsilon=1e-9, delta=1e-10)


def test_agreeing_figures_are_accepted_up_to_the_tolerance():
    """PLD may be at the very edges: 1.001 RDP, PRV's bounds widened by 0.2 %."""
    edges = (
        Verdict(pld=1.001, prv_low=1.0, prv=1.0, prv_high=1.0, rdp=1.0),
        Verdict(pld=1.002, prv_low=0.9, prv=1.0, prv_high=1.0, rdp=2.0),  # 1.0 * 1.002
        Verdict(pld=0.998, prv_low=1.0, prv=1.0, prv_high=1.1, rdp=2.0),  # 1.0 * 0.998
    )
    for verdict in edges:
        refuse_disagreement(verdict)
        assert verdict.pld is not None
        outside = 1.0001 if verdict.pld > 1 else 0.9999
        with pytest.raises(AccountingError):  # a hair beyond, and it is refused
            refuse_disagreement(replace(verdict, pld=verdict.pld * outside))


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict(pld=1.0011, prv_low=0.9, prv=1.0, prv_high=1.1, rdp=1.0), "above RDP 1.000000"),
        (Verdict(pld=1.0021, prv_low=0.9, prv=1.0, prv_high=1.0, rdp=2.0), r"outside PRV's \[0.900000, 1.000000\]"),
        (Verdict(pld=0.9979, prv_low=1.0, prv=1.0, prv_high=1.1, rdp=2.0), r"outside PRV's \[1.000000, 1.100000\]"),
        (Verdict(pld=math.nan, prv_low=0.9, prv=1.0, prv_high=1.1, rdp=2.0), "PLD nan"),
        (Verdict(pld=1.0, prv_low=0.9, prv=1.0, prv_high=1.1, rdp=math.nan), "RDP nan"),
        (Verdict(pld=1.0, prv_low=math.nan, prv=1.0, prv_high=1.1, rdp=2.0), r"PRV's \[nan"),
        (Verdict(pld=1.0, prv_low=0.9, prv=1.0, prv_high=math.nan, rdp=2.0), r"nan\]"),
        (Verdict(pld=math.nan, prv_low=None, prv=None, prv_high=None, rdp=2.0), "PLD nan"),
        (Verdict(pld=3.0, prv_low=None, prv=None, prv_high=None, rdp=2.0), "above RDP"),
        (Verdict(pld=math.inf, prv_low=None, prv=None, prv_high=None, rdp=2.0), "above RDP"),
    ],
)
def test_disagreeing_figures_are_refused(verdict, words):
    """A figure beyond the tolerance, or one that is NaN, stops the report; PRV's silence excuses nothing."""
    with pytest.raises(AccountingError, match=rf"Accountants disagree: .*{words}.*No epsilon is reported\."):
        refuse_disagreement(verdict)


def test_a_silent_accountant_is_named():
    """Where PRV cannot answer, the verdict says so and why, and the other two must still agree."""
    verdict = check((), delta=1e-5)  # PRV cannot compose nothing
    assert (verdict.pld, verdict.rdp) == (0.0, 0.0)
    assert (verdict.prv_low, verdict.prv, verdict.prv_high) == (None, None, None)
    assert verdict.unanswered.startswith("PRV cannot answer: ")


@settings(max_examples=12, deadline=None)
@given(history=mixtures, delta=deltas)
def test_no_history_costs_more_by_pld_than_by_renyi(history, delta):
    """Gaussians and Laplace noise of any parameters: PLD is at most 1.001 RDP, and basic composition bounds both."""
    pld, rdp = epsilon(history, delta=delta), renyi_epsilon(history, delta=delta)
    assert 0 <= pld <= 1.001 * rdp
    assert rdp <= pure_epsilon(history)


@settings(max_examples=10, deadline=None)
@given(history=mixtures, more=st.one_of(events, laplaces), delta=deltas, data=st.data())
def test_mixed_events_never_lower_epsilon_and_have_no_order(history, more, delta, data):
    """With Laplace noise among the Gaussians too, more never costs less, in whatever order it was done."""
    before = epsilon(history, delta=delta, grid=COARSE)
    shuffled = data.draw(st.permutations((*history, more)))
    assert (
        before
        <= epsilon((*history, more), delta=delta, grid=COARSE)
        == epsilon(tuple(shuffled), delta=delta, grid=COARSE)
    )


@settings(max_examples=5, deadline=None)
@given(history=mixtures, delta=deltas)
def test_a_coarser_grid_is_never_below_a_finer_one_for_mixed_events(history, delta):
    """The coarse grid's figure is an upper bound with Laplace noise too, up to one part in a million."""
    assert epsilon(history, delta=delta) <= epsilon(history, delta=delta, grid=COARSE) + 1e-6


@settings(max_examples=30, deadline=None)
@given(history=st.lists(st.sampled_from([*strangers, gaussian(2.0, "1/4", 10)]), min_size=1, max_size=4).map(tuple))
def test_divergences_of_all_kinds_add_up(history):
    """Whatever the kinds and adjacencies, the divergences of a history are the sum of its events'."""
    together = sum(renyi_divergences((event,)) for event in history)
    assert renyi_divergences(history) == pytest.approx(together, rel=1e-12)
    assert renyi_epsilon(history, delta=1e-5) > 0


@pytest.mark.parametrize("stranger", strangers, ids=lambda event: event.mechanism)
def test_pld_and_prv_say_what_they_do_not_know(stranger):
    """One event that PLD and PRV do not know silences both, by name, and RDP is reported for the whole history."""
    history = (gaussian(2.0, "1/4", 10), stranger)
    verdict = check(history, delta=1e-5)
    assert (verdict.pld, verdict.prv, verdict.reported_by) == (None, None, "RDP")
    assert verdict.reported == verdict.rdp == renyi_epsilon(history, delta=1e-5)
    assert f"PLD cannot answer: it does not know {stranger.mechanism} events" in verdict.unanswered
    assert "PRV cannot answer: it knows Poisson-sampled Gaussians only" in verdict.unanswered
    with pytest.raises(AccountingError, match=stranger.mechanism):
        epsilon(history, delta=1e-5)


def test_pld_is_reported_where_it_answers():
    """The figure of a history that PLD knows is PLD's."""
    verdict = check((gaussian(2.0, "1/10", 200),), delta=1e-5)
    assert (verdict.reported, verdict.reported_by) == (verdict.pld, "PLD")


def test_rounding_is_taken_off_delta():
    """At a delta that a million steps' rounding could hide in, PLD refuses; where it answers it is an upper bound."""
    # 1e6 steps of 1e-16 are 1e-10: more than 0.01 of delta 1e-9, and 1e-5 of delta 1e-5
    history = (gaussian(200.0, "1/2", 10**6),)
    with pytest.raises(AccountingError, match="PLD cannot answer: rounding would decide after 1000000 steps"):
        epsilon(history, delta=1e-9)
    with pytest.raises(AccountingError, match="PRV cannot answer: rounding would decide after 1000000 steps"):
        prv_interval(history, delta=1e-9)
    verdict = check(history, delta=1e-9)
    assert (verdict.reported_by, verdict.prv) == ("RDP", None)


def test_plain_gaussians_are_counted_exactly_however_many():
    """A trillion steps at sigma a million are one at sigma 1, and so are two different ones whose mu^2 adds up to 1."""
    one = epsilon((gaussian(1.0),), delta=1e-5)
    assert epsilon((gaussian(1e6, 1, 10**12),), delta=1e-5) == pytest.approx(one, rel=1e-9)
    # mu^2 = 0.36 + 0.64
    assert epsilon((gaussian(1 / 0.6), gaussian(1 / 0.8)), delta=1e-5) == pytest.approx(one, rel=1e-9)


def test_prv_refuses_a_domain_that_does_not_fit():
    """Ten million steps would need a hundred million points: it is said before the memory is taken."""
    with pytest.raises(AccountingError, match=r"PRV cannot answer: it would need \d+ points and may have 5000000"):
        prv_interval((gaussian(10.0, "1/100", 10**7),), delta=1e-5)


def test_prv_refuses_a_loss_that_its_numbers_cannot_hold():
    """Where e to the loss overflows, Opacus answers 701 for 1478: it is not asked, and PLD and RDP decide."""
    verdict = check((gaussian(0.02, "1/10000"),), delta=1e-10)
    assert verdict.prv is None
    assert verdict.pld == pytest.approx(1478.46, rel=1e-4)
    assert "PRV cannot answer: a privacy loss of 1" in verdict.unanswered


def test_prv_is_never_negative():
    """A history that costs nothing at a large delta costs 0 by PRV too, whose estimate falls below 0."""
    assert prv_interval((gaussian(5.0, "1/10000"),), delta=0.3) == (0.0, 0.0, 0.0)
    assert check((gaussian(5.0, "1/10000"),), delta=0.3).reported == 0.0


@pytest.mark.parametrize("noise", [1e-200, 1e-3])
def test_next_to_no_noise_is_never_counted_as_little(noise):
    """With hardly any noise an accountant says that it cannot answer, or a figure in the hundred thousands."""
    history = (gaussian(noise, "1/2", 2),)
    verdict = check(history, delta=1e-5)
    assert verdict.reported > 1e5
    with pytest.raises(AccountingError, match="PRV cannot answer"):
        prv_interval(history, delta=1e-5)


def test_a_coarser_grid_takes_over_where_the_finer_does_not_fit():
    """Sigma 0.05, nine times: mu is 60, epsilon over 2,000, and a grid of 1e-4 would need 48 million points."""
    # Balle and Wang 2018: at delta 1e-10, epsilon = mu^2 / 2 + 6.36 mu - small = 1800 + 381.7
    assert epsilon((gaussian(0.05, 1, 9),), delta=1e-10) == pytest.approx(2181.68, rel=1e-5)


def test_laplace_noise_costs_at_most_its_basic_composition():
    """Two Laplace releases of scale 2 cost at most 1/2 each, however small delta; at delta 1e-10 nearly that."""
    history = (SampledLaplace(scale=2.0, sampling_rate=Fraction(1), steps=2),)
    assert pure_epsilon(history) == 1.0
    assert 0.999 < epsilon(history, delta=1e-10) <= 1.0
    assert 0.999 < renyi_epsilon(history, delta=1e-10) <= 1.0
    assert pure_epsilon((*history, gaussian(1.0))) == math.inf


@pytest.mark.parametrize(
    ("rdp", "prv_low", "words"),
    [(math.nan, None, "RDP nan"), (0.9, 1.0, r"RDP 0\.900000 is below PRV's 1\.0")],
)
def test_renyi_alone_is_checked_too(rdp, prv_low, words):
    """Where PLD is silent, RDP must be a number, and not below PRV's lower bound."""
    with pytest.raises(AccountingError, match=rf"Accountants disagree: {words}.*No epsilon is reported\."):
        refuse_disagreement(Verdict(pld=None, prv_low=prv_low, prv=prv_low, prv_high=prv_low, rdp=rdp))
    refuse_disagreement(Verdict(pld=None, prv_low=1.0, prv=1.0, prv_high=1.0, rdp=5.0))
