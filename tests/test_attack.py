"""`discreet attack`: models of halves by the real trainer, pictures from updates, and the page that shows them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.config import Scenario, load, parse
from common.errors import BadInputError, DataMissingError
from common.messages import Mechanism
from common.privacy.odds import most_hits
from common.shards import Shard
from discreet import app
from simulations.attack import page
from simulations.attack.attack import attacked
from simulations.attack.inversion import update_of
from simulations.attack.roc import hits_at
from simulations.attack.shadows import Shadows, cast, halved
from simulations.attack.stages import silent
from simulations.datasets import Dataset
from simulations.report_facts import odds

SCENARIOS = Path(__file__).resolve().parents[1] / "simulations" / "scenarios"
DIGITS = SCENARIOS / "digits.toml"
TINY = """
run = {{name = "tiny", rounds = {rounds}}}
data = {{dataset = "digits", clients = 2}}
model = {{name = "cnn", activation = "tanh"}}
training = {{batch_size = 20, local_steps = 10, learning_rate = 0.3}}
engine = {{kind = "sequential"}}
privacy = {privacy}
"""
NOTHING = '{unit = "none"}'


def tiny(privacy: str, *, rounds: int) -> Scenario:
    """Two clients who train a lot on little."""
    return parse(TINY.format(privacy=privacy, rounds=rounds))


def noise(records: int = 80) -> Dataset:
    """Pictures of noise with classes at random: what is known of them was learnt by heart."""
    random = np.random.default_rng(7)

    def shard(count: int) -> Shard:
        features = random.random((count, 1, 8, 8), dtype=np.float32)
        return Shard(features_ND=features, labels_N=random.integers(0, 10, count))

    return Dataset(train=shard(records), test=shard(20))


def made(scenario: Scenario, *, models: int, workers: int = 1) -> Shadows:
    """Models of halves, made here."""
    return cast(scenario, noise(), models=models, is_noised=True, workers=workers, is_done=lambda: None)


def test_half_the_clients_keep_batches_and_sampling_rates():
    """Ten clients of 143 become five of 143: rate 72/143 and the noise of the scenario's own plan."""
    smaller = halved(load(DIGITS))
    assert (smaller.data.clients, smaller.server.cohort, smaller.training.batch_size) == (5, 5, 72)


def test_one_client_has_half_a_batch():
    """One client has half of its records, and half a batch keeps the rate."""
    smaller = halved(load(DIGITS, ["data.clients=1", "server.cohort=1", "server.max_participations=120"]))
    assert (smaller.data.clients, smaller.training.batch_size) == (1, 36)


def test_each_model_has_a_half_of_its_own():
    """Every model is trained on half of the records, and two halves are as independent as coins.

    Two halves of 80 share 20 on average, with a standard deviation of 2.25 (hypergeometric); five of them have 6e-7.
    """
    is_in_MN = made(tiny(NOTHING, rounds=1), models=4).is_in_MN
    assert is_in_MN.sum(axis=1).tolist() == [40] * 4
    shared = is_in_MN.astype(int) @ is_in_MN.T.astype(int)
    assert all(8 < shared[i, j] < 32 for i in range(4) for j in range(i))


def test_models_do_not_depend_on_how_many_processes_train():
    """Without privacy two processes give what one gives, bit for bit."""
    scenario = tiny(NOTHING, rounds=1)
    one, two = made(scenario, models=2), made(scenario, models=2, workers=2)
    assert (one.confidence_MN == two.confidence_MN).all()
    assert (one.is_in_MN == two.is_in_MN).all()


def test_a_model_that_learnt_by_heart_is_attacked():
    """Both attacks tell members from others of models that overfit; nothing here is random once the seed is fixed.

    By chance an area from 40 and 40 has a standard error of 0.065: above 0.9 it is with a probability of 4e-10.
    """
    found = attacked(made(tiny(NOTHING, rounds=20), models=4))
    assert found.loss.area > 0.9
    assert found.likelihood_ratio.area > 0.9
    assert found.loss_hits[0].value > 0.5


def test_a_private_model_is_under_its_limit():
    """At ε = 1 the same attacks on the same data stay under the limit that every attack has.

    The lower end of the interval passes a limit that was just met with a probability of 2.5 %; these attacks are far
    from theirs. An area above 0.75 is four standard errors from blind guessing: 6e-5.
    """
    shadows = made(tiny("{epsilon = 1.0}", rounds=3), models=4)
    account = shadows.plan.accounts[0]
    bounds = odds(account.history(account.participations), delta=shadows.plan.delta, reported=account.epsilon)
    found = attacked(shadows)
    for curve in (found.loss, found.likelihood_ratio):
        for rate in (0.05, 0.1, 0.2):
            assert hits_at(curve, rate, members=40, others=40).low < most_hits(bounds.pairs, rate) < 3 * rate
        assert curve.area < 0.75


def test_an_unprotected_update_is_the_gradient():
    """It is what its record's loss falls along, and the private one is clipped to its bound before the noise."""
    scenario = tiny(NOTHING, rounds=1)
    record = Shard(features_ND=noise().train.features_ND[:1], labels_N=noise().train.labels_N[:1])
    plain = update_of(scenario, record, mechanism=None).astype(np.float64)
    quiet = Mechanism(sampling_rate=1, noise_multiplier=1e-9, max_grad_norm=0.5, steps=1)
    clipped = update_of(scenario, record, mechanism=quiet).astype(np.float64)
    assert np.linalg.norm(clipped) == pytest.approx(0.5, rel=1e-4)
    assert np.linalg.norm(plain) > 0.5
    assert plain @ clipped / np.linalg.norm(plain) / np.linalg.norm(clipped) == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One small attack on the demo: what was found, and its page."""
    scenario = load(DIGITS, ["run.rounds=1", "server.max_participations=1", "engine.kind=sequential"])
    path = tmp_path_factory.mktemp("attack") / "new" / "page.html"
    return page.make(scenario, shadows=2, pictures=2, out=path, stage=silent)


def test_a_digit_comes_back_from_an_unprotected_update_only(shown):
    """Every digit comes back with an error below 0.01, and none under noise, which an even grey beats or nearly.

    The private update's cosine with the gradient is about 1 / (σ √P) = 0.005, near the 0.004 of two random directions.
    """
    findings, _ = shown
    assert len(findings.pictures) == 2
    for picture in findings.pictures:
        assert picture.error < 0.01
        assert picture.private_error > 0.05
        assert picture.private_error > 0.5 * picture.blind_error > picture.error
        assert picture.found_CHW.min() >= findings.pixels.low
        assert picture.found_CHW.max() <= findings.pixels.high


def test_the_page_says_what_it_is_and_shows_both(shown):
    """It calls itself an illustration that verifies nothing, names the audit, and holds curves and pictures."""
    _, path = shown
    text = path.read_text()
    assert "This page is an illustration. It verifies nothing." in text
    assert "discreet audit" in text
    assert "nearly unknown" in text
    assert text.count("<svg") == 1
    assert text.count("data:image/png;base64,") == 6  # two digits, three faces
    assert "limit at the run" in text


def test_the_page_asks_no_network_for_anything(shown):
    """No address but those of names, no script; every picture is within the page."""
    text = shown[1].read_text()
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text


def test_json_says_what_was_found(shown):
    """Both attacks on both kinds of models, with intervals, beside the limit."""
    table = json.loads(json.dumps(shown[0].to_json()))
    assert table["illustration"] is True
    assert table["is_verification"] is False
    membership = table["attacks"]["membership_inference"]
    assert (membership["models"], membership["records"], membership["members"]) == (3, 1430, 715)
    for way in ("unprotected", "private"):
        for attack in ("loss", "likelihood_ratio"):
            hits = membership[way][attack]["true_positive_rate"]
            assert hits.keys() == {"0.01", "0.001"}
            assert all(one["low"] <= one["value"] <= one["high"] for one in hits.values())
    assert 0.01 < membership["limit"]["true_positive_rate"]["0.01"] < 1
    assert len(table["attacks"]["gradient_inversion"]["pictures"]) == 2


def test_without_privacy_only_the_contrast_is_shown(tmp_path):
    """A scenario of unit `none` has no limit and no private side; one without pictures says why there are none."""
    scenario = load(
        SCENARIOS / "digits.toml",
        [
            "run.rounds=1", "server.max_participations=1", "privacy.unit=none", "privacy.epsilon=",
            "model.normalization=batch", "engine.kind=sequential",
        ],
    )  # fmt: skip
    findings, path = page.make(scenario, shadows=2, out=tmp_path / "page.html", stage=silent)
    assert findings.private is None
    assert findings.limit is None
    assert findings.pictures == ()
    text = path.read_text()
    assert "There are no pictures here" in text
    assert "limit at the run" not in text
    assert "any attack at all" not in text
    assert findings.to_json()["attacks"]["gradient_inversion"]["left_out_because"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["privacy.unit=client", "privacy.delta=1e-3"], "expected 'record' or 'none', got 'client'"),
        (["data.dataset=mnist", "privacy.unit_column=writer"], "single records, and epsilon is about persons"),
    ],
)
def test_units_other_than_records_are_refused(tmp_path, changes, words):
    """One line says why, and nothing is written."""
    with pytest.raises(BadInputError, match=words):
        page.make(load(DIGITS, changes), shadows=2, out=tmp_path / "new" / "page.html", stage=silent)
    assert not list(tmp_path.iterdir())


def test_another_file_is_not_written_over(tmp_path):
    """A file that is no page stays as it is."""
    path = tmp_path / "ledger.db"
    path.write_text("precious")
    with pytest.raises(BadInputError, match="an earlier report or page"):
        page.make(load(DIGITS), shadows=2, out=path, stage=silent)
    assert path.read_text() == "precious"


def test_missing_data_are_named(tmp_path):
    """A data set that is not there is reported as everywhere else."""
    scenario = load(SCENARIOS / "mnist-silos.toml", [f"data.path={tmp_path}"])
    with pytest.raises(DataMissingError, match="train-images"):
        page.make(scenario, shadows=2, out=tmp_path / "page.html", stage=silent)


def test_help_says_that_it_is_an_illustration(capsys):
    """Whoever asks for help reads what it is not."""
    with pytest.raises(SystemExit):
        app(["attack", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "an illustration, never a verification" in words
