"""An organisation's own records: read as declared, or refused by file, column and row, and never by a value."""

import io
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from client.own_data import layout_digest, open_source
from common.config import parse
from common.data_table import Data
from common.errors import DataMissingError, SettingsError
from common.shards import Shard
from common.sources import Source
from common.sources import parse as parse_source

REST = 'run = {name = "x", rounds = 2}\ntraining = {batch_size = 8}\nprivacy = {unit = "none"}\n'
WARDS = """
[data]
dataset = "csv"
clients = 3
[data.table]
label = "sick"
classes = ["no", ["maybe", "yes"]]
person = "patient"
columns = [
    {name = "age", center = 50, scale = 10},
    {name = "ward", values = ["A", "B"]},
    {name = "grade", values = [1, 2]},
]
"""
ROWS = """\
patient,age,ward,grade,sick,remark
p1,60,A,1,no,"one, two"
p2,45.5,B,2.0,yes,
p1, 50 ,A,2,maybe,x
"""  # fmt: skip
EXPECTED = [[1, 1, 0, 1, 0], [-0.45, 0, 1, 0, 1], [0, 1, 0, 0, 1]]  # (60-50)/10; (45.5-50)/10; 0; then one-hot
DIGITS = '[data]\ndataset = "digits"\nclients = 3\n'
TEXTS = '[data]\ndataset = "sms-spam"\nclients = 3\n[model]\nname = "transformer"\n'
GREY = '[data]\ndataset = "npz"\nclients = 3\n[data.arrays]\nshape = [4, 5]\nclasses = 3\ncenter = 0.5\nscale = 0.25\n'
SCANS = """
[data]
dataset = "images"
clients = 3
[data.images]
size = [4, 5]
classes = ["healthy", "ill"]
center = 0.5
scale = 0.5
person = "patient"
"""


def data(text: str) -> Data:
    return parse(REST + text).data


def described(path: Path, kind: str, **keys: object) -> Source:
    return parse_source({"kind": kind, "path": str(path), **keys}, folder=path.parent)


def opened(source: Source, text: str, *, records: int, unit_column: str | None = None) -> Shard:
    """Open a source; where nothing is pinned, as its owner does who agrees to this scenario."""
    pinned = source if source.layout else source.model_copy(update={"layout": layout_digest(data(text))})
    return open_source(pinned, scenario_data=data(text), records=records, unit_column=unit_column)


def csv(folder: Path, text: str = ROWS, **keys: object) -> Source:
    path = folder / "wards.csv"
    path.write_text(text, encoding="utf-8")
    return described(path, "csv", **keys)


def refused(source: Source, text: str, *, records: int = 3, unit_column: str | None = None) -> str:
    """What the owner is told; it is bad input, and names the file."""
    with pytest.raises((DataMissingError, SettingsError)) as error:
        opened(source, text, records=records, unit_column=unit_column)
    return str(error.value)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_become_numbers_in_the_order_of_the_file(tmp_path):
    """Numbers are scaled with the declared constants, categories are one-hot, classes come in the declared order."""
    shard = opened(csv(tmp_path), WARDS, records=3)
    assert shard.features_ND == pytest.approx(np.array(EXPECTED, np.float32))
    assert shard.features_ND.dtype == np.float32
    assert shard.labels_N.tolist() == [0, 1, 1]
    assert shard.labels_N.dtype == np.int64
    assert shard.units_N is None


def test_a_person_has_the_same_number_in_all_rows(tmp_path):
    """Two persons are in three rows, and two is the number that is declared."""
    shard = opened(csv(tmp_path), WARDS, records=2, unit_column="patient")
    assert shard.units_N is not None
    assert shard.units_N.tolist() == [0, 1, 0]


def test_a_file_is_written_as_its_owner_writes(tmp_path):
    """Semicolons, decimal commas, another order, other names, and no row of names at all, say the same."""
    text = "no;60,0;1;A;p1\nyes;45,5;2;B;p2\nmaybe;50;2;A;p1\n"
    keys = {"separator": ";", "decimal": ",", "header": ["krank", "Alter", "grade", "ward", "patient"]}
    source = csv(tmp_path, text, **keys, rename={"sick": "krank", "age": "Alter"})
    shard = opened(source, WARDS, records=3)
    assert shard.features_ND == pytest.approx(np.array(EXPECTED, np.float32))
    assert shard.labels_N.tolist() == [0, 1, 1]


def test_a_byte_order_mark_and_empty_lines_are_no_records(tmp_path):
    """What spreadsheets put before and after the rows is passed over."""
    assert len(opened(csv(tmp_path, "\ufeff" + ROWS + "\n\n"), WARDS, records=3)) == 3


def test_what_is_missing_becomes_the_declared_number(tmp_path):
    """A missing number becomes the centre; a missing category none of its ones."""
    text = ROWS.replace("45.5,B", "?,")
    layout = WARDS + 'missing = 0\nmissing_marks = ["", "?"]\n'
    shard = opened(csv(tmp_path, text), layout, records=3)
    assert shard.features_ND[1].tolist() == [0, 0, 0, 0, 1]


def test_a_label_may_be_a_number(tmp_path):
    """`1` and `1.0` are one class, as files write them."""
    layout = WARDS.replace('["no", ["maybe", "yes"]]', "[0, [1, 2]]")
    text = ROWS.replace(",no,", ",0,").replace(",yes,", ",1.0,").replace(",maybe,", ",2,")
    assert opened(csv(tmp_path, text), layout, records=3).labels_N.tolist() == [0, 1, 1]


BAD_ROWS = {
    "label outside the classes": ((",yes,", ",SECRET,"), "column 'sick', row 2: expected one of the declared classes"),
    "no label": ((",yes,", ",,"), "column 'sick', row 2: expected a label, got none"),
    "category outside the values": (("B,2.0", "SECRET,2.0"), "column 'ward', row 2: expected one of the declared"),
    "number outside the values": (("A,2,", "A,777,"), "column 'grade', row 3: expected one of the declared values"),
    "text in a number column": (("45.5", "SECRET"), "column 'age', row 2: expected a finite number"),
    "NaN": (("45.5", "nan"), "column 'age', row 2: expected a finite number"),
    "infinite": (("45.5", "inf"), "column 'age', row 2: expected a finite number"),
    "too large for single precision": (("45.5", "1e300"), "column 'age', row 2: expected a number that single"),
    "missing": (("45.5", ""), "column 'age', row 2: expected a value, got none"),
    "missing category": (("B,2.0", ",2.0"), "column 'ward', row 2: expected a value, got none"),
    "missing column": (("age,ward", "years,ward"), "expected a column 'age', got none. Say in `rename`"),
    "duplicate column": (("remark", "age"), "expected a column 'age', got 2 of that name"),
    "too many cells": (("p2,", "p2,SECRET,777,"), "line 3 has 8 cells, more than the first"),
    "open quotation mark": (('"one, two"', '"SECRET'), "it does not read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_rows_that_are_not_as_declared_are_refused_without_their_values(change, message, tmp_path):
    """The owner is told file, column and row; no cell is quoted, not even by the cause of the error."""
    assert change[0] in ROWS
    source = csv(tmp_path, ROWS.replace(*change))
    with pytest.raises(DataMissingError) as error:
        opened(source, WARDS, records=3)
    assert message in str(error.value)
    assert str(error.value).startswith(source.path)
    assert not any(secret in str(error.value) for secret in ("SECRET", "777"))
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_all_bad_rows_are_counted(tmp_path):
    """The first is named and the others counted, so that a column of the wrong kind is seen at once."""
    text = ROWS.replace("45.5", "x").replace(" 50 ", "y")
    assert "column 'age', row 2 and 1 more rows: " in refused(csv(tmp_path, text), WARDS)


def test_a_point_is_no_decimal_comma(tmp_path):
    """1.234 may be a thousand and more where numbers have commas: it is not guessed."""
    source = csv(tmp_path, ROWS.replace(",", ";").replace("one; two", "x"), separator=";", decimal=",")
    assert "column 'age', row 2: expected a number with a decimal comma" in refused(source, WARDS)


def test_a_row_without_its_person_is_refused(tmp_path):
    """All such rows would be one person."""
    said = refused(csv(tmp_path, ROWS.replace("p2,", ",")), WARDS, records=2, unit_column="patient")
    assert "column 'patient', row 2: expected a person, got none" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got an empty file"), (ROWS.splitlines()[0], "expected records, got none"), ("\n\n", "got an empty file")],
)
def test_an_empty_file_is_refused(text, message, tmp_path):
    """Nothing to train on is no training."""
    assert message in refused(csv(tmp_path, text), WARDS)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """What is not UTF-8 is not guessed at, and what is compressed is not unpacked."""
    for content in ("Jürgen,1".encode("latin-1"), b"\x1f\x8b\x08\x00SECRET\xff"):
        (tmp_path / "wards.csv").write_bytes(content)
        assert "expected a text in UTF-8" in refused(described(tmp_path / "wards.csv", "csv"), WARDS)


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    """A folder is no file either."""
    assert f"{tmp_path / 'no.csv'}: expected a file, got none" in refused(described(tmp_path / "no.csv", "csv"), WARDS)
    assert f"{tmp_path}: expected a file, got none" in refused(described(tmp_path, "csv"), WARDS)


def test_names_that_do_not_fit_the_file_are_refused(tmp_path):
    """As many names as columns, and only columns of the scenario have other names."""
    assert "header: expected the names of all 6 columns" in refused(csv(tmp_path, header=["age", "sick"]), WARDS)
    assert "rename: expected columns of the scenario, got 'aeg'" in refused(csv(tmp_path, rename={"aeg": "x"}), WARDS)


# --- numbers, kinds, and what was agreed ------------------------------------------------------------------------------


def test_another_number_of_records_than_the_policy_declares_is_refused(tmp_path):
    """The number is public and every epsilon counts on it; both numbers are told, to the owner."""
    said = refused(csv(tmp_path), WARDS, records=4)
    assert "expected 4 records, the number that the policy declares, got 3" in said


def test_another_number_of_persons_than_the_policy_declares_is_refused(tmp_path):
    """Three rows are of two persons."""
    said = refused(csv(tmp_path), WARDS, records=3, unit_column="patient")
    assert "expected 3 persons in column 'patient', the number that the policy declares, got 2" in said


def test_records_of_another_kind_than_the_scenarios_are_refused(tmp_path):
    """A table is not learnt by a scenario of images; arrays as a model takes them always are."""
    assert "data.kind: expected 'images' or 'npz' for a scenario of 'images', got 'csv'" in refused(
        csv(tmp_path), SCANS
    )
    assert "data.kind: expected 'npz' for a scenario of 'digits', got 'csv'" in refused(csv(tmp_path), DIGITS)
    arrays(tmp_path / "a.npz", features=np.array(EXPECTED, np.float32), labels=np.array([0, 1, 1]))
    shard = opened(described(tmp_path / "a.npz", "npz"), WARDS, records=3)
    assert shard.features_ND == pytest.approx(np.array(EXPECTED, np.float32))


def test_a_scenario_that_declares_other_records_than_agreed_is_refused_unread(tmp_path):
    """Else a coordinator could ask, by what it declares, which values there are: a refusal is an answer."""
    agreed = layout_digest(data(WARDS))
    assert len(opened(csv(tmp_path, layout=agreed), WARDS, records=3)) == 3
    other = WARDS.replace('["A", "B"]', '["A"]')
    source = csv(tmp_path, layout=agreed)
    Path(source.path).unlink()
    said = refused(source, other)
    assert f"data.layout: expected {agreed}, as agreed; the scenario declares" in said  # not: no such file
    assert f'layout = "{layout_digest(data(other))}"' in said


OWN_KINDS = [("csv", "WARDS"), ("parquet", "WARDS"), ("images", "SCANS"), ("npz", "GREY"), ("npz", "WARDS")]


@pytest.mark.parametrize(("kind", "declared"), OWN_KINDS)
def test_without_a_pin_nothing_that_a_scenario_declares_is_read(tmp_path, kind, declared):
    """Not even whether the file is there: the owner reads what to pin, and that nothing was read."""
    text = globals()[declared]
    with pytest.raises(SettingsError, match=r"none is pinned.*Nothing was read") as error:
        open_source(described(tmp_path / "gone", kind), scenario_data=data(text), records=3, unit_column=None)
    assert f'layout = "{layout_digest(data(text))}"' in str(error.value)


def test_arrays_of_a_data_set_with_a_name_need_no_pin(tmp_path):
    """Its shape and its ten classes are constants of this code: a coordinator has nothing to choose."""
    arrays(tmp_path / "a.npz", features=np.zeros((3, 1, 8, 8), np.float32), labels=np.array([0, 9, 4]))
    source = described(tmp_path / "a.npz", "npz")
    assert len(open_source(source, scenario_data=data(DIGITS), records=3, unit_column=None)) == 3
    with pytest.raises(DataMissingError):
        open_source(described(tmp_path / "a.npz", "npz"), scenario_data=data(TEXTS), records=3, unit_column=None)


def test_a_pinned_data_set_with_a_name_is_the_only_one(tmp_path):
    """Who pins digits trains no mnist."""
    source = described(tmp_path / "gone.npz", "npz", layout=layout_digest(data(DIGITS)))
    assert "as agreed; the scenario declares" in refused(source, TEXTS)


def test_the_digest_of_a_declaration_is_of_the_records_only():
    """Rounds, path and clients may change; centres may not."""
    assert layout_digest(data(WARDS)) == layout_digest(data(WARDS.replace("clients = 3", "clients = 4")))
    assert layout_digest(data(WARDS)) != layout_digest(data(WARDS.replace("center = 50", "center = 51")))
    assert layout_digest(data(DIGITS)) != layout_digest(data(TEXTS))


# --- arrays -----------------------------------------------------------------------------------------------------------


def arrays(path: Path, **named: np.ndarray) -> Source:
    np.savez(path, **named)
    return described(path, "npz")


def test_floats_are_taken_as_a_model_takes_them(tmp_path):
    """A shard that was laid out for a model comes back bit by bit, with or without a dimension for grey."""
    features = np.random.default_rng(0).standard_normal((6, 1, 4, 5)).astype(np.float32)
    labels, units = np.array([0, 1, 2, 0, 1, 2]), np.array(["b", "a", "b", "c", "c", "a"])
    source = arrays(tmp_path / "a.npz", features=features, labels=labels, units=units)
    shard = opened(source, GREY + 'person = "who"', records=3, unit_column="who")
    assert np.array_equal(shard.features_ND, features)
    assert shard.labels_N.tolist() == labels.tolist()
    assert shard.units_N is not None
    assert shard.units_N.tolist() == [1, 0, 1, 2, 2, 0]
    flat = arrays(tmp_path / "b.npz", features=features[:, 0].astype(np.float64), labels=labels.astype(np.uint8))
    assert np.array_equal(opened(flat, GREY, records=6).features_ND, features)


def test_bytes_are_pixels_and_scaled_by_the_declared_constants(tmp_path):
    """(255/255 - 0.5) / 0.25 is 2, and 0 becomes -2."""
    pixels = np.zeros((2, 4, 5), np.uint8)
    pixels[1] = 255
    source = described(tmp_path / "a.npz", "npz", features="train_images", labels="train_labels")
    arrays(tmp_path / "a.npz", train_images=pixels, train_labels=np.array([2, 0]))
    shard = opened(source, GREY, records=2)
    assert shard.features_ND.shape == (2, 1, 4, 5)
    assert shard.features_ND[0] == pytest.approx(-2)
    assert shard.features_ND[1] == pytest.approx(2)


def test_shards_of_a_known_data_set_are_read(tmp_path):
    """What a trial lays out for its organisations: images of digits, and token numbers of texts."""
    images = np.zeros((3, 1, 8, 8), np.float32)
    labels = np.array([0, 9, 1])
    assert opened(arrays(tmp_path / "d.npz", features=images, labels=labels), DIGITS, records=3).labels_N[1] == 9
    tokens = np.ones((3, 32), np.int32)
    shard = opened(arrays(tmp_path / "t.npz", features=tokens, labels=labels % 2), TEXTS, records=3)
    assert shard.features_ND.dtype == np.int64


GOOD = {"features": np.zeros((3, 4, 5), np.float32), "labels": np.array([0, 1, 2])}
NAN = np.where(np.arange(60).reshape(3, 4, 5) == 25, np.nan, 0.0)  # number 25 is in the second record
BAD_ARRAYS = {
    "no such array": ({"features": GOOD["features"]}, "expected an array 'labels', got none"),
    "another shape": ({"features": np.zeros((3, 5, 4), np.float32)}, "expected records of shape (4, 5)"),
    "fewer labels": ({"labels": np.array([0, 1])}, "expected as many records as labels, (2,)"),
    "labels of two dimensions": ({"labels": np.zeros((3, 1), int)}, "expected as many records as labels"),
    "labels that are no whole numbers": ({"labels": np.zeros(3)}, "array 'labels': expected whole numbers"),
    "a label above the classes": ({"labels": np.array([0, 777, 1])}, "array 'labels', record 2: expected a class from"),
    "a label below 0": ({"labels": np.array([0, 1, -777])}, "array 'labels', record 3: expected a class from 0 to 2"),
    "not a number": ({"features": NAN}, "array 'features', record 2: expected finite numbers"),
    "infinite in single precision": ({"features": NAN * 0 + 1e300}, "record 1: expected finite numbers of single"),
    "texts": ({"features": np.full((3, 4, 5), "SECRET")}, "expected floating-point numbers or bytes"),
    "objects": ({"features": np.full((3, 4, 5), None)}, "array 'features': expected"),
    "large whole numbers": ({"features": np.zeros((3, 4, 5), np.int64)}, "expected floating-point numbers or bytes"),
    "no records": ({"features": GOOD["features"][:0], "labels": GOOD["labels"][:0]}, "expected records"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_arrays_that_are_not_as_declared_are_refused_without_their_values(changes, message, tmp_path):
    """The owner is told file, array and record."""
    named = changes if "array 'labels', got none" in message else GOOD | changes
    said = refused(arrays(tmp_path / "a.npz", **named), GREY)
    assert message in said
    assert str(tmp_path / "a.npz") in said
    assert not any(secret in said for secret in ("SECRET", "777"))


def test_persons_that_do_not_name_each_record_are_refused(tmp_path):
    """One number a record, or one text."""
    layout = GREY + 'person = "who"'
    said = refused(arrays(tmp_path / "a.npz", **GOOD, units=np.arange(2)), layout, unit_column="who")
    assert "array 'units': expected a person for each label, (3,)" in said
    said = refused(arrays(tmp_path / "b.npz", **GOOD, units=np.zeros(3)), layout, unit_column="who")
    assert "array 'units': expected whole numbers or texts" in said


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_a_file_that_is_no_archive_is_refused(content, tmp_path):
    """A file of another kind, or one that was cut off."""
    (tmp_path / "a.npz").write_bytes(content)
    assert "expected arrays as numpy.savez writes them" in refused(described(tmp_path / "a.npz", "npz"), GREY)


def claimed(shape: tuple[int, ...], content: bytes) -> bytes:
    """An array's file that says it is larger than it is."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + content


@pytest.mark.parametrize(
    ("shape", "message"),
    [((10**12, 4, 5), "expected at most 8 GiB"), ((10**7, 4, 5), "bytes of numbers, as its head says")],
)
def test_an_array_that_claims_more_than_the_file_has_is_never_unpacked(shape, message, tmp_path):
    """A decompression bomb is refused by its head: terabytes are not asked of the machine."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", claimed(shape, bytes(1000)))
        archive.writestr("labels.npy", claimed(shape[:1], b"").replace(b"<f4", b"<i4"))
    assert message in refused(described(tmp_path / "a.npz", "npz"), GREY)


def test_more_records_than_declared_are_refused_before_they_are_unpacked(tmp_path):
    """A gigabyte of zeros takes a megabyte of disk: its head is enough to refuse it."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("features.npy", "w") as file:
            file.write(claimed((10**6, 4, 5), b""))
            for _ in range(80):
                file.write(bytes(10**6))
        with archive.open("labels.npy", "w") as file:
            file.write(claimed((10**6,), bytes(4 * 10**6)).replace(b"<f4", b"<i4"))
    assert "expected 3 records, the number that the policy declares, got 1000000" in refused(
        described(tmp_path / "a.npz", "npz"), GREY
    )


# --- images -----------------------------------------------------------------------------------------------------------


def scans(folder: Path) -> Source:
    """Two healthy ones, black and white, and an ill one, which is grey."""
    for name, grey in {"healthy/b.png": 255, "healthy/a.png": 0, "ill/a.jpg": 128}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (5, 4), grey).save(folder / name)
    return described(folder, "images")


def test_a_folder_of_each_class_is_read_in_the_order_of_names(tmp_path):
    """Classes in the declared order, files by name; (255/255 - 0.5) / 0.5 is 1."""
    source = scans(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "ill" / ".hidden").write_bytes(b"x")
    shard = opened(source, SCANS, records=3)
    assert shard.features_ND.shape == (3, 1, 4, 5)
    assert shard.labels_N.tolist() == [0, 0, 1]
    assert shard.features_ND[:, 0, 0, 0] == pytest.approx([-1, 1, 128 / 255 * 2 - 1], abs=1e-6)


def test_colours_come_as_channels(tmp_path):
    """Red, green, blue, then height and width."""
    for name in ("healthy", "ill"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / name / "a.bmp")
    shard = opened(described(tmp_path, "images"), SCANS.replace("classes", "channels = 3\nclasses"), records=2)
    assert shard.features_ND.shape == (2, 3, 4, 5)
    assert shard.features_ND[0, :, 0, 0].tolist() == [1, -1, -1]


def test_a_sheet_names_label_and_person_of_each_image(tmp_path):
    """The order is that of its rows, and both its columns and its classes may have other names."""
    scans(tmp_path)
    (tmp_path / "list.csv").write_text("path,label,patient\nill/a.jpg,krank,p2\nhealthy/a.png,healthy,p1\n")
    source = described(tmp_path, "images", sheet="list.csv", rename={"file": "path", "ill": "krank"})
    shard = opened(source, SCANS, records=2, unit_column="patient")
    assert shard.labels_N.tolist() == [1, 0]
    assert shard.units_N is not None
    assert shard.units_N.tolist() == [1, 0]


BAD_SHEETS = {
    "another class": ("healthy/a.png,SECRET,p1", "column 'label', row 1: expected a declared class"),
    "outside the folder": ("../a.png,ill,p1", "column 'file', row 1: expected a file in the folder"),
    "a full path": ("/etc/passwd,ill,p1", "column 'file', row 1: expected a file in the folder"),
    "no person": ("healthy/a.png,ill,", "column 'patient', row 1: expected a person, got none"),
    "no such file": ("ill/z.png,ill,p1", "ill/z.png: expected an image"),
}


@pytest.mark.parametrize(("row", "message"), BAD_SHEETS.values(), ids=BAD_SHEETS.keys())
def test_a_sheet_that_is_not_as_declared_is_refused(row, message, tmp_path):
    """By column and row, as any table."""
    scans(tmp_path)
    (tmp_path / "list.csv").write_text(f"file,label,patient\n{row}\n")
    said = refused(described(tmp_path, "images", sheet="list.csv"), SCANS, records=1, unit_column="patient")
    assert message in said
    assert "SECRET" not in said


def test_persons_need_a_sheet(tmp_path):
    """Folders of classes name nobody."""
    assert "expected a `sheet`" in refused(scans(tmp_path), SCANS, unit_column="patient")


def broken_png(path: Path) -> None:
    whole = io.BytesIO()
    Image.new("L", (5, 4)).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:45])


BAD_IMAGES = {
    "another size": (lambda path: Image.new("L", (4, 5)).save(path), "expected 4 x 5 pixels of mode L, got 5 x 4 of"),
    "another mode": (lambda path: Image.new("RGB", (5, 4)).save(path), "expected 4 x 5 pixels of mode L, got 4 x 5 of"),
    "cut off": (broken_png, "expected an image that reads"),
    "no image": (lambda path: path.write_bytes(b"SECRET"), "expected an image that reads"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_images_that_are_not_as_declared_are_refused(write, message, tmp_path):
    """Nothing is cropped, resized or converted."""
    source = scans(tmp_path)
    write(tmp_path / "ill" / "c.png")
    said = refused(source, SCANS, records=4)
    assert f"{tmp_path / 'ill' / 'c.png'}: {message}" in said
    assert "SECRET" not in said


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_that_would_fill_memory_is_never_unpacked(side, tmp_path):
    """A hundred million pixels, or four hundred, take kilobytes of disk: the size in its head refuses it."""
    source = scans(tmp_path)
    head = b"P"  # a PNG's head is enough: its pixels are never looked at
    Image.new("1", (side, side)).save(tmp_path / "ill" / "c.png")
    assert (tmp_path / "ill" / "c.png").read_bytes()[1:2] == head
    said = refused(source, SCANS, records=4)
    assert "c.png: expected" in said


def test_files_that_would_be_left_out_are_refused(tmp_path):
    """A folder that is no class, a class without a folder, a file that is no image: none is passed over."""
    source = scans(tmp_path)
    (tmp_path / "ill" / "notes.txt").write_text("x")
    assert "notes.txt: expected an image (.png, .jpg, .jpeg, .bmp), got something else" in refused(
        source, SCANS, records=4
    )
    (tmp_path / "ill" / "notes.txt").unlink()
    (tmp_path / "unsure").mkdir()
    assert "unsure: expected a folder for each class and nothing else" in refused(source, SCANS)
    (tmp_path / "unsure").rmdir()
    (tmp_path / "ill").rename(tmp_path / "krank")
    assert "ill: expected a folder for each class and nothing else, got no such folder" in refused(source, SCANS)
    again = described(tmp_path, "images", rename={"ill": "krank"})
    assert len(opened(again, SCANS, records=3)) == 3


def test_an_empty_or_missing_folder_of_images_is_refused(tmp_path):
    """Nothing to train on is no training."""
    assert "expected a folder of images, got none" in refused(described(tmp_path / "no", "images"), SCANS)
    for name in ("healthy", "ill"):
        (tmp_path / name).mkdir()
    assert "expected images, got none" in refused(described(tmp_path, "images"), SCANS)


# --- Parquet ----------------------------------------------------------------------------------------------------------

needs_parquet = pytest.mark.skipif(
    find_spec("pyarrow") is None, reason="pyarrow is not installed (the extra `parquet`)"
)


def parquet(folder: Path, frame: pd.DataFrame, **keys: object) -> Source:
    frame.to_parquet(folder / "wards.parquet")
    return described(folder / "wards.parquet", "parquet", **keys)


def wards() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": [7, 8, 7],
            "age": [60.0, 45.5, 50.0],
            "ward": pd.Categorical(["A", "B", "A"]),
            "grade": pd.array([1, 2, 2], dtype="Int8"),
            "sick": ["no", "yes", "maybe"],
        }
    )


@needs_parquet
def test_columns_of_parquet_become_the_same_numbers(tmp_path):
    """Numbers, whole numbers and categories keep their types in the file."""
    shard = opened(parquet(tmp_path, wards()), WARDS, records=2, unit_column="patient")
    assert shard.features_ND == pytest.approx(np.array(EXPECTED, np.float32))
    assert shard.labels_N.tolist() == [0, 1, 1]
    assert shard.units_N is not None
    assert shard.units_N.tolist() == [0, 1, 0]


@needs_parquet
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("age", [60.0, None, 50.0], "column 'age', row 2: expected a value, got none"),
        ("age", ["60", "SECRET", "50"], "column 'age', row 2: expected a finite number"),
        ("age", [60.0, float("inf"), 50.0], "column 'age', row 2: expected a finite number"),
        ("age", pd.to_datetime(["2000-01-01"] * 3), "column 'age', row 1 and 2 more rows: expected numbers"),
        (
            "sick",
            [0, 1, 1],
            "row 1 and 2 more rows: expected one of the declared classes, which are texts",
        ),
        ("sick", ["no", None, "yes"], "column 'sick', row 2: expected a label, got none"),
        ("grade", [1, 2, 777], "column 'grade', row 3: expected one of the declared values"),
    ],
)
def test_columns_of_parquet_that_are_not_as_declared_are_refused(column, values, message, tmp_path):
    """As cells of a table are."""
    said = refused(parquet(tmp_path, wards().assign(**{column: values})), WARDS)
    assert message in said
    assert not any(secret in said for secret in ("SECRET", "777"))


@needs_parquet
def test_a_file_of_parquet_that_lacks_a_column_or_does_not_read_is_refused(tmp_path):
    """Its own error, before anything is read."""
    assert "expected a column 'age', got none" in refused(parquet(tmp_path, wards().drop(columns="age")), WARDS)
    assert "rename: expected columns of the scenario, got 'x'" in refused(
        parquet(tmp_path, wards(), rename={"x": "y"}), WARDS
    )
    (tmp_path / "wards.parquet").write_bytes(b"PAR1 and no more")
    assert "expected a file of Parquet" in refused(described(tmp_path / "wards.parquet", "parquet"), WARDS)


def test_parquet_without_its_library_is_one_clear_line(tmp_path, monkeypatch):
    """The optional extra is named."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = refused(described(tmp_path / "a.parquet", "parquet"), WARDS)
    assert said.startswith("kind: 'parquet' needs the library pyarrow")
    assert "pip install 'discreet[parquet]'" in said
