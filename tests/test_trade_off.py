"""Privacy profiles and trade-off functions: what a claim says of every attack."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from common.audit.trade_off import TradeOff, gaussian, gaussian_epsilon, of_history
from common.errors import AccountingError
from common.privacy.accounting import FOURIER_ERROR, epsilon, profile
from common.privacy.events import RandomizedResponse, SampledGaussian, ZeroConcentrated

PLAIN = SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(1), steps=4)  # mu = sqrt(4) / 2 = 1
SAMPLED = SampledGaussian(noise_multiplier=1.2, sampling_rate=Fraction(1, 10), steps=120)
EPSILONS = np.array([0.0, 0.5, 1.0, 2.0, 4.0])


def test_a_plain_gaussians_profile_is_the_closed_formula():
    """For mu = 1, delta = Phi(1/2 - epsilon) - e^epsilon Phi(-1/2 - epsilon), from above and within 0.1 %."""
    exact = ndtr(0.5 - EPSILONS) - np.exp(EPSILONS) * ndtr(-0.5 - EPSILONS)
    found = profile((PLAIN,), epsilons=EPSILONS)
    assert (found >= exact).all()
    assert found == pytest.approx(exact, rel=1e-3)


def test_profile_and_epsilon_agree():
    """Where `epsilon` says that delta is reached, the profile is at delta, on the same grid."""
    for delta in (1e-3, 1e-5, 1e-8):
        loss = epsilon((SAMPLED,), delta=delta, grid=1e-3)
        assert profile((SAMPLED,), epsilons=np.array([loss])) == pytest.approx([delta], rel=1e-3)


def test_a_profile_is_never_below_its_rounding():
    """At an epsilon that is never exceeded: 120 steps by FFT, and one for the sum."""
    assert profile((SAMPLED,), epsilons=np.array([650.0]))[0] >= 121 * FOURIER_ERROR


def test_a_profile_is_never_above_1():
    """With hardly any noise delta is 1 and no more, rounding included."""
    loud = SampledGaussian(noise_multiplier=0.01, sampling_rate=Fraction(1), steps=1)
    assert profile((loud,), epsilons=np.array([0.0]))[0] == 1.0


def test_nothing_done_has_a_profile_of_zero():
    """An empty history is (0, 0)."""
    assert profile((), epsilons=EPSILONS).tolist() == [0.0] * 5


def test_events_that_pld_does_not_know_have_no_profile():
    """As for epsilon."""
    with pytest.raises(AccountingError, match="it does not know randomized-response events"):
        profile((RandomizedResponse(noise_parameter=0.5, buckets=2),), epsilons=EPSILONS)


def test_a_claim_of_composed_events_is_tight():
    """For mu = 1 the least rate of false positives is Phi(Phi^-1(y) - 1); the claim is below, by 0.1 % at most."""
    claim = of_history((PLAIN,))
    for true_positives in (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99):
        exact = ndtr(ndtri(true_positives) - 1)
        assert exact * (1 - 2e-3) <= claim.least_false_positives(true_positives) <= exact


def test_the_closed_family_is_tight():
    """The same for mu from 0.3 (epsilon 1 at delta 1e-5) to 2.5, within 2 %."""
    for mu in (0.3, 1.0, 1.85, 2.5):
        for true_positives in (1e-4, 0.01, 0.5, 0.99):
            exact = ndtr(ndtri(true_positives) - mu)
            found = gaussian(mu).least_false_positives(true_positives)
            assert exact * (1 - 2e-2) <= found <= exact


pairs = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(pairs=pairs, true_positives=st.floats(0, 1))
def test_the_envelope_is_the_largest_of_all_lines(pairs, true_positives):
    """Looking up one line says the same as trying all of them."""
    claim = TradeOff(epsilons=tuple(e for e, _ in pairs), deltas=tuple(d for _, d in pairs))
    lines = [0.0]
    for loss, delta in pairs:
        lines += [(true_positives - delta) * math.exp(-loss), 1 - delta - (1 - true_positives) * math.exp(loss)]
    assert claim.least_false_positives(true_positives) == pytest.approx(max(lines), abs=1e-7)


def test_fewer_pairs_claim_less():
    """One pair of a claim allows every attack that all pairs allow."""
    whole = gaussian(1.0)
    one = TradeOff(epsilons=whole.epsilons[200:201], deltas=whole.deltas[200:201])
    for true_positives in np.linspace(0, 1, 101):
        assert one.least_false_positives(true_positives) <= whole.least_false_positives(true_positives) + 1e-12


def test_no_pairs_claim_nothing():
    """Every attack is allowed."""
    assert TradeOff(epsilons=(), deltas=()).least_false_positives(1.0) == 0.0


def test_where_pld_cannot_answer_rdp_does():
    """Zero-concentrated privacy of rho = 1/2 is looser than the Gaussian with mu = 1, but no empty claim."""
    claim = of_history((ZeroConcentrated(rho=0.5),))
    assert 0.03 < claim.least_false_positives(0.5) < ndtr(-1.0)


def test_epsilon_of_a_gaussian_is_the_accountants():
    """For mu = 1 at delta 1e-5: 4.3772, as the PLD accountant says."""
    assert gaussian_epsilon(1.0, delta=1e-5) == pytest.approx(4.3772, abs=1e-4)


def test_extreme_gaussians_have_an_epsilon():
    """None apart: 0; mu beyond 100: infinity."""
    assert gaussian_epsilon(-1.0, delta=1e-5) == 0.0
    assert gaussian_epsilon(1e-9, delta=1e-5) == 0.0
    assert gaussian_epsilon(math.inf, delta=1e-5) == math.inf
    assert 4000 < gaussian_epsilon(99.0, delta=1e-5) < math.inf  # 99^2 / 2 = 4900 and 4.3 deviations more
