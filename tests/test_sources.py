"""Sources: where records lie, as `[data]` of a node's settings says; every mistake is named."""

from pathlib import Path

import pytest

from common.errors import BadInputError, SettingsError
from common.sources import CsvSource, ImagesSource, NpzSource, ParquetSource, beside, parse

HERE = Path("/srv/node")
EACH = [
    ({"kind": "csv", "path": "a.csv", "separator": ";", "decimal": ",", "rename": {"age": "Alter"}}, CsvSource),
    ({"kind": "parquet", "path": "a.parquet"}, ParquetSource),
    ({"kind": "npz", "path": "a.npz", "features": "train_images"}, NpzSource),
    ({"kind": "images", "path": "scans", "sheet": "list.csv"}, ImagesSource),
]
DIGEST = "a" * 64


@pytest.mark.parametrize(("table", "kind"), EACH)
def test_each_kind_is_read_as_its_own_record(table, kind):
    """The kind decides which keys there are, and a path lies beside the settings."""
    source = parse(table, folder=HERE)
    assert type(source) is kind
    assert source.path == f"/srv/node/{table['path']}"


def test_a_full_path_stays_as_it_is():
    """Only a relative path lies beside the settings."""
    source = parse({"kind": "npz", "path": "/data/a.npz"}, folder=HERE)
    assert source.path == "/data/a.npz"
    assert beside(source, Path("/elsewhere")) == source


@pytest.mark.parametrize(("table", "kind"), EACH)
def test_a_source_travels_as_json_and_can_be_hashed(table, kind):
    """A process is told of its data as JSON, and keeps what it read by source."""
    source = parse(table, folder=HERE)
    again = kind.model_validate_json(source.model_dump_json())
    assert again == source
    assert hash(again) == hash(source)


BAD = [
    ({"path": "x"}, "data.kind: expected a value, got none; add it."),
    ({"kind": "xls", "path": "x"}, "data.kind: expected 'csv', 'parquet', 'npz', 'images', got 'xls'."),
    ({"kind": "csv"}, "data.path: expected a value, got none; add it."),
    ({"kind": "csv", "path": ""}, "data.path: expected"),
    ({"kind": "csv", "pth": "x"}, "data.pth: unknown key; did you mean data.path."),
    ({"kind": "npz", "path": "x", "separator": ";"}, "data.separator: unknown key;"),
    ({"kind": "csv", "path": "x", "separator": "#"}, "data.separator: expected ',', ';'"),
    ({"kind": "csv", "path": "x", "decimal": ","}, "decimal: expected another sign than the separator, got the same"),
    ({"kind": "csv", "path": "x", "header": ["a", "a"]}, "data.header: expected each name once, got one of them twice"),
    ({"kind": "csv", "path": "x", "header": []}, "data.header: "),
    ({"kind": "csv", "path": "x", "rename": {"age": 3}}, "data.rename"),
    ({"kind": "csv", "path": "x", "rename": "age"}, "data.rename: expected a list"),
    ({"kind": "csv", "path": "x", "layout": "abc"}, "data.layout: expected"),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_a_bad_source_is_refused_by_key_expected_and_got(table, message):
    """One error, of the user's input, that names the file and the key."""
    with pytest.raises(SettingsError) as error:
        parse(table, folder=HERE, name="node.toml")
    assert str(error.value).startswith("node.toml: ")
    assert message in str(error.value)
    assert isinstance(error.value, BadInputError)


def test_a_renamed_column_is_kept_in_one_order():
    """Two settings that say the same are the same source."""
    one, other = (
        parse({"kind": "csv", "path": "x", "rename": renamed}, folder=HERE)
        for renamed in ({"a": "A", "b": "B"}, {"b": "B", "a": "A"})
    )
    assert one == other
    assert one.layout == ""
    assert parse({"kind": "csv", "path": "x", "layout": DIGEST}, folder=HERE).layout == DIGEST
