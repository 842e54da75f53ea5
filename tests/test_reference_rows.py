"""The rows of the reference file that are not compositions of Poisson-sampled Gaussians, one test for each kind.

Accepted: PLD and RDP within 0.5 % of the file, and what is reported is at least 0.999 of the analytic value. The other
rows, those with `segments`, are in `test_accounting`.
"""

import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from common.errors import AccountingError
from common.privacy.accounting import check, epsilon, pure_epsilon, renyi_epsilon
from common.privacy.events import (
    FixedSizeGaussian,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    SelectedRun,
    TreeGaussian,
    ZeroConcentrated,
)

REFERENCE = Path(
    os.environ.get(
        "DISCREET_REFERENCE", Path(__file__).resolve().parents[1].parent / "shared" / "reference" / "epsilons.json"
    )
)
ROWS = {row["id"]: row for row in json.loads(REFERENCE.read_text())["rows"]} if REFERENCE.exists() else {}
KINDS = {
    "laplace": r"laplace-b.*",
    "sampled laplace": "sub-laplace",
    "zcdp": "zcdp-.*",
    "gdp": "gdp-mu.*",
    "fixed size": "swor-.*",
    "tree": "tree-.*",
    "randomized response": "rr",
    "tuning": "hptune-.*",
    "dropout": "dropout-.*",
    "bandmf": "bandmf-b16-k5",
    "amplified bandmf": "bandmf-amplified",
    "fixed batches": "fixedbatch-.*",
}
NOT_COVERED = {  # distributed discrete noise: no event of its own yet
    "ddg-n10-z10.0-d100000-s4096-T100",
    "ddg-n10-z10.0-d100000-s256-T100",
    "ddg-n5-z20.0-d1000000-s16384-T200",
}

pytestmark = pytest.mark.skipif(not ROWS, reason=f"{REFERENCE} is not there; DISCREET_REFERENCE names another place")


def rows_of(kind):
    """Parametrise a test with the rows of one kind."""
    return pytest.mark.parametrize("name", [name for name in ROWS if re.fullmatch(KINDS[kind], name)])


def plain(mu):
    """The Gaussian mechanism with `mu` sensitivities to one standard deviation of noise."""
    return (SampledGaussian(noise_multiplier=1 / mu, sampling_rate=Fraction(1), steps=1),)


def near(value):
    """Within 0.5 %."""
    return pytest.approx(value, rel=0.005)


def test_every_row_is_tested_once():
    """Each row has segments, or is of exactly one kind here, or is listed as not covered."""
    kinds = {name: [k for k, pattern in KINDS.items() if re.fullmatch(pattern, name)] for name in ROWS}
    for name, row in ROWS.items():
        assert len(kinds[name]) + ("segments" in row) + (name in NOT_COVERED) == 1
    assert len(ROWS) == 56


@rows_of("laplace")
def test_laplace_rows(name):
    """PLD and RDP agree with the file, neither exceeds basic composition, which alone answers at delta 0."""
    row = ROWS[name]
    scale, steps = re.fullmatch(r"laplace-b(.*)-k(.*)", name).groups()
    history = (SampledLaplace(scale=float(scale), sampling_rate=Fraction(1), steps=int(steps)),)
    assert pure_epsilon(history) == row["eps"]["basic_composition"]  # k / b
    if row["delta"] > 0:
        verdict = check(history, delta=row["delta"])
        assert verdict.pld == near(row["eps"]["dp_accounting_pld"])
        assert verdict.rdp == near(row["eps"]["dp_accounting_rdp"])
        assert verdict.reported <= row["eps"]["basic_composition"]


@rows_of("sampled laplace")
def test_sampled_laplace_rows(name):
    """PLD agrees with the file; RDP, which dp-accounting has no formula for, is bounded through randomised response."""
    row = ROWS[name]
    history = (SampledLaplace(scale=1.0, sampling_rate=Fraction(1, 10), steps=50),)
    verdict = check(history, delta=row["delta"])
    assert verdict.pld == near(row["eps"]["dp_accounting_pld"])
    assert verdict.pld <= verdict.rdp <= pure_epsilon(history)
    assert pure_epsilon(history) == pytest.approx(50 * math.log(1 + 0.1 * (math.e - 1)))  # 50 log(1 + q (e^(1/b) - 1))


@rows_of("zcdp")
def test_zero_concentrated_rows(name):
    """RDP agrees with the file and is reported; a Gaussian of the same rho costs no more."""
    row = ROWS[name]
    verdict = check((ZeroConcentrated(rho=float(name.removeprefix("zcdp-"))),), delta=row["delta"])
    assert verdict.rdp == verdict.reported == near(row["eps"]["dp_accounting_rdp"])
    assert row["eps"]["tight_if_gaussian(mu=sqrt(2rho))"] <= verdict.reported
    assert verdict.reported <= row["eps"]["rho+2sqrt(rho log 1/delta)"]
    assert verdict.reported_by == "RDP"
    assert "PLD cannot answer: it does not know zcdp events" in verdict.unanswered


@rows_of("gdp")
def test_gaussian_differential_privacy_rows(name):
    """mu-GDP is the plain Gaussian mechanism with noise 1 / mu, by the definition of Dong et al. 2019."""
    row = ROWS[name]
    verdict = check(plain(float(name.removeprefix("gdp-mu"))), delta=row["delta"])
    assert verdict.pld == near(row["eps"]["dp_accounting_pld"])
    assert verdict.rdp == near(row["eps"]["dp_accounting_rdp"])
    assert verdict.reported >= row["eps"]["analytic"] * 0.999


@rows_of("fixed size")
def test_fixed_size_rows(name):
    """340 of 3400 units drawn without replacement, 300 times: RDP agrees with the file, PLD says that it cannot."""
    row = ROWS[name]
    history = (FixedSizeGaussian(noise_multiplier=2.0, sample_size=340, source_size=3400, steps=300),)
    assert renyi_epsilon(history, delta=row["delta"]) == near(row["eps"]["dp_accounting_rdp"])
    with pytest.raises(AccountingError, match="PLD cannot answer: it does not know fixed-size-gaussian events"):
        epsilon(history, delta=row["delta"])


@rows_of("tree")
def test_tree_rows(name):
    """One of 2048 leaves is in log2(2048) + 1 = 12 nodes: sensitivity sqrt(12); RDP agrees with the file."""
    row = ROWS[name]
    verdict = check((TreeGaussian(noise_multiplier=8.0, leaves=2048),), delta=row["delta"])
    assert verdict.reported == near(row["eps"]["dp_accounting_rdp"])
    assert verdict.reported >= row["eps"]["analytic_sens_sqrt(height)"] * 0.999
    same = plain(math.sqrt(row["eps"]["height"]) / 8.0)  # as one Gaussian
    assert verdict.rdp == pytest.approx(renyi_epsilon(same, delta=row["delta"]))
    assert epsilon(same, delta=row["delta"]) == near(row["eps"]["analytic_sens_sqrt(height)"])


@rows_of("randomized response")
def test_randomized_response_rows(name):
    """The truth is told with 3/4, three times as often as the other answer: epsilon is log 3, even at delta 0."""
    history = (RandomizedResponse(noise_parameter=0.5, buckets=2),)
    assert ROWS[name]["delta"] == 0
    assert pure_epsilon(history) == pytest.approx(math.log(3), rel=1e-12)
    verdict = check(history, delta=1e-10)
    assert verdict.reported == pytest.approx(math.log(3), rel=1e-6)
    assert verdict.reported <= math.log(3) * (1 + 1e-12)
    assert "it does not know randomized-response events" in verdict.unanswered


@rows_of("tuning")
def test_tuning_rows(name):
    """The best of ten expected runs: RDP agrees with the file, more than one run and less than ten cost."""
    row = ROWS[name]
    run = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 100), steps=1000)
    distribution = "poisson" if name == "hptune-Poisson" else "geometric"  # a truncated binomial of shape 1
    verdict = check((SelectedRun(run=(run,), mean_runs=10.0, distribution=distribution),), delta=row["delta"])
    single, tuned = row["eps"]["single"], row["eps"]["tuned"]
    assert verdict.reported == near(tuned["dp_accounting_rdp"])
    assert single["dp_accounting_rdp"] < verdict.reported < renyi_epsilon((run.times(10),), delta=row["delta"])


@rows_of("dropout")
def test_dropout_rows(name):
    """Noise of variance 10^2 is drawn in ten equal shares: without d of them sigma is 10 sqrt(1 - d / 10)."""
    row = ROWS[name]
    missing = int(name.removeprefix("dropout-").removesuffix("of10"))
    noise = 10 * math.sqrt(1 - missing / 10)
    history = (SampledGaussian(noise_multiplier=noise, sampling_rate=Fraction(1), steps=100),)
    assert noise == pytest.approx(row["eps"]["eff_z"])
    verdict = check(history, delta=row["delta"])
    assert verdict.pld == near(row["eps"]["analytic"])
    assert verdict.reported >= row["eps"]["analytic"] * 0.999


@rows_of("bandmf")
def test_banded_matrix_rows(name):
    """A strategy matrix of sensitivity s and noise sigma is one plain Gaussian with mu = s / sigma."""
    # the matrix mechanism is one Gaussian mechanism, adaptively too: Denisov et al. 2022, Theorem 2.1
    row = ROWS[name]
    verdict = check(plain(row["eps"]["mu"]), delta=row["delta"])
    assert verdict.pld == near(row["eps"]["dp_accounting_pld"])
    assert verdict.rdp == near(row["eps"]["dp_accounting_rdp"])
    assert verdict.reported >= row["eps"]["analytic"] * 0.999
    # five participations, 16 steps apart, on a column of norm |c|: sqrt(5) |c| = 3.1176, and sigma = 3.1176 / mu = 8
    assert 3.1176 / row["eps"]["mu"] == pytest.approx(8.0, rel=1e-3)


@rows_of("amplified bandmf")
def test_amplified_banded_matrix_rows(name):
    """Cyclic Poisson sampling: 16 parts, each sampled at 500 * 16 / 50000 = 0.16 for 2000 / 16 = 125 steps, sigma 2."""
    # a unit is in one part only, so that it sees 125 Poisson-sampled Gaussians: Choquette-Choo et al. 2023, Theorem 4
    row = ROWS[name]
    history = (SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(500 * 16, 50000), steps=2000 // 16),)
    verdict = check(history, delta=row["delta"])
    assert verdict.pld == near(row["eps"]["dp_accounting_pld"])
    assert verdict.rdp == near(row["eps"]["dp_accounting_rdp"])


@rows_of("fixed batches")
def test_fixed_batches_rows(name):
    """A record is in one batch an epoch, nothing being random: a plain Gaussian each, mu = sqrt(epochs) / sigma."""
    row = ROWS[name]
    noise, epochs = row["params"]["noise_multiplier"], row["params"]["epochs"]
    history = (SampledGaussian(noise_multiplier=noise, sampling_rate=Fraction(1), steps=epochs),)
    verdict = check(history, delta=row["delta"])
    assert verdict.pld == near(row["eps"]["analytic"])
    assert verdict.reported >= row["eps"]["analytic"] * 0.999
    one = plain(math.sqrt(epochs) / noise)
    assert epsilon(one, delta=row["delta"]) == pytest.approx(verdict.reported, rel=1e-9)
