"""A scenario's `[data]`: a consortium declares its records once, publicly, and every mistake is named."""

import pytest

from common.config import Scenario, dump, parse
from common.errors import ScenarioError
from common.model_tables import Cnn, Mlp
from common.tasks import set_aside, task_of

REST = """
run = {name = "x", rounds = 2}
training = {batch_size = 8}
privacy = {epsilon = 2.0}
"""
CSV = """
[data]
dataset = "csv"
path = "wards.csv"
clients = 3
records = 100
persons = 30
[data.table]
label = "sick"
classes = ["no", ["maybe", "yes"]]
person = "patient"
columns = [{name = "age", center = 50, scale = 10}, {name = "ward", values = ["A", "B", "C"]}, {name = "beds"}]
[data.csv]
separator = ";"
"""
NPZ = '[data]\ndataset = "npz"\nclients = 3\n[data.arrays]\nshape = [9, 8]\nclasses = 2\n'
IMAGES = '[data]\ndataset = "images"\nclients = 3\n[data.images]\nsize = [9, 8]\nchannels = 3\nclasses = ["a", "b"]\n'


def scenario(data: str, *overrides: str) -> Scenario:
    return parse(REST + data, overrides=overrides)


def test_a_table_declares_how_many_numbers_a_record_becomes():
    """A number is one, a category as many as it has values: 1 + 3 + 1."""
    task = task_of(scenario(CSV).data)
    assert (task.width, task.image_shape, task.classes, task.positive) == (5, None, 2, 1)
    assert not task.is_text


def test_a_fifth_of_the_declared_records_and_persons_is_no_training():
    """Of 100 records and 30 persons a fifth, rounded up, is the public test set."""
    task = task_of(scenario(CSV).data)
    assert task.train_records == 80
    assert task.unit_columns == {"patient": 24}
    assert (set_aside(100), set_aside(6)) == (20, 2)  # 6/5 = 1.2


def test_nothing_is_declared_of_numbers_in_a_deployment():
    """Each organisation's policy declares its own: a scenario may leave them out."""
    task = task_of(scenario(CSV, "data.records=", "data.persons=").data)
    assert task.train_records is None
    assert task.unit_columns == {"patient": None}


def test_arrays_of_two_dimensions_are_grey_images():
    """(9, 8) is one channel; (3, 9, 8) three; (9,) is flat."""
    assert task_of(scenario(NPZ).data).image_shape == (1, 9, 8)
    assert task_of(scenario(NPZ.replace("[9, 8]", "[3, 9, 8]")).data).image_shape == (3, 9, 8)
    assert task_of(scenario(NPZ.replace("[9, 8]", "[9]") + '[model]\nname = "mlp"').data).width == 9
    assert task_of(scenario(IMAGES).data).image_shape == (3, 9, 8)


def test_the_model_follows_from_the_records():
    """Rows are learnt by `mlp` and images by `cnn`, unless the scenario names another."""
    assert scenario(CSV).model == Mlp(name="mlp")
    assert scenario(IMAGES).model == Cnn(name="cnn")


@pytest.mark.parametrize("data", [CSV, NPZ, IMAGES])
def test_a_declaration_comes_back_from_its_text(data):
    """What a run's folder keeps is what was read, and can be hashed."""
    read = scenario(data)
    assert parse(dump(read)) == read
    assert hash(parse(dump(read))) == hash(read)


def test_the_ledger_knows_data_by_their_lineage():
    """Two scenarios of csv are two budgets where they say so; a known data set has its own name always."""
    assert scenario(CSV).data.lineage_name == "csv"
    assert scenario(CSV, "data.lineage=wards").data.lineage_name == "wards"


BAD = [
    (CSV, ("data.table=",), "data.table: expected what a record looks like, as [data.table], got none; add it"),
    (NPZ, ("data.dataset=csv",), "data.table: expected what a record looks like"),
    (CSV, ("data.images={size = [4, 4], classes = ['a', 'b']}",), "data.images: expected none of it for 'csv'"),
    (NPZ, ("data.csv={}",), "data.csv: expected none of it for 'npz'; remove it"),
    (NPZ, ("data.dataset=digits",), "data.arrays: expected none of it for 'digits'; remove it"),
    (NPZ, ("data.arrays=", "data.dataset=digits", "data.lineage=x"), "data.lineage: expected none of it for 'digits'"),
    (NPZ, ("data.persons=3",), "data.persons: expected none where no column tells persons apart"),
    (NPZ, ("data.records=0",), "data.records: expected greater than 0, got 0"),
    (NPZ, ("data.partition=natural",), "data.files: expected 3 of them, one a client"),
    (NPZ, ("data.files=['a', 'a']",), "data.files: expected each name once"),
    (NPZ, ("model.name=mlp",), "model.name: expected 'cnn' or 'cnn-opacus' for an image data set, got 'mlp'"),
    (CSV, ("model.name=cnn",), "model.name: expected 'mlp' for flat features, got 'cnn'"),
    (CSV, ("model.name=transformer",), "model.name: expected 'mlp' for flat features, got 'transformer'"),
    (CSV, ("model.layers=[0]",), "model.layers.0: expected greater than 0, got 0"),
    (CSV, ("privacy.unit_column=age",), "privacy.unit_column: expected 'patient' for 'csv', got 'age'"),
    (CSV, ("privacy.unit_column=patient", "data.partition=dirichlet"), "data.partition: expected 'iid'"),
]  # fmt: skip
IN_TABLE = [
    ('label = "sick"', 'label = "age"', "data.table.label: expected a column that is not learnt from, got 'age'"),
    ('label = "sick"', 'labl = "sick"', "data.table.labl: unknown key; did you mean data.table.label"),
    ("center = 50", "centre = 50", "centre: unknown key; did you mean data.table.columns.0.center"),
    ("scale = 10", "scale = 0", "data.table.columns.0.scale: expected greater than 0, got 0"),
    ("center = 50", "center = nan", "data.table.columns.0.center: expected a finite number"),
    ('name = "ward"', 'name = "age"', "data.table.columns: expected each name once"),
    ('name = "ward"', 'name = "ward", center = 1', "data.table.columns.1: expected values, or center and scale"),
    ('["A", "B", "C"]', '["A", "A"]', "data.table.columns.1.values: expected each of them once, got one twice"),
    ('["A", "B", "C"]', '["A", 1]', "data.table.columns.1.values: expected numbers or texts, got both"),
    ('["A", "B", "C"]', "[1, 1.0]", "data.table.columns.1.values: expected each of them once"),
    ('["A", "B", "C"]', "[true]", "data.table.columns.1.values.0: expected numbers or texts, got something else"),
    ('["A", "B", "C"]', "[inf]", "data.table.columns.1.values.0: expected finite numbers"),
    ('["A", "B", "C"]', "[]", "data.table.columns.1.values: "),
    ('["no", ["maybe", "yes"]]', '["no", ["no", "yes"]]', "data.table.classes: expected each of them once"),
    ('["no", ["maybe", "yes"]]', '["no"]', "data.table.classes: "),
    ('person = "patient"', 'person = "age"', "data.table.person: expected a column that is neither"),
    ('person = "patient"', 'missing = "drop"', "data.table.missing: expected 'refuse', or a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "overrides", "message"), BAD)
def test_a_bad_declaration_is_refused_by_key_expected_and_got(data, overrides, message):
    """One error that names the key, before any record is read."""
    with pytest.raises(ScenarioError) as error:
        scenario(data, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(("old", "new", "message"), IN_TABLE)
def test_a_bad_table_is_refused_by_key_expected_and_got(old, new, message):
    """The place in the list of columns is part of the key."""
    assert old in CSV
    with pytest.raises(ScenarioError) as error:
        scenario(CSV.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize("columns", ["[" + ", ".join(f'{{name = "c{i}"}}' for i in range(4097)) + "]", "[]"])
def test_a_record_is_bounded(columns):
    """A coordinator cannot ask for a record that fills a node's memory."""
    with pytest.raises(ScenarioError, match=r"data\.table\.columns"):
        scenario(CSV.replace(CSV[CSV.index("[{name") : CSV.index("[data.csv]")], columns + "\n"))
    with pytest.raises(ScenarioError, match=r"data\.arrays"):
        scenario(NPZ.replace("[9, 8]", "[3, 4096, 4096]"))
