"""Where an organisation's records lie: what `[data]` of its node.toml parses to.

    >>> parse({"kind": "csv", "path": "heart.csv", "rename": {"age": "Alter"}}, folder=Path("/srv")).path
    '/srv/heart.csv'

A source says where a file is and how it is written, never what its records mean: that is public, the same for all
organisations, and stands in the scenario (`common.layouts`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from common.errors import SettingsError
from common.model_tables import Table
from common.validation_errors import explain

Name = Annotated[str, Field(min_length=1, max_length=200)]


def _pairs(renamed: Any) -> Any:
    """A table of names as pairs: a record that is hashed holds no dict."""
    return tuple(sorted(renamed.items())) if isinstance(renamed, dict) else renamed


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("expected each name once, got one of them twice")
    return names


Rename = Annotated[tuple[tuple[Name, Name], ...], BeforeValidator(_pairs)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=100_000), AfterValidator(_distinct)]


class CsvFormat(Table):
    """How a file of comma-separated values is written: UTF-8, one record a row.

    Args:
        separator: between two cells.
        decimal: of numbers.
        header: names of the columns, where the first row does not name them.
        rename: a column of the scenario, and what the file calls it.
    """

    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    header: Names | None = None
    rename: Rename = ()

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if self.separator == self.decimal:
            raise ValueError("decimal: expected another sign than the separator, got the same")
        return self


class NpzFormat(Table):
    """What the arrays of a file of NumPy are called; `units` is the person of each record."""

    features: Name = "features"
    labels: Name = "labels"
    units: Name = "units"


class Place(Table):
    """Where records lie.

    Args:
        path: of the file or folder.
        layout: SHA-256 of what the consortium agreed that a record looks like (`discreet plan --policy` tells it): a
            scenario that declares anything else is refused unread. Empty: only arrays (`npz`) of a data set with a name
            of its own.
    """

    path: Name
    layout: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class CsvSource(CsvFormat, Place):
    """`kind = "csv"`: a file of comma-separated values."""

    kind: Literal["csv"]


class ParquetSource(Place):
    """`kind = "parquet"`: a file of columns; it needs the extra `parquet`."""

    kind: Literal["parquet"]
    rename: Rename = ()


class NpzSource(NpzFormat, Place):
    """`kind = "npz"`: arrays of NumPy, without pickled objects."""

    kind: Literal["npz"]


class ImagesSource(Place):
    """`kind = "images"`: a folder of images, in which each class has a folder of its own, or that has a sheet.

    Args:
        sheet: a file of comma-separated values in it, with columns `file`, `label` and, if need be, the person.
        rename: a class of the scenario, and what its folder, or the sheet, calls it; so too the sheet's columns.
    """

    kind: Literal["images"]
    sheet: Name | None = None
    rename: Rename = ()


Source = Annotated[CsvSource | ParquetSource | NpzSource | ImagesSource, Field(discriminator="kind")]
"""A file or folder of an organisation's records; it is hashable and dumps to JSON."""

SOURCES: tuple[type[Table], ...] = (CsvSource, ParquetSource, NpzSource, ImagesSource)
_ADAPTER: TypeAdapter[CsvSource | ParquetSource | NpzSource | ImagesSource] = TypeAdapter(Source)


def parse(table: Mapping[str, Any], *, folder: Path, name: str = "data") -> Source:
    """Read a table that describes a source, its path beside `folder`; SettingsError names key, expected and got."""
    try:
        read = _ADAPTER.validate_python(table)
    except ValidationError as error:
        raise SettingsError(f"{name}: {explain(error, {'data': SOURCES}, within='data')}") from error
    return beside(read, folder)


def beside(source: Source, folder: Path) -> Source:
    """Return the source with its path beside a folder; a full path stays as it is."""
    return source.model_copy(update={"path": str(folder / source.path)})
