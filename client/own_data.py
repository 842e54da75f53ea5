"""An organisation's own records, as a scenario declares them.

The scenario says publicly what records look like, the owner's settings where they lie. Whatever is not as declared is
refused with one line for the owner's log that names file, column and row, and never a value of a record.
"""

from hashlib import sha256

import numpy as np

from common.data_table import Data
from common.errors import DataMissingError, SettingsError
from common.readers.records import any_number, read
from common.shards import Shard
from common.sources import Source


def open_source(source: Source, *, scenario_data: Data, records: int, unit_column: str | None) -> Shard:
    """Read an organisation's records, in the order of the file.

    Guarantees:
        The same file gives the same shard.
        A scenario that declares other records than the source's `layout` is refused before anything is read.
        There are as many as the policy declares, or none are returned.

    Args:
        source: where they lie; its path is taken as it is (`common.sources.beside`).
        scenario_data: the scenario's `[data]`, which declares what a record looks like.
        records: how many the policy declares: records, or persons where `unit_column` is given.
        unit_column: the column that tells persons apart, or None: the shard then names none.

    Raises:
        DataMissingError: no such file, or one whose records are not as declared, or another number of them.
        SettingsError: a source that does not fit the scenario, or that needs a library that is not installed.
    """

    def refuse_other(count: int) -> None:
        if count != records:
            unit = "records" if unit_column is None else f"persons in column '{unit_column}'"
            raise DataMissingError(
                f"{source.path}: expected {records} {unit}, the number that the policy declares, got {count}. Put the "
                f"data right, or the policy's data.records: that number is public, and every epsilon counts on it."
            )

    if source.layout not in {"", layout_digest(scenario_data)}:
        raise SettingsError(
            f"data.layout: expected records as agreed, {source.layout}, and the scenario declares others, "
            f"{layout_digest(scenario_data)}. Nothing was read."
        )
    early = refuse_other if unit_column is None else any_number
    shard = read(source, data=scenario_data, unit_column=unit_column, refuse_count=early)
    refuse_other(len(shard) if shard.units_N is None else len(np.unique(shard.units_N)))
    return shard


def layout_digest(scenario_data: Data) -> str:
    """Return the SHA-256, hexadecimal, of what a scenario declares of a record, or of the name of a known data set.

    Two scenarios that agree in it read an organisation's file alike.
    """
    layout = scenario_data.layout
    text = scenario_data.dataset if layout is None else layout.model_dump_json()
    return sha256(text.encode()).hexdigest()
