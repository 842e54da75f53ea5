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
from common.sources import NpzSource, Source


def open_source(source: Source, *, scenario_data: Data, records: int, unit_column: str | None) -> Shard:
    """Read an organisation's records, in the order of the file.

    Guarantees:
        The same file gives the same shard.
        A scenario that `refuse_other_layout` refuses is refused before anything is read.
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

    refuse_other_layout(source, scenario_data=scenario_data)
    early = refuse_other if unit_column is None else any_number
    shard = read(source, data=scenario_data, unit_column=unit_column, refuse_count=early)
    refuse_other(len(shard) if shard.units_N is None else len(np.unique(shard.units_N)))
    return shard


def refuse_other_layout(source: Source, *, scenario_data: Data) -> None:
    """Raise SettingsError unless the owner has agreed to what a scenario declares of a record; nothing is read.

    Whether a file is as declared depends on its values: who may declare anything asks one question about them with each
    scenario, and a refusal is the answer. So what a scenario declares must be what the owner has pinned.

    Edge cases:
        csv, parquet, images            always pinned
        npz, declared by the scenario   pinned: `classes` is a question about the labels
        npz, a data set with a name     free: its classes and shapes are constants of this code
    """
    declared = layout_digest(scenario_data)
    is_constant = isinstance(source, NpzSource) and scenario_data.layout is None
    if source.layout == declared or (is_constant and not source.layout):
        return
    pinned = f"{source.layout}, as agreed" if source.layout else "what was agreed of a record, and none is pinned"
    raise SettingsError(
        f"data.layout: expected {pinned}; the scenario declares {declared}. Nothing was read. Read the scenario's "
        f'[data], and only if no value in it asks about a record of yours, put in node.toml: layout = "{declared}"'
    )


def layout_digest(scenario_data: Data) -> str:
    """Return the SHA-256, hexadecimal, of what a scenario declares of a record, or of the name of a known data set.

    Two scenarios that agree in it read an organisation's file alike.
    """
    layout = scenario_data.layout
    text = scenario_data.dataset if layout is None else layout.model_dump_json()
    return sha256(text.encode()).hexdigest()
