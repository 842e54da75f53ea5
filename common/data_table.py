"""The `[data]` table of a scenario: a data set, what its records look like, and how they are split among clients.

A data set is one that comes with a name of its own, or a consortium's (`csv`, `parquet`, `npz`, `images`), whose
records the scenario declares. Of those, `path` is the public test set where organisations take part with files of their
own; `discreet simulate` takes it for all records there are, sets a fifth aside and splits the rest.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.layouts import ArrayLayout, ImageLayout, Layout, TableLayout
from common.model_tables import PositiveFloat, PositiveInt, Table
from common.sources import CsvFormat, Names, NpzFormat

LAYOUTS = {"csv": "table", "parquet": "table", "npz": "arrays", "images": "images"}
"""The data sets of consortia, and where each declares its records."""
_OWN = ("table", "arrays", "images", "csv", "npz", "files", "records", "persons", "lineage")
_READING = {"csv": "csv", "npz": "npz"}
LARGEST = 1 << 31


class Data(Table):
    """`[data]`: a data set and how it is split among clients.

    Args:
        dataset: its name, or how the consortium's records are kept.
        path: a folder of data sets, which DISCREET_DATA overrides; of a consortium's data without `files` the file.
        files: in that folder; with partition `natural` each of them is a client.
        partition: how records are dealt.
        alpha: of partition `dirichlet`.
        clients: how many.
        lineage: what a simulation's ledger calls the data; default: as `dataset`.
        records: declared number of records in all files together: what `discreet simulate` plans with.
        persons: declared number of persons in all files together, where they are the unit.
        table, arrays, images: what a record looks like.
        csv, npz: how the files at `path` are written.
    """

    dataset: Literal["digits", "mnist", "sms-spam", "csv", "parquet", "npz", "images"]
    path: str = "data"
    files: Names | None = None
    partition: Literal["iid", "dirichlet", "natural"] = "iid"
    alpha: PositiveFloat = 0.5
    clients: PositiveInt
    lineage: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    records: Annotated[int, Field(gt=0, le=LARGEST, strict=True)] | None = None
    persons: Annotated[int, Field(gt=0, le=LARGEST, strict=True)] | None = None
    table: TableLayout | None = None
    arrays: ArrayLayout | None = None
    images: ImageLayout | None = None
    csv: CsvFormat | None = None
    npz: NpzFormat | None = None

    @property
    def layout(self) -> Layout | None:
        """What a record of a consortium's data looks like; None for a data set with a name of its own."""
        return self.table or self.arrays or self.images

    @property
    def lineage_name(self) -> str:
        """What a simulation's ledger calls the data: budgets are about it, whatever else a scenario says."""
        return self.lineage or self.dataset

    @model_validator(mode="after")
    def _declared(self) -> Self:
        """A consortium's data are declared once, others not at all."""
        wanted = LAYOUTS.get(self.dataset)
        if wanted is not None and getattr(self, wanted) is None:
            raise ValueError(f"{wanted}: expected what a record looks like, as [data.{wanted}], got none; add it")
        fits = {wanted, _READING.get(self.dataset), "files", "records", "persons", "lineage"} if wanted else set()
        for key in _OWN:
            if key not in fits and getattr(self, key) is not None:
                raise ValueError(f"{key}: expected none of it for '{self.dataset}'; remove it")
        return self

    @model_validator(mode="after")
    def _split(self) -> Self:
        if self.partition == "natural" and self.layout is not None and self.clients > len(self.files or ()):
            raise ValueError(
                f"files: expected {self.clients} of them, one a client, with partition 'natural' of '{self.dataset}', "
                f"got {len(self.files or ())}"
            )
        return self

    @model_validator(mode="after")
    def _persons_named(self) -> Self:
        if self.persons is not None and (self.layout is None or self.layout.person is None):
            raise ValueError("persons: expected none where no column tells persons apart; remove it, or name `person`")
        return self
