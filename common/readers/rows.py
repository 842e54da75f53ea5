"""Rows as numbers: what a scenario declares of a table, applied to the cells of one.

Shapes: N records, F numbers of a record.

A number becomes (number - center) / scale, a category one 1 among zeros. Every complaint names file, column and the
first row that it is about, and never what stands there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.errors import DataMissingError
from common.layouts import Column, TableLayout
from common.readers.tables import LARGEST_BYTES
from common.shards import Shard

if TYPE_CHECKING:
    import pandas as pd

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """One column: what stands there, which of it is missing, and what it is about."""

    series: "pd.Series[Any]"
    missing_N: Mask
    path: Path
    decimal: str

    def refuse(self, bad_N: Mask, expected: str) -> None:
        """Raise DataMissingError for the first row that is bad."""
        if bad_N.any():
            count = int(bad_N.sum())
            more = f" and {count - 1} more rows" if count > 1 else ""
            raise DataMissingError(
                f"{self.path}: column '{self.series.name}', row {int(bad_N.argmax()) + 1}{more}: expected {expected}."
            )

    @property
    def is_text(self) -> bool:
        """Whether the file keeps texts in the column."""
        from pandas.api.types import is_object_dtype, is_string_dtype

        return is_object_dtype(self.series.dtype) or is_string_dtype(self.series.dtype)


def encode(rows: "pd.DataFrame", layout: TableLayout, *, path: Path, decimal: str, unit_column: str | None) -> Shard:
    """Return rows as records, in their order; DataMissingError names column and row of what is not as declared."""
    if len(rows) * layout.width * 4 > LARGEST_BYTES:
        raise DataMissingError(
            f"{path}: expected at most {LARGEST_BYTES >> 30} GiB of numbers, got {len(rows)} rows of {layout.width}."
        )
    marks = list(layout.missing_marks)
    label = _cells(rows, layout.label, marks, path, decimal)
    label.refuse(label.missing_N, "a label, got none")
    values = [value for one in layout.classes for value in one]
    class_of = np.repeat(np.arange(len(layout.classes)), [len(one) for one in layout.classes])
    labels_N = class_of[_categories(label, values, "one of the declared classes")]
    features_NF = np.empty((len(rows), layout.width), np.float32)
    at = 0
    for column in layout.columns:
        cells = _cells(rows, column.name, marks, path, decimal)
        if layout.missing == "refuse":
            cells.refuse(cells.missing_N, "a value, got none; or let the scenario say what data.table.missing becomes")
        features_NF[:, at : at + column.width] = _features(cells, column, missing=layout.missing)
        at += column.width
    units_N = None if unit_column is None else _persons(_cells(rows, unit_column, marks, path, decimal))
    return Shard(features_ND=features_NF, labels_N=labels_N.astype(np.int64), units_N=units_N)


def _cells(rows: "pd.DataFrame", name: str, marks: list[str], path: Path, decimal: str) -> _Cells:
    series = rows[name]
    missing_N = series.isna().to_numpy(dtype=bool, copy=True)
    cells = _Cells(series=series, missing_N=missing_N, path=path, decimal=decimal)
    if not cells.is_text:
        return cells
    texts = series.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    return _Cells(
        series=texts, missing_N=missing_N | texts.isin(marks).to_numpy(dtype=bool), path=path, decimal=decimal
    )


def _features(cells: _Cells, column: Column, *, missing: float | str) -> npt.NDArray[np.float32]:
    """One column as numbers, (N, width)."""
    put = 0.0 if missing == "refuse" else float(missing)
    categories = column.values  # noqa: PD011 - it is a column of the scenario's, not of pandas
    if categories is not None:
        codes_N = _categories(cells, list(categories), "one of the declared values")
        hot_NV = (codes_N[:, None] == np.arange(len(categories))).astype(np.float32)
        hot_NV[cells.missing_N] = put
        return np.asarray(hot_NV, np.float32)
    with np.errstate(over="ignore"):
        scaled_N = ((_numbers(cells) - (column.center or 0.0)) / (column.scale or 1.0)).astype(np.float32)
    cells.refuse(~np.isfinite(scaled_N) & ~cells.missing_N, "a number that single precision holds, got a larger one")
    scaled_N[cells.missing_N] = put
    return np.asarray(scaled_N[:, None], np.float32)


def _numbers(cells: _Cells) -> npt.NDArray[np.float64]:
    """The cells as numbers, 0 where one is missing."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    series, everywhere = cells.series, np.ones(len(cells.series), bool)
    if cells.is_text:
        texts = series.where(~cells.missing_N, "0")
        cells.refuse(
            ~texts.map(lambda cell: isinstance(cell, str)).to_numpy(dtype=bool), "a number, got something else"
        )
        if cells.decimal == ",":
            foreign_N = texts.str.contains(".", regex=False).to_numpy(dtype=bool)
            cells.refuse(foreign_N, "a number with a decimal comma, got a point in it")
            texts = texts.str.replace(",", ".", regex=False)
        numbers_N = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    elif is_numeric_dtype(series.dtype) or is_bool_dtype(series.dtype):
        numbers_N = series.to_numpy(dtype=np.float64, na_value=np.nan)
        numbers_N = np.where(cells.missing_N, 0.0, numbers_N)
    else:
        cells.refuse(everywhere, "numbers, got a column of another type")
        raise AssertionError  # there is at least one row
    cells.refuse(~np.isfinite(numbers_N), "a finite number, got something else")
    return numbers_N


def _categories(cells: _Cells, values: list[Any], expected: str) -> Codes:
    """The position of each cell among the values, -1 where it is missing."""
    import pandas as pd

    if isinstance(values[0], str):
        if not cells.is_text and not isinstance(cells.series.dtype, pd.CategoricalDtype):
            cells.refuse(np.ones(len(cells.series), bool), f"{expected}, which are texts, got a column of another type")
        found = pd.Index(values).get_indexer(pd.Index(cells.series.astype(object)))
        missing_N = cells.missing_N
    else:
        found = pd.Index([float(value) for value in values]).get_indexer(pd.Index(_numbers(cells)))
        missing_N = cells.missing_N
    codes_N: Codes = np.where(missing_N, -1, found).astype(np.int64)
    cells.refuse((codes_N < 0) & ~missing_N, f"{expected}, got another")
    return codes_N


def _persons(cells: _Cells) -> Codes:
    """The same number for all rows of a person; a row that names none is refused."""
    cells.refuse(cells.missing_N, "a person, got none")
    _, persons_N = np.unique(cells.series.astype(str).to_numpy(dtype=object), return_inverse=True)
    return persons_N.astype(np.int64)
