"""What is publicly known of each data set before any of it is read: shapes, classes, records and persons.

The plan is made from these declared constants; a data set that turns out otherwise is refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.data_table import Data
from common.layouts import ArrayLayout, ImageLayout, Layout, TableLayout

TEST_SHARE = 0.2  # of a data set without a test set of its own, set aside as the public one


@dataclass(frozen=True, kw_only=True)
class Task:
    """The public facts of a data set.

    Args:
        image_shape: channels, height, width; None for text and for flat features.
        classes: how many labels.
        train_records: records to be split among clients, after duplicates were dropped and the public test set taken;
            None where the scenario does not say.
        width: how many numbers a flat record has; None for images and text.
        positive: the class that F1 and AUC are about, for two classes.
        unit_columns: columns that name the person of a record, each with how many persons there are, or None where the
            scenario does not say.
    """

    image_shape: tuple[int, int, int] | None
    classes: int
    train_records: int | None
    width: int | None = None
    positive: int | None = None
    unit_columns: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether a record is a text."""
        return self.image_shape is None and self.width is None


TASKS = {
    "digits": Task(image_shape=(1, 8, 8), classes=10, train_records=1437),
    "mnist": Task(image_shape=(1, 28, 28), classes=10, train_records=60_000, unit_columns={"writer": 539}),
    "sms-spam": Task(image_shape=None, classes=2, train_records=4136, positive=1),
}
"""Data sets with a name of their own."""


def task_of(data: Data) -> Task:
    """Return the public facts of a scenario's data: a data set's own, or what the scenario declares."""
    layout = data.layout
    if layout is None:
        return TASKS[data.dataset]
    image_shape, width = _shape(layout)
    classes = layout.classes if isinstance(layout, ArrayLayout) else len(layout.classes)
    return Task(
        image_shape=image_shape,
        width=width,
        classes=classes,
        train_records=_trained_on(data.records),
        positive=1 if classes == 2 else None,  # noqa: PLR2004 - no, and yes
        unit_columns={} if layout.person is None else {layout.person: _trained_on(data.persons)},
    )


def set_aside(records: int) -> int:
    """Return how many of so many records, or persons, become the public test set."""
    return math.ceil(TEST_SHARE * records)


def _trained_on(records: int | None) -> int | None:
    return None if records is None else records - set_aside(records)


def _shape(layout: Layout) -> tuple[tuple[int, int, int] | None, int | None]:
    """An image's shape, or how many numbers a flat record has."""
    if isinstance(layout, TableLayout):
        return None, layout.width
    if isinstance(layout, ImageLayout):
        return layout.shape, None
    if len(layout.shape) == 1:
        return None, layout.shape[0]
    *channels, height, width = layout.shape
    return (channels[0] if channels else 1, height, width), None
