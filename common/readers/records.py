"""Records of a consortium's data set, wherever they lie, as the scenario's model takes them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common.data_table import Data
from common.errors import SettingsError
from common.layouts import ImageLayout, TableLayout
from common.readers.arrays import read_npz
from common.readers.images import read_images
from common.readers.rows import encode
from common.readers.tables import read_csv, read_parquet
from common.shards import Shard
from common.sources import CsvFormat, CsvSource, ImagesSource, NpzFormat, NpzSource, ParquetSource, Source


def any_number(count: int) -> None:
    """Take any number of records."""
    del count


def read(
    source: Source, *, data: Data, unit_column: str | None, refuse_count: Callable[[int], None] = any_number
) -> Shard:
    """Return a source's records in their order.

    Args:
        source: where they lie.
        data: the scenario's `[data]`; of a data set with a name of its own only arrays are read, as its model takes
            them.
        unit_column: the column that tells persons apart, or None: then none are told apart.
        refuse_count: asked about the number of records as soon as it is known, before they are unpacked.

    Raises:
        DataMissingError: no such file, or records that are not as declared: file, column and row, never a value.
        SettingsError: a source that does not fit the data set.
    """
    layout = data.layout
    if isinstance(source, NpzSource):
        return read_npz(Path(source.path), source, data=data, unit_column=unit_column, refuse_count=refuse_count)
    if isinstance(source, ImagesSource) and isinstance(layout, ImageLayout):
        return read_images(source, layout, unit_column=unit_column, refuse_count=refuse_count)
    if isinstance(source, CsvSource | ParquetSource) and isinstance(layout, TableLayout):
        names = [column.name for column in layout.columns] + [layout.label]
        names += [] if unit_column is None else [unit_column]
        if isinstance(source, CsvSource):
            rows, decimal = read_csv(Path(source.path), source, names=names), source.decimal
        else:
            rows, decimal = read_parquet(source, names=names), "."
        refuse_count(len(rows))
        return encode(rows, layout, path=Path(source.path), decimal=decimal, unit_column=unit_column)
    fit = {"csv": "'csv', 'parquet'", "parquet": "'csv', 'parquet'", "images": "'images'"}.get(data.dataset)
    expected = f"{fit} or 'npz'" if fit else "'npz'"
    raise SettingsError(f"data.kind: expected {expected} for a scenario of '{data.dataset}', got '{source.kind}'.")


def data_folder(data: Data) -> Path:
    """Return where data sets that are files are expected: DISCREET_DATA, or the scenario's `data.path`."""
    return Path(os.environ.get("DISCREET_DATA") or data.path)


def public_sources(data: Data) -> tuple[Source, ...]:
    """Return what a scenario of a consortium's data names on this machine: `files` in their folder, or else `path`."""
    folder = data_folder(data)
    paths = [str(folder / file) for file in data.files] if data.files else [data.path]
    return tuple(_public(data, path) for path in paths)


def _public(data: Data, path: str) -> Source:
    if data.dataset == "csv":
        return CsvSource(kind="csv", path=path, **(data.csv or CsvFormat()).model_dump())
    if data.dataset == "npz":
        return NpzSource(kind="npz", path=path, **(data.npz or NpzFormat()).model_dump())
    if data.dataset == "parquet":
        return ParquetSource(kind="parquet", path=path)
    return ImagesSource(kind="images", path=path)


def public_test(data: Data) -> Shard:
    """Return the coordinator's public test set of a deployment: all records that the scenario names."""
    return joined([read(source, data=data, unit_column=None) for source in public_sources(data)])


def joined(shards: Sequence[Shard]) -> Shard:
    """Return the records of all shards, one after the other; persons are dropped."""
    return Shard(
        features_ND=np.concatenate([shard.features_ND for shard in shards]),
        labels_N=np.concatenate([shard.labels_N for shard in shards]),
    )
