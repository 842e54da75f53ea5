"""Preflight checks, each at its edge."""

import math

import pytest

from common.config import Scenario, parse
from common.privacy.odds import largest_posterior, most_hits
from common.tasks import TASKS
from simulations.preflight import Finding, findings, ledger
from simulations.single_plan import plan_of


def scenario(*overrides: str) -> Scenario:
    """Return a scenario with nothing to warn of: ten clients with 143 digits each."""
    text = """
    run = {name = "small", rounds = 100}
    data = {dataset = "digits", clients = 10}
    training = {batch_size = 20, local_steps = 1}
    privacy = {noise_multiplier = 2.0}
    """
    return parse(text, overrides=overrides)


def found(*overrides: str) -> dict[str, Finding]:
    """Return the findings of a scenario, by their checks."""
    given = scenario(*overrides)
    return {finding.check: finding for finding in findings(given, plan_of(given))}


def warned(*overrides: str) -> set[str]:
    """Return the checks that warn."""
    return {finding.check for finding in found(*overrides).values() if finding.severity == "warn"}


def test_a_sound_scenario_is_not_warned_of():
    """All checks but `persons`, which digits do not have, answer, and all are content."""
    assert warned() == set()
    assert len(found()) == 12


def test_every_warning_has_a_remedy():
    """Whoever is warned is told what to do."""
    bad = found(
        "training.batch_size=143", "privacy.delta=0.001", "server.spare_rounds=0", "privacy.noise_multiplier=0.5"
    )
    warnings = [finding for finding in bad.values() if finding.severity == "warn"]
    assert len(warnings) == 4
    assert all(finding.remedy for finding in warnings)


def test_a_delta_above_a_tenth_of_one_in_n_is_warned_of():
    """With 143 records, 1/1430 = 6.993e-4: 6.9e-4 is fine, 7e-4 is not, and 5e-4 is proposed."""
    assert "delta" not in warned("privacy.delta=6.9e-4")
    assert "delta" in warned("privacy.delta=7e-4")
    assert found("privacy.delta=7e-4")["delta"].remedy == "Set privacy.delta to 0.0005."


def test_a_sampling_rate_above_a_fifth_is_warned_of():
    """Of 143 records 28 are less than a fifth, 29 are more, and with all of them nothing is sampled."""
    assert "sampling" not in warned("training.batch_size=28")  # 28/143 = 0.196
    assert "sampling" in warned("training.batch_size=29")  # 29/143 = 0.203
    assert "hides nothing" in found("training.batch_size=143")["sampling"].reason


def test_noise_that_is_longer_than_any_signal_is_warned_of():
    """Here the ratio is z sqrt(10000) / (20 sqrt(100 * 10)) = z / 6.325: 6.3 is just below the signal, 6.4 above."""
    assert "noise" not in warned("privacy.noise_multiplier=6.3")
    assert "noise" in warned("privacy.noise_multiplier=6.4")


def test_the_noise_on_a_population_is_compared_with_its_cohort():
    """Unit client, cohort 2 of 10, 25 rounds: z 100 / (2 * 5) = 10 z, so that noise 0.09 passes and 0.11 does not."""
    of_clients = ("privacy.unit=client", "server.cohort=2", "run.rounds=25", "privacy.delta=0.01")
    assert "noise" not in warned(*of_clients, "privacy.noise_multiplier=0.09")
    assert "noise" in warned(*of_clients, "privacy.noise_multiplier=0.11")


def test_an_epsilon_above_ten_is_warned_of():
    """Odds of e^10 to 1 promise next to nothing."""
    assert "epsilon" not in warned("privacy.noise_multiplier=", "privacy.epsilon=10.0")
    assert "epsilon" in warned("privacy.noise_multiplier=", "privacy.epsilon=10.1")


def test_the_odds_of_epsilon_log_three():
    """Even odds become 3 to 1; at 1 % false alarms at most 3 % are found, and at 50 % 1 - 0.5 / 3."""
    assert largest_posterior(math.log(3)) == pytest.approx(0.75)
    assert most_hits([(math.log(3), 0.0)]) == pytest.approx(0.03)
    assert most_hits([(math.log(3), 0.0)], 0.5) == pytest.approx(1 - 0.5 / 3)
    assert most_hits([(math.inf, 0.0)]) == 1.0


def test_persons_with_several_records_are_warned_of():
    """MNIST names its writers, 111 records each; one record as the unit does not protect them, a person does."""
    mnist = ("data.dataset=mnist", "privacy.delta=1e-6")
    assert round(TASKS["mnist"].train_records / TASKS["mnist"].unit_columns["writer"]) == 111
    assert "a writer has 111 of them" in found(*mnist)["persons"].reason
    assert "persons" in warned(*mnist)
    of_persons = (*mnist, "privacy.unit_column=writer", "training.batch_size=5")
    assert found(*of_persons)["persons"].severity == "ok"
    assert "persons" not in found()


def test_a_run_without_a_spare_round_is_warned_of():
    """One spare is enough."""
    assert "spare-rounds" in warned("server.spare_rounds=0")
    assert "spare-rounds" not in warned("server.spare_rounds=1")


def test_participations_that_nobody_asks_for_are_warned_of():
    """A hundred rounds of 5 of 10 clients ask each client 50 times; noise for 51 is too much."""
    half = "server.cohort=5"
    assert "participations" not in warned(half, "server.max_participations=50")
    assert "participations" in warned(half, "server.max_participations=51")


def test_cohorts_claim_amplification_for_a_population_only():
    """A server that picks clients itself knows who takes part."""
    assert "saves no ε" in found("server.cohort=5")["cohorts"].reason
    secret = found("privacy.unit=client", "server.cohort=2", "privacy.delta=0.01")["cohorts"]
    assert "amplification counts" in secret.reason


def test_weights_by_declared_sizes_are_safe():
    """Under unit record they are post-processing; under unit client the scenario is refused when it is read."""
    assert found("server.weighting=records")["weighting"].severity == "ok"


def test_noised_metrics_are_named():
    """Withheld, or with their noise."""
    assert "withheld" in found()["metrics"].reason
    assert "noise of 20 records" in found("privacy.metrics=noisy")["metrics"].reason


def test_the_generator_of_noise_is_named_on_every_device():
    """On CUDA too noise is drawn on the CPU, from a key of the operating system."""
    reason = found("engine.device=cuda")["randomness"].reason
    assert "'cuda'" in reason
    assert "AES-256" in reason


def test_half_precision_is_named():
    """With bf16 the plan says what stays in single precision; without, nothing needs to be said."""
    assert "bf16" in found("training.precision=bf16")["precision"].reason
    assert "precision" not in found()


def test_a_run_without_privacy_says_so_and_nothing_else():
    """Unit none has one finding."""
    (only,) = found("privacy.unit=none", "privacy.noise_multiplier=").values()
    assert (only.check, only.severity) == ("unit", "warn")


def preview(*, out: list[tuple[int, int]], last: int, admitted: int = 9) -> dict[str, object]:
    """Return as much of a ledger's preview as its check looks at."""
    return {
        "accounts": [{"admitted": admitted, "wanted": 9}],
        "runs_out": [{"client": client, "round": number} for client, number in out],
        "last_possible_round": last,
    }


LEDGERS = {
    "all fits": (preview(out=[], last=7), "ok", "All that is planned fits into what is left."),
    "a spare round does not": (preview(out=[], last=7, admitted=8), "warn", "not all spare rounds fit"),
    "one": (preview(out=[(3, 5)], last=7), "warn", "Client 3 runs out in round 5 of 7; from then on it refuses."),
    "together": (preview(out=[(0, 5), (1, 5)], last=4), "warn", "2 clients run out in round 5 of 7; from then on they"),
    "the end": (preview(out=[(0, 5), (1, 5)], last=4), "warn", "After round 4 too few are left to go on."),
    "in turn": (
        preview(out=[(0, 2), (4, 3), (1, 3), (2, 6)], last=7),
        "warn",
        "it refuses. After it client 4 in round 3, client 1 in round 3 and 1 more.",
    ),
    "nothing left": (preview(out=[(0, 1), (1, 1)], last=0), "refuse", "The run ends before anything is trained."),
}


@pytest.mark.parametrize("case", LEDGERS)
def test_what_a_ledger_admits_is_said(case):
    """Who runs out first, in which round, and when the run ends."""
    seen, severity, words = LEDGERS[case]
    finding = ledger(seen, rounds=7)
    assert finding.severity == severity
    assert words in finding.reason
