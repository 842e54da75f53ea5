"""Files of rows: the columns that a scenario names, as the file has them.

Cells of comma-separated values stay texts here, so that nothing is guessed: not what a number is, nor what is missing.
Rows count from 1, without the row of names and without empty lines. A name that the file uses for a column is only told
where it was asked for: a file without a row of names has a record there.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DataMissingError, SettingsError
from common.sources import CsvFormat, ParquetSource

if TYPE_CHECKING:
    import pandas as pd

LARGEST_BYTES = 1 << 33  # of records in memory
_LINE = re.compile(r"line (\d+), saw (\d+)")


def read_csv(path: Path, written: CsvFormat, *, names: Sequence[str]) -> "pd.DataFrame":
    """Return the columns called `names`, as texts, DataMissingError where one is not there or the file does not read.

    Edge cases:
        a row with too many cells   refused
        a row with too few cells    its last cells are empty
        a file that is compressed   refused: it is not UTF-8
    """
    import pandas as pd

    refuse_absent(path)
    try:
        cells = pd.read_csv(
            path, sep=written.separator, header=None, dtype=str, keep_default_na=False, na_filter=False,
            encoding="utf-8-sig", compression=None, on_bad_lines="error",
        )  # fmt: skip
    except pd.errors.EmptyDataError:
        raise DataMissingError(f"{path}: expected records, got an empty file.") from None
    except UnicodeDecodeError:
        raise DataMissingError(f"{path}: expected a text in UTF-8, got one that does not read. Convert it.") from None
    except (ValueError, OSError, MemoryError) as error:  # a ParserError is a ValueError, and quotes no cell's content
        place = _LINE.search(str(error))
        where = f"line {place[1]} has {place[2]} cells, more than the first" if place else "it does not read"
        raise DataMissingError(
            f"{path}: expected rows of cells separated by {written.separator!r}: {where}. Are all texts with that sign "
            f"in double quotes?"
        ) from None
    if written.header is None:
        found = [str(name).strip() for name in cells.iloc[0]]
        cells = cells.iloc[1:]
    else:
        found = list(written.header)
    if len(found) != cells.shape[1]:
        raise SettingsError(
            f"{path}: header: expected the names of all {cells.shape[1]} columns of the file, got {len(found)}."
        )
    return _chosen(cells, found, names=names, rename=dict(written.rename), path=path)


def read_parquet(source: ParquetSource, *, names: Sequence[str]) -> "pd.DataFrame":
    """Return the columns called `names`, DataMissingError where one is not there or the file does not read."""
    if find_spec("pyarrow") is None:
        raise SettingsError(
            "kind: 'parquet' needs the library pyarrow, which is not installed. Install it with "
            "pip install 'discreet[parquet]', or export the file as 'csv'."
        )
    import pandas as pd
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    path, rename = Path(source.path), dict(source.rename)
    refuse_absent(path)
    wanted = [rename.get(name, name) for name in names]
    try:
        with ParquetFile(path) as file:
            found, rows = list(file.schema_arrow.names), file.metadata.num_rows
        _refuse_absent_columns(found, wanted, path)
        if rows * len(names) * 8 > LARGEST_BYTES:
            raise DataMissingError(f"{path}: expected at most {LARGEST_BYTES >> 30} GiB of numbers, got {rows} rows.")
        cells = pd.read_parquet(path, engine="pyarrow", columns=wanted)
    except (OSError, ValueError, ArrowException, MemoryError):
        raise DataMissingError(f"{path}: expected a file of Parquet, got one that does not read.") from None
    return _chosen(cells[wanted], wanted, names=names, rename=rename, path=path)


def refuse_absent(path: Path) -> None:
    """Raise DataMissingError where there is no file."""
    if not path.is_file():
        raise DataMissingError(f"{path}: expected a file, got none. Put it there, or correct the path.")


def _chosen(
    cells: "pd.DataFrame", found: Sequence[str], *, names: Sequence[str], rename: Mapping[str, str], path: Path
) -> "pd.DataFrame":
    """The wanted columns under the scenario's names."""
    unknown = sorted(rename.keys() - set(names))
    if unknown:
        raise SettingsError(f"{path}: rename: expected columns of the scenario, got '{unknown[0]}'. Remove it.")
    wanted = [rename.get(name, name) for name in names]
    _refuse_absent_columns(found, wanted, path)
    if len(cells) == 0:
        raise DataMissingError(f"{path}: expected records, got none.")
    chosen = cells.iloc[:, [found.index(name) for name in wanted]]
    return chosen.set_axis(list(names), axis=1).reset_index(drop=True)


def _refuse_absent_columns(found: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    for name in wanted:
        if found.count(name) != 1:
            got = "none" if name not in found else f"{found.count(name)} of that name"
            raise DataMissingError(
                f"{path}: expected a column '{name}', got {got}. Say in `rename` what the file calls it, or in "
                f"`header` what its columns are where the first row does not name them."
            )
