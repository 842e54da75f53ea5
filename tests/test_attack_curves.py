"""The mathematics of membership attacks: curves, their intervals, the likelihood ratio."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from simulations.attack.membership import by_likelihood_ratio, by_loss, log_ratios
from simulations.attack.roc import hits_at, lower_limit, trace, upper_limit


def test_curve_of_known_scores():
    """Each threshold's rates are counted, from nobody accused to everybody."""
    curve = trace(np.array([4.0, 3.0, 1.0]), np.array([2.0, 0.0]))
    assert curve.true_T.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1, 1])  # thresholds none, 4, 3, 2, 1, 0
    assert curve.false_T.tolist() == pytest.approx([0, 0, 0, 1 / 2, 1 / 2, 1])
    assert curve.area == pytest.approx(5 / 6)  # of 3 * 2 pairs only 1 below 2 is in the wrong order


def test_equal_scores_are_accused_together():
    """A tie counts half in the area, and no threshold parts members from others within it."""
    curve = trace(np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0]))
    assert curve.area == pytest.approx((2 + 2 * (0.5 + 1)) / 6)  # 2 beats both, each 1 ties with one and beats one
    assert curve.hits(0.49) == pytest.approx(1 / 3)  # the tied other is half of the others: too many
    assert curve.hits(0.5) == 1


def test_scores_all_alike_recognise_nobody():
    """With one score for all, an attack is blind."""
    curve = trace(np.zeros(5), np.zeros(3))
    assert curve.area == 0.5
    assert curve.hits(0.99) == 0
    assert curve.hits(1.0) == 1


def test_hits_take_the_loosest_threshold_that_is_allowed():
    """At one of ten others wrongly accused, everybody above the second best other is recognised."""
    curve = trace(np.array([9.5, 8.5, 7.5, 0.5]), np.arange(10.0))  # others 0 to 9
    assert curve.hits(0.0) == 0.25
    assert curve.hits(0.1) == 0.5
    assert curve.hits(0.19) == 0.5
    assert curve.hits(0.2) == 0.75


def test_a_curve_needs_both_sides():
    """Without members, or without others, there is nothing to tell apart."""
    with pytest.raises(ValueError, match="others"):
        trace(np.array([1.0]), np.array([]))


def test_limits_are_those_of_clopper_and_pearson():
    """At the lower limit the count seen, or more, has the probability of the error; likewise above."""
    low = lower_limit(np.array([0.3]), 10, error=0.05)[0]
    assert binom.sf(2, 10, low) == pytest.approx(0.05)  # 3 or more of 10
    high = upper_limit(np.array([0.3]), 10, error=0.05)[0]
    assert binom.cdf(3, 10, high) == pytest.approx(0.05)


def test_limits_at_the_ends():
    """None seen leaves 1 - error^(1/n) above, all seen leaves error^(1/n) below."""
    assert lower_limit(np.array([0.0]), 10, error=0.05)[0] == 0
    assert upper_limit(np.array([0.0]), 10, error=0.05)[0] == pytest.approx(1 - 0.05**0.1)
    assert lower_limit(np.array([1.0]), 10, error=0.05)[0] == pytest.approx(0.05**0.1)
    assert upper_limit(np.array([1.0]), 10, error=0.05)[0] == 1


def test_interval_at_a_rate_that_few_others_cannot_show():
    """Of 100 others none at 0.1 %: the lower end is 0, for no threshold is surely that strict."""
    random = np.random.default_rng(7)
    curve = trace(random.normal(1, 1, 100), random.normal(0, 1, 100))
    hits = hits_at(curve, 0.001, members=100, others=100)
    assert hits.low == 0
    assert hits.low <= hits.value <= hits.high
    assert hits.high > 0.1


def test_interval_holds_the_truth():
    """Of 200 samples at most 20 intervals miss it; each does with at most 5 %, so that more have 2e-3."""
    truth, missed = norm.sf(norm.isf(0.05) - 1), 0  # members are one standard deviation higher
    random = np.random.default_rng(7)
    for _ in range(200):
        curve = trace(random.normal(1, 1, 300), random.normal(0, 1, 300))
        hits = hits_at(curve, 0.05, members=300, others=300)
        missed += not hits.low <= truth <= hits.high
    assert binom.sf(20, 200, 0.05) < 2e-3
    assert missed <= 20


def gaussian(models: int, records: int, *, gap: float, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of models that membership moves by `gap` standard deviations; records differ by ten of them."""
    random = np.random.default_rng(seed)
    is_in_MN = random.random((models, records)) < 0.5
    return 10 * random.normal(size=records) + gap * is_in_MN + random.normal(size=(models, records)), is_in_MN


def test_likelihood_ratio_reaches_its_area_on_gaussians():
    """The known area is reached, though records differ ten times more than membership moves them.

    A centre is the mean of S shadows, so that scores spread by sqrt(1 + 1/S): the area is Phi(gap / sqrt(2 (1 + 1/S))).
    The standard error of an area of 0.75 from 5,000 and 5,000 is 0.005; five of them have 6e-7, and the seed is fixed.
    """
    confidence_MN, is_in_MN = gaussian(5, 2000, gap=1.0)
    expected = norm.cdf(1 / math.sqrt(2 * (1 + 1 / 4)))
    assert by_likelihood_ratio(confidence_MN, is_in_MN).area == pytest.approx(expected, abs=0.025)
    blind = norm.cdf(1 / math.sqrt(2 * (1 + 10**2)))  # without centres the records' own spread is in the way
    assert by_loss(confidence_MN, is_in_MN).area == pytest.approx(blind, abs=0.03)


def test_likelihood_ratio_of_nothing_is_blind():
    """Where membership moves nothing the area is one half, within five standard errors of 0.0058 (6e-7)."""
    confidence_MN, is_in_MN = gaussian(5, 2000, gap=0.0)
    assert by_likelihood_ratio(confidence_MN, is_in_MN).area == pytest.approx(0.5, abs=0.029)


def test_log_ratio_of_known_shadows():
    """Two records, two shadows each way round: the gap is 2, both variances 1/2 of the residuals' squares."""
    confidence_SN = np.array([[3.0, 10.0], [0.0, 11.0]])
    is_in_SN = np.array([[True, False], [False, True]])
    # Gap: half the difference in against out of each record, (3 + 1) / 2 = 2. Centres: (1 + 0) / 2 and (10 + 9) / 2.
    # Residuals 1/2, -1/2, 1/2, -1/2: of each kind two, squares 1/4 each, one degree of freedom: variance 1/2.
    scores = log_ratios(np.array([2.5, 9.5]), confidence_SN, is_in_SN)
    assert scores.tolist() == pytest.approx([2.0**2, -(2.0**2)])  # (2^2 - 0) / (2 * 1/2), and the other way round


def test_a_record_that_every_shadow_had_has_a_score():
    """Neither it nor shadows that agree on everything leave a score that is not finite."""
    confidence_MN, is_in_MN = gaussian(4, 50, gap=1.0)
    is_in_MN[:, 0], is_in_MN[:, 1] = True, False
    assert np.isfinite(log_ratios(confidence_MN[0], confidence_MN[1:], is_in_MN[1:])).all()
    assert np.isfinite(log_ratios(np.ones(50), np.ones((3, 50)), is_in_MN[1:])).all()
