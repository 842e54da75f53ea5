"""The verdict of an audit, over simulated runs: honest ones pass, each planted bug is found."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from observed_canaries import DELTA, Run, half_uncharged, of_last_round_only

from common.audit.charges import added_up, bookkeeping
from common.audit.check import FALSE_ALARMS
from common.audit.conformance import conformance
from common.audit.gaussian import Separation, least_mu, separation
from common.audit.observations import Claim, Observations, scores
from common.audit.verdict import CONFIDENCE, in_words, judge, refuse_too_few
from common.errors import BadInputError
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian

HONEST = Run(target_epsilon=4.0)
SLOW = Run(target_epsilon=4.0, rounds=120, sampling_rate=Fraction(1, 10))
ONE = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1), steps=1)


def verdict_of(run, *, seed=1, claim=None):
    return judge(run.observed(np.random.default_rng(seed)), claim or run.claimed())


def refuted(findings):
    return [part.name for part in (*findings.checks, *findings.layers) if part.is_refuted]


def check(findings, name):
    return next(part for part in findings.checks if part.name == name)


BUGS = {
    "no noise": ({"noise": 0.0}, {"noise", "noise on the body", "Gaussian"}),
    "half the noise": ({"noise": 0.5}, {"noise", "noise on the body"}),
    "a quarter of the noise": ({"noise": 0.25}, {"noise", "noise on the body", "Gaussian"}),
    "no clipping": ({"contribution": 10.0}, {"contribution", "sampling rate", "Gaussian"}),
    "twice the rate": ({"rate": 2.0}, {"contribution", "sampling rate"}),
    "the same noise each round": ({"is_stale": True}, {"freshness"}),
}


@pytest.mark.parametrize(
    "run", [HONEST, SLOW, replace(HONEST, target_epsilon=1.0), replace(HONEST, target_epsilon=8.0)],
    ids=["epsilon 4, 40 rounds", "epsilon 4, 120 rounds", "epsilon 1, 40 rounds", "epsilon 8, 40 rounds"],
)  # fmt: skip
@pytest.mark.parametrize("bug", BUGS)
def test_each_bug_is_refuted(bug, run):
    """By what measures it, at least; 1000 canaries in two views. The nearest (rate) is 9 deviations from its limit."""
    what, named = BUGS[bug]
    findings = verdict_of(replace(run, **what))
    assert named <= set(refuted(findings))
    assert findings.verdict.startswith("REFUTED by ")


@pytest.mark.parametrize("target_epsilon", [1.0, 4.0, 8.0])
def test_an_accountant_that_forgets_is_refuted(target_epsilon):
    """By composition, where it begins anew each round; by charges, where rounds are missing."""
    run = replace(HONEST, target_epsilon=target_epsilon)
    assert "composition" in refuted(verdict_of(run, claim=of_last_round_only(run.claimed())))
    assert "charges" in refuted(verdict_of(run, claim=half_uncharged(run.claimed())))


def test_210_honest_runs_raise_no_alarm():
    """The design bounds the chance of one alarm at 210e-4 = 2 %; most checks are far from their limits."""
    shapes = [
        replace(HONEST, target_epsilon=1.0, canaries=60, rounds=20),
        replace(HONEST, target_epsilon=4.0, canaries=60, rounds=5, steps=4),
        replace(HONEST, target_epsilon=8.0, canaries=200, rounds=10, sampling_rate=Fraction(1)),
    ]
    for seed in range(210):
        run = shapes[seed % 3]
        observed = run.observed(np.random.default_rng(seed))
        findings = judge(observed, run.claimed())
        assert findings.verdict == "not refuted", (seed, refuted(findings))
        assert findings.lower_bounds.gaussian <= 1.5 * run.target_epsilon  # at 95 %, so 5 % are above once


def test_false_alarms_add_up_to_what_is_promised():
    """All shares together are 1e-4."""
    assert sum(FALSE_ALARMS.values()) == pytest.approx(1 - CONFIDENCE, rel=1e-9)


def test_limits_of_noise_are_what_chi_square_says():
    """One view, one canary out, one round, sigma 1: x^2 below 1e-5's lower half is |x| < 6.27e-6, above is 4.56."""
    for size, is_outside in ((6.2e-6, True), (6.4e-6, False), (4.55, False), (4.58, True)):
        observed = Observations(moves_KRM=np.full((1, 1, 1), size), is_in_KM=np.array([[False]]), steps=1)
        (noise,) = conformance(observed, ONE)
        assert (noise.name, noise.is_refuted) == ("noise", is_outside)


def test_limits_of_contribution_are_the_normals_without_sampling():
    """One canary in, one round, q = 1, sigma 1: at 1e-5 the limit is 1 + 4.265, two-sided 1 +- 4.417."""
    for move, names in ((5.26, []), (5.27, ["contribution"]), (5.43, ["contribution", "sampling rate"]),
                        (-3.41, []), (-3.43, ["sampling rate"])):  # fmt: skip
        observed = Observations(moves_KRM=np.full((1, 1, 1), move), is_in_KM=np.array([[True]]), steps=1)
        assert [found.name for found in conformance(observed, ONE) if found.is_refuted] == names


def test_the_same_batch_in_every_round_is_refuted_by_how_far_apart_canaries_come():
    """Half of them 120 times, half never: 60^2 about the mean, where 120 (3.4^2 + 1/4) = 1417 is expected: 3.54."""
    rng, (views, rounds, canaries) = np.random.default_rng(5), (1, 120, 800)
    is_in_KM = np.ones((views, canaries), bool)
    mechanism = SampledGaussian(noise_multiplier=3.4, sampling_rate=Fraction(1, 2), steps=1)
    anew_KRM = rng.random((views, rounds, canaries)) < 1 / 2
    same_KRM = np.repeat(anew_KRM[:, :1], rounds, axis=1)
    noise_KRM = 3.4 * rng.normal(size=(views, rounds, canaries))
    found = []
    for hits_KRM in (anew_KRM, same_KRM):
        observations = Observations(moves_KRM=hits_KRM + noise_KRM, is_in_KM=is_in_KM, steps=1)
        found += [check for check in conformance(observations, mechanism) if check.name == "spread"]
    anew, same = found
    assert not anew.is_refuted
    assert anew.measured == pytest.approx(1.0, abs=0.3)  # six standard errors, (2 / 800)^0.5 each
    assert same.is_refuted
    assert same.measured == pytest.approx(3.54, abs=0.5)


def test_cohorts_of_another_size_are_refuted():
    """1,000 chances at 1/4: 250 +- 13.7, of which 4.4 standard deviations are 60 either way; 500 is twice the rate."""
    mechanism = SampledGaussian(noise_multiplier=50.0, sampling_rate=Fraction(1, 4), steps=1)
    nobody = Observations(moves_KRM=np.zeros((1, 2, 3)), is_in_KM=np.zeros((1, 3), bool), steps=1)
    for asked, is_refuted in ((250, False), (300, False), (320, True), (500, True), (180, True)):
        found = conformance(replace(nobody, cohorts=(asked, 1_000)), mechanism)
        assert [check.is_refuted for check in found if check.name == "cohorts"] == [is_refuted]


def test_few_hits_raise_no_alarm():
    """Hardly any noise, a rate of 1/1000 and 5 steps: 1 hit has a chance of 0.5 %, 3 of 1e-8."""
    mechanism = SampledGaussian(noise_multiplier=0.001, sampling_rate=Fraction(1, 1000), steps=1)
    for hits, is_outside in ((0, False), (1, False), (3, True)):
        moves = np.zeros((1, 5, 1))
        moves[0, :hits] = 1.0
        observed = Observations(moves_KRM=moves, is_in_KM=np.array([[True]]), steps=1)
        found = {part.name: part.is_refuted for part in conformance(observed, mechanism)}
        assert found["contribution"] is is_outside


def test_noise_that_two_views_share_is_not_fresh():
    """Each view's own rounds are independent; the second view's noise is the first's, rounds in another order."""
    noise_RM = np.random.default_rng(3).normal(size=(4, 60))
    moves = np.stack([noise_RM, noise_RM[::-1]])
    observed = Observations(moves_KRM=moves, is_in_KM=np.zeros((2, 60), bool), steps=1)
    assert {found.name: found.is_refuted for found in conformance(observed, ONE)} == {"noise": False, "freshness": True}


def test_noise_that_is_taken_back_is_not_fresh():
    """Two rounds: the second has the first's noise with the other sign."""
    noise_M = np.random.default_rng(4).normal(size=40)
    observed = Observations(moves_KRM=np.stack([[noise_M, -noise_M]]), is_in_KM=np.zeros((1, 40), bool), steps=1)
    found = {part.name: part for part in conformance(observed, ONE)}["freshness"]
    assert found.is_refuted
    assert found.measured == pytest.approx(-1.0)


def test_more_charges_than_orders_are_no_fault():
    """Answers that were lost are charged all the same."""
    claim = HONEST.claimed()
    more = replace(claim, events=(*claim.events, claim.events[0]), epsilon=claim.epsilon * 1.05)
    assert verdict_of(HONEST, claim=more).verdict == "not refuted"


def test_charges_of_another_mechanism_are_refuted():
    """The plan's noise was not what was charged: twice as much is charged for one of the rounds."""
    claim = HONEST.claimed()
    other = replace(claim.events[0], noise_multiplier=2 * claim.events[0].noise_multiplier)
    findings = verdict_of(HONEST, claim=replace(claim, events=(other, *claim.events[1:])))
    assert refuted(findings) == ["charges"]


def test_charges_are_added_up_by_noise_and_rate():
    """Two of 3 steps and one of 4 are 10 steps; another rate stays apart."""
    three = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=3)
    rare = replace(three, sampling_rate=Fraction(1, 3))
    assert added_up((three, rare, three, replace(three, steps=4))) == (replace(three, steps=10), rare)


def test_composition_is_checked_where_prv_cannot_answer():
    """Noise of 0.05 without sampling has a privacy loss of about 4 * 200: the run's own accountant answers for all."""
    loud = SampledGaussian(noise_multiplier=0.05, sampling_rate=Fraction(1), steps=1)
    claim = Claim(epsilon=9000.0, delta=DELTA, events=(loud,) * 4, mechanism=loud, orders=4)

    figure = bookkeeping(claim)[1].expected
    for claimed, is_refuted in ((figure, False), (figure / 2, True)):
        found = bookkeeping(replace(claim, epsilon=claimed))[1]
        assert (found.name, found.is_refuted) == ("composition", is_refuted)


def test_too_few_canaries_are_refused_with_a_number_that_would_do():
    """20 for epsilon 8; with the number that is named there is a verdict."""
    run = replace(HONEST, target_epsilon=8.0, canaries=10)
    with pytest.raises(BadInputError, match=r"expected at least \d+ for so large an epsilon, got 20") as refused:
        verdict_of(run)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    refuse_too_few(run.claimed().events, canaries=least)
    with pytest.raises(BadInputError):
        refuse_too_few(run.claimed().events, canaries=least - 1)


def test_a_claim_that_no_number_of_canaries_refutes_is_refused():
    """Epsilon in the hundreds."""
    loud = SampledGaussian(noise_multiplier=0.05, sampling_rate=Fraction(1), steps=1)
    with pytest.raises(BadInputError, match="any number of canaries"):
        refuse_too_few((loud,), canaries=10_000)


def test_a_run_without_a_claim_gets_bounds_and_no_verdict():
    """Unit none: nothing but the canaries moves the pad; all guesses are right, and noise there is none."""
    is_in = np.arange(1000).reshape(1, 1000) % 3 == 0
    observed = Observations(moves_KRM=np.repeat(is_in[:, None].astype(float), 5, axis=1), is_in_KM=is_in, steps=1)
    findings = judge(observed, Claim(epsilon=None, delta=DELTA, events=(), mechanism=None, orders=5))
    assert findings.verdict == "no claim to refute"
    assert (findings.is_refuted, findings.checks) == (False, ())
    assert findings.lower_bounds.f_dp > 8
    assert findings.lower_bounds.gaussian == 100.0


def test_findings_are_plain_values():
    """JSON without infinities, even where there is no noise at all, with the keys that readers go by."""
    found = verdict_of(replace(HONEST, noise=0.0)).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["verdict"] == found["verdict"]
    assert set(found) == {
        "claimed_epsilon", "delta", "canaries", "included", "guesses", "correct", "lower_bounds",
        "lower_bounds_confidence", "layers", "checks", "verdict", "confidence",
    }  # fmt: skip
    assert set(found["lower_bounds"]) == {"f_dp", "steinke", "gaussian"}
    assert set(found["layers"][0]) == {"name", "kind", "is_refuted", "says"}
    assert set(found["checks"][0]) == {"name", "is_refuted", "measured", "expected", "low", "high", "says"}


def test_findings_are_told_in_words():
    """A sentence each, and never that anything is verified."""
    honest, wrong = in_words(verdict_of(HONEST)), in_words(verdict_of(replace(HONEST, noise=0.25)))
    assert honest[0] == "The claim of epsilon 4 at delta 1e-05 is not refuted by this attack."
    assert wrong[0].startswith("The claim of epsilon 4 at delta 1e-05 is REFUTED by noise, noise on the body")
    assert any(sentence.startswith("The noise on excluded canaries is 0.25") for sentence in wrong)
    assert all(sentence.endswith(".") for sentence in honest + wrong)


def test_scores_are_likelihood_ratios():
    """One step, q = 1/2, sigma 1, x = 1: log(1/2 + e^(1/2) / 2); without sampling x - 1/2; two rounds add up."""
    half = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=1)
    observed = Observations(moves_KRM=np.ones((1, 2, 1)), is_in_KM=np.array([[True]]), steps=1)
    assert scores(observed, half)[0, 0] == pytest.approx(2 * np.log(0.5 + np.exp(0.5) / 2), rel=1e-9)
    assert scores(observed, ONE)[0, 0] == pytest.approx(1.0)
    assert scores(observed, None)[0, 0] == 2.0


def test_scores_of_several_steps_sum_over_hits():
    """Two steps, q = 1/2, sigma 1, x = 1: 1/4 + e^(1/4) / 2 + e^0 / 4, the exponents being (2 x k - k^2) / 4."""
    two = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=2)
    observed = Observations(moves_KRM=np.ones((1, 1, 1)), is_in_KM=np.array([[True]]), steps=2)
    assert scores(observed, two)[0, 0] == pytest.approx(np.log(0.5 + np.exp(0.25) / 2), rel=1e-9)


@pytest.mark.parametrize("move", [-1e308, -1e9, 0.0, 1e308])
@pytest.mark.parametrize("noise", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rate", [Fraction(1, 10**9), Fraction(1, 2), Fraction(1)])
def test_scores_are_finite(move, noise, rate):
    """Whatever moves, and however little noise there should be."""
    mechanism = SampledGaussian(noise_multiplier=noise, sampling_rate=rate, steps=3)
    observed = Observations(moves_KRM=np.full((1, 2, 1), move), is_in_KM=np.array([[True]]), steps=3)
    assert np.isfinite(scores(observed, mechanism)).all()


def test_movements_that_are_no_numbers_are_refused():
    """And coins that do not fit."""
    with pytest.raises(ValueError, match=r"0\.bias: expected finite"):
        Observations(
            moves_KRM=np.zeros((1, 1, 1)), is_in_KM=np.array([[True]]), body_KRD={"0.bias": np.full((1, 1, 1), np.nan)},
            steps=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match="expected 1 views of 2 canaries"):
        Observations(moves_KRM=np.zeros((1, 1, 2)), is_in_KM=np.array([[True]]), steps=1)


def test_the_estimate_is_as_sure_as_it_says():
    """For mu = 1, 30 in and 30 out: of 4000 lower bounds at 95 %, 200 +- 14 are above 1; five deviations pass."""
    rng = np.random.default_rng(5)
    is_in = np.arange(60).reshape(1, 60) < 30
    above = 0
    for _ in range(4000):
        moves = rng.normal(size=(1, 1, 60)) + is_in[:, None]
        found = separation(Observations(moves_KRM=moves, is_in_KM=is_in, steps=1))
        above += least_mu(found, level=0.05) > 1
    assert above <= 200 + 5 * 14


def test_no_noise_has_an_infinite_estimate():
    """And none where included canaries do not move either."""
    assert least_mu(Separation(t=np.inf, standard_error=0.0, freedom=9), level=0.05) == np.inf
    assert least_mu(Separation(t=0.0, standard_error=0.0, freedom=9), level=0.05) == 0.0


def test_a_claim_is_the_epsilon_of_all_rounds():
    """What the sample claims here is what the accountant says of 40 rounds, so that honest runs are honest."""
    claim = HONEST.claimed()
    assert claim.epsilon == epsilon(added_up(claim.events), delta=DELTA)
