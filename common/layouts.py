"""What a record looks like, declared in a scenario: the same for every organisation, and public.

    >>> age = Column(name="age", center=50, scale=10)
    >>> pain = Column(name="pain", values=("none", "some"))
    >>> TableLayout(label="sick", classes=("no", ("yes", "maybe")), columns=(age, pain)).width
    3

Centres, scales and categories are constants that somebody chose; none of them is learnt from records. All is bounded,
since a scenario comes from a coordinator whom nobody has to trust.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from common.model_tables import PositiveFloat, Table

MOST = 4096  # columns, values of a column, classes, or pixels of a side
LARGEST_RECORD = 1 << 22  # numbers


def _value(value: Any) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected numbers or texts, got something else")  # noqa: TRY004 - pydantic wants it so
    if not isinstance(value, str) and not math.isfinite(value):
        raise ValueError("expected finite numbers, got one that is not")
    return value


def _missing(value: Any) -> float | Literal["refuse"]:
    if value == "refuse":
        return "refuse"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("expected 'refuse', or a finite number to put there")
    return float(value)


Value = Annotated[int | float | str, PlainValidator(_value)]
Missing = Annotated[float | Literal["refuse"], PlainValidator(_missing)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Side = Annotated[int, Field(gt=0, le=MOST, strict=True)]


def _told_apart(values: Iterable[object]) -> None:
    """Refuse values that are not of one kind, or that are not all different."""
    found = list(values)
    if len({isinstance(value, str) for value in found}) > 1:
        raise ValueError("expected numbers or texts, got both")
    if len(set(found)) < len(found):
        raise ValueError("expected each of them once, got one twice")


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    _told_apart(values)
    return values


def _each_a_list(classes: Any) -> Any:
    """A class that is one value is written without a list around it."""
    if not isinstance(classes, list | tuple):
        return classes
    return tuple(tuple(one) if isinstance(one, list | tuple) else (one,) for one in classes)


def _disjoint(classes: tuple[tuple[Value, ...], ...]) -> tuple[tuple[Value, ...], ...]:
    _told_apart(value for one in classes for value in one)
    return classes


Values = Annotated[tuple[Value, ...], Field(min_length=1, max_length=MOST), AfterValidator(_distinct)]
Classes = Annotated[
    tuple[Annotated[tuple[Value, ...], Field(min_length=1, max_length=MOST)], ...],
    Field(min_length=2, max_length=MOST),
    BeforeValidator(_each_a_list),
    AfterValidator(_disjoint),
]


class Column(Table):
    """A column that is learnt from: a number, or one of `values`, which becomes as many zeros and ones.

    Args:
        name: of the column.
        center: what becomes 0; a public constant.
        scale: what becomes 1 above it; a public constant.
        values: the categories.
    """

    name: Name
    center: Finite | None = None
    scale: PositiveFloat | None = None
    values: Values | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.values is not None and (self.center is not None or self.scale is not None):
            raise ValueError("expected values, or center and scale, got both")
        return self

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return 1 if self.values is None else len(self.values)


class TableLayout(Table):
    """`[data.table]`: a record is a row, of a file of comma-separated values or of Parquet.

    Args:
        label: the column that is to be foretold.
        classes: the values of each class, in their order: one value, or a list of them.
        columns: what is learnt from, in their order.
        missing: 'refuse', or the number that a missing one becomes, where 0 is the centre; a missing category becomes
            that number in place of each of its zeros and ones.
        missing_marks: cells that say that something is missing.
        person: the column that tells persons apart, if there is one.
    """

    label: Name
    classes: Classes
    columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=MOST)]
    missing: Missing = "refuse"
    missing_marks: Annotated[tuple[str, ...], Field(max_length=100)] = ("",)
    person: Name | None = None

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("columns: expected each name once, got one of them twice")
        if self.label in names:
            raise ValueError(f"label: expected a column that is not learnt from, got '{self.label}'")
        if self.person is not None and self.person in (*names, self.label):
            raise ValueError(f"person: expected a column that is neither learnt from nor the label: '{self.person}'")
        return self

    @property
    def width(self) -> int:
        """How many numbers a record becomes."""
        return sum(column.width for column in self.columns)


class ArrayLayout(Table):
    """`[data.arrays]`: a record is an array of NumPy.

    Args:
        shape: of one record: (numbers), (height, width) or (channels, height, width).
        classes: how many; labels are whole numbers from 0 on.
        center: of bytes: they become (byte / 255 - center) / scale. Floating-point numbers are taken as they are.
        scale: see `center`.
        person: what the persons are called, if records name them.
    """

    shape: Annotated[tuple[Side, ...], Field(min_length=1, max_length=3)]
    classes: Annotated[int, Field(ge=2, le=MOST, strict=True)]
    center: Finite = 0.0
    scale: PositiveFloat = 1.0
    person: Name | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if math.prod(self.shape) > LARGEST_RECORD:
            raise ValueError(f"shape: expected at most {LARGEST_RECORD} numbers, got {math.prod(self.shape)}")
        return self


class ImageLayout(Table):
    """`[data.images]`: a record is a picture in a file of its own.

    Args:
        size: height and width in pixels.
        channels: 1 for grey, 3 for red, green and blue.
        classes: their names, in their order.
        center: each pixel becomes (byte / 255 - center) / scale; public constants.
        scale: see `center`.
        person: the sheet's column that tells persons apart, if there is one.
    """

    size: tuple[Side, Side]
    channels: Literal[1, 3] = 1
    classes: Annotated[tuple[Name, ...], Field(min_length=2, max_length=MOST), AfterValidator(_distinct)]
    center: Finite = 0.0
    scale: PositiveFloat = 1.0
    person: Name | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, *self.size


Layout = TableLayout | ArrayLayout | ImageLayout
