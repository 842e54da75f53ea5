"""What is publicly known of each data set before any of it is read: shapes, classes, records and persons.

The plan is made from these declared constants; a data set that turns out otherwise is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Task:
    """The public facts of a data set.

    Args:
        image_shape: channels, height, width; None for text.
        classes: how many labels.
        train_records: records to be split among clients, after duplicates were dropped and the public test set taken.
        positive: the class that F1 and AUC are about, for two classes.
        unit_columns: columns that name the person of a record, each with how many persons there are.
    """

    image_shape: tuple[int, int, int] | None
    classes: int
    train_records: int
    positive: int | None = None
    unit_columns: Mapping[str, int] = field(default_factory=dict)


TASKS = {
    "digits": Task(image_shape=(1, 8, 8), classes=10, train_records=1437),
    "mnist": Task(image_shape=(1, 28, 28), classes=10, train_records=60_000, unit_columns={"writer": 539}),
    "sms-spam": Task(image_shape=None, classes=2, train_records=4136, positive=1),
}
