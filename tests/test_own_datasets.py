"""A consortium's data in a simulation: files of this machine, a public fifth, and what was declared of them.

The hospitals are looked for where DISCREET_DATA says, or in shared/data beside the repository.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import Scenario, load, parse
from common.errors import DataMissingError, ScenarioError
from common.readers.records import public_test
from server.observer import Observer
from simulations import datasets, single_run
from simulations.partition import declared_records, split

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DISCREET_DATA") or ROOT.parent / "shared" / "data")
HOSPITALS = ROOT / "simulations" / "scenarios" / "heart-disease.toml"

needs_hospitals = pytest.mark.skipif(not (DATA / "heart-disease").is_dir(), reason=f"no heart-disease in {DATA}")

REST = """
run = {name = "x", rounds = 2}
training = {batch_size = 4, local_steps = 1}
privacy = {noise_multiplier = 1.0, delta = 1e-3}
engine = {kind = "sequential", device = "cpu"}
"""
TABLE = """
[data.table]
label = "sick"
classes = [0, 1]
person = "patient"
columns = [{name = "age", center = 50, scale = 10}, {name = "row"}]
"""


def rows(folder: Path, name: str, count: int, *, persons: int = 10) -> None:
    """Write rows of which every third is of class 1; `row` tells them apart."""
    lines = [f"p{row % persons},{40 + row},{int(row % 3 == 0)},{row}" for row in range(count)]
    (folder / name).write_text("\n".join(["patient,age,sick,row", *lines]))


def scenario(folder: Path, *overrides: str, clients: int = 2, files: str = "", path: str = "") -> Scenario:
    where = f'path = "{path or folder}"\n' + (f"files = {files}\n" if files else "")
    return parse(f'{REST}[data]\ndataset = "csv"\nclients = {clients}\n{where}{TABLE}', overrides=overrides)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of data, whatever the machine's environment says."""
    monkeypatch.delenv("DISCREET_DATA", raising=False)
    return tmp_path


def test_a_file_is_split_after_a_public_fifth_was_set_aside(here):
    """Of 100 rows 20 are the test set; 80 are dealt, as was declared before any was read."""
    rows(here, "a.csv", 100)
    given = scenario(here, "data.records=100", path=str(here / "a.csv"))
    loaded = datasets.load(given)
    assert (len(loaded.train), len(loaded.test)) == (80, 20)
    assert declared_records(given) == (40, 40)
    assert [len(part) for part in split(given, loaded)] == [40, 40]
    seen = np.concatenate([loaded.train.features_ND[:, 1], loaded.test.features_ND[:, 1]])
    assert sorted(seen.tolist()) == list(range(100)), "each row once"
    assert loaded.train.units_N is None


def test_each_class_has_its_share_of_the_public_test_set(here):
    """34 of 100 rows are of class 1, so 7 of 20."""
    rows(here, "a.csv", 100)
    test = datasets.load(scenario(here, "data.records=100", path=str(here / "a.csv"))).test
    assert int(test.labels_N.sum()) == 7


def test_each_file_is_a_client_of_the_natural_partition(here):
    """Whose records lie in one file stay together, and each file gives a fifth to the test set."""
    rows(here, "a.csv", 50)
    rows(here, "b.csv", 30)
    given = scenario(here, "data.partition=natural", files='["a.csv", "b.csv"]')
    loaded = datasets.load(given)
    assert sorted(declared_records(given)) == [24, 40]
    parts = split(given, loaded)
    assert sorted(len(part) for part in parts) == [24, 40]
    assert loaded.owner_N is not None
    assert all(len(set(loaded.owner_N[part])) == 1 for part in parts)


def test_files_may_be_dealt_as_one(here):
    """With partition `iid` all files together are one heap."""
    rows(here, "a.csv", 50)
    rows(here, "b.csv", 30)
    given = scenario(here, "data.records=80", clients=4, files='["a.csv", "b.csv"]')
    assert declared_records(given) == (16, 16, 16, 16)
    assert len(datasets.load(given).train) == 64


def test_the_environment_names_the_folder_of_files_but_not_a_file(here, monkeypatch):
    """DISCREET_DATA is where a scenario's `files` are; `path` alone is a file that the scenario means."""
    (here / "elsewhere").mkdir()
    rows(here / "elsewhere", "a.csv", 50)
    rows(here, "b.csv", 30)
    monkeypatch.setenv("DISCREET_DATA", str(here / "elsewhere"))
    assert len(datasets.load(scenario(here, "data.records=50", files='["a.csv"]')).train) == 40
    assert len(datasets.load(scenario(here, "data.records=30", path=str(here / "b.csv"))).train) == 24


def test_a_fifth_of_the_persons_is_set_aside_where_they_are_the_unit(here):
    """Of ten persons two are the test set with all their rows: nobody is in both, and clients get four each."""
    rows(here, "a.csv", 100)
    given = scenario(here, "data.persons=10", "privacy.unit_column=patient", path=str(here / "a.csv"))
    loaded = datasets.load(given)
    assert declared_records(given) == (4, 4)
    assert (len(loaded.train), len(loaded.test)) == (80, 20)
    trained, tested = ({int(row) % 10 for row in part.features_ND[:, 1]} for part in (loaded.train, loaded.test))
    assert not trained & tested
    assert len(tested) == 2
    assert loaded.test.units_N is None


def test_a_person_of_one_file_is_nobody_of_another(here):
    """Hospitals number their patients from 1 on: `p1` here and `p1` there are two."""
    rows(here, "a.csv", 50)
    rows(here, "b.csv", 50)
    given = scenario(here, "data.persons=20", "privacy.unit_column=patient", files='["a.csv", "b.csv"]')
    assert declared_records(given) == (8, 8)
    units_N = datasets.load(given).train.units_N
    assert units_N is not None
    assert len(set(units_N.tolist())) == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.records=99",), "expected 99 records, the declared number that the plan counts on, got 100"),
        (("data.persons=9", "privacy.unit_column=patient"), "expected 9 persons, the declared number"),
    ],
)
def test_other_numbers_than_declared_are_refused(here, overrides, message):
    """The plan was made from the declared number before any row was read."""
    rows(here, "a.csv", 100)
    with pytest.raises(DataMissingError, match=message):
        datasets.load(scenario(here, *overrides, path=str(here / "a.csv")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "data.records: expected the number of records"),
        (("privacy.unit_column=patient",), "data.persons: expected"),
    ],
)
def test_a_simulation_needs_the_number_that_its_plan_counts_on(here, overrides, message):
    """In a deployment each policy declares its own; here the scenario has to."""
    with pytest.raises(ScenarioError, match=message):
        declared_records(scenario(here, *overrides, path=str(here / "a.csv")))


def test_a_missing_file_is_named(here):
    """By its whole path."""
    with pytest.raises(DataMissingError, match=str(here / "a.csv")):
        datasets.load(scenario(here, "data.records=9", path=str(here / "a.csv")))


def test_a_deployments_test_set_is_all_of_its_file(here):
    """The coordinator's file is public: nothing of it is trained on."""
    rows(here, "test.csv", 30)
    test = public_test(scenario(here, path=str(here / "test.csv")).data)
    assert len(test) == 30
    assert test.features_ND.shape == (30, 2)


def test_a_csv_scenario_runs(here):
    """From the file to the figures, with differential privacy and a ledger that knows the data by their lineage."""
    rows(here, "a.csv", 100)
    given = scenario(here, "data.records=100", "data.lineage=wards", path=str(here / "a.csv"))
    outcome = single_run.simulate(given, out=here / "run", ledger=None, watcher=Observer())
    assert outcome.rounds == 2
    assert outcome.metrics.keys() >= {"accuracy", "loss", "f1", "auc"}
    assert outcome.epsilon is not None


def test_a_scenario_of_images_runs(here):
    """Pictures of two classes, each in a folder of its own, learnt by the network that images default to."""
    for name in ("dark", "light"):
        (here / "pictures" / name).mkdir(parents=True)
        for number in range(15):
            grey = number if name == "dark" else 255 - number
            Image.new("L", (8, 8), grey).save(here / "pictures" / name / f"{number:02}.png")
    layout = '[data.images]\nsize = [8, 8]\nclasses = ["dark", "light"]\ncenter = 0.5\nscale = 0.5\n'
    where = f'[data]\ndataset = "images"\npath = "{here / "pictures"}"\nclients = 2\nrecords = 30\n'
    outcome = single_run.simulate(parse(REST + where + layout), out=here / "run", ledger=None, watcher=Observer())
    assert outcome.rounds == 2


def test_a_scenario_of_digits_reads_no_table(here):
    """Importing pandas takes a second to import: who needs none of it does not wait."""
    code = (
        "import sys; from pathlib import Path; from common.config import load; from simulations import datasets\n"
        f"datasets.load(load(Path({str(ROOT / 'simulations/scenarios/digits.toml')!r})))\n"
        "import client.own_data, client.proposal_report\n"
        "print([name for name in ('pandas', 'PIL', 'torch', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# --- the hospitals ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospitals() -> Scenario:
    return load(HOSPITALS, [f"data.path={DATA}", "engine.kind=sequential", "engine.device=cpu"])


def test_the_hospitals_scenario_declares_all_it_needs(hospitals):
    """Four hospitals, 13 columns that become 22 numbers, records protected with an epsilon of at most 2."""
    table = hospitals.data.table
    assert table is not None
    assert (len(table.columns), table.width) == (13, 22)
    assert hospitals.privacy.unit == "record"
    assert hospitals.privacy.epsilon == 2.0


@needs_hospitals
def test_the_hospitals_are_the_clients(hospitals):
    """920 records: 184 are the public test set, each hospital keeps four fifths of its own."""
    loaded = datasets.load(hospitals)
    assert (len(loaded.train), len(loaded.test)) == (736, 184)
    # of 303, 294, 123, 200: what is left of each class by fifths, give or take one
    sizes = sorted(len(part) for part in split(hospitals, loaded))
    assert all(abs(size - whole * 0.8) <= 2 for size, whole in zip(sizes, (123, 200, 294, 303), strict=True))


@needs_hospitals
def test_the_hospitals_learn_together(hospitals, tmp_path):
    """0.847 on average over six seeds (0.842 to 0.859), 0.857 without privacy; always `ill` would be 0.554."""
    outcome = single_run.simulate(hospitals, out=tmp_path / "run", ledger=None, watcher=Observer())
    assert outcome.metrics["accuracy"] >= 0.78
    assert outcome.metrics["auc"] >= 0.85
    assert outcome.epsilon is not None
    assert outcome.epsilon["max"] <= 2.0
