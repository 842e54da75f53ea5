"""The `[privacy]` table of a scenario.

It says who is protected, how strongly, and what may leave a client beside its update.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.model_tables import PositiveFloat, Table
from common.privacy.accounting import SMALLEST_DELTA

METRICS_NOISE = 20.0  # of a count, in records: 100 rounds of it alone spend epsilon 2.0 at delta 1e-5


class Privacy(Table):
    """`[privacy]`: the unit, and either epsilon or the noise multiplier; the other follows.

    With `unit_column` the unit is a person with all its records. With metrics `noisy` each participation releases one
    noised count more, which is charged.
    """

    unit: Literal["record", "client", "none"] = "record"
    unit_column: str | None = None
    epsilon: PositiveFloat | None = None
    noise_multiplier: PositiveFloat | None = None
    budget: PositiveFloat | None = None
    delta: Annotated[float, Field(ge=SMALLEST_DELTA, lt=1, strict=True)] = 1e-5
    max_grad_norm: PositiveFloat = 1.0
    metrics: Literal["none", "noisy"] = "none"
    metrics_noise_multiplier: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("metrics") == "noisy":
            return {"metrics_noise_multiplier": METRICS_NOISE} | table
        return table

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        given = [name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None]
        superfluous = [*given, *(["budget"] if self.budget is not None else [])]
        if self.unit == "none" and superfluous:
            raise ValueError(
                f"{superfluous[0]}: expected none of it with unit 'none'; remove it (--set privacy.{superfluous[0]}=) "
                f"or choose unit 'record' or 'client'"
            )
        if self.unit != "none" and len(given) != 1:
            got = "both" if given else "neither"
            raise ValueError(f"epsilon: expected epsilon or noise_multiplier, got {got}; give one, the other follows")
        return self

    @model_validator(mode="after")
    def _of_records_only(self) -> Self:
        if self.unit != "record" and self.unit_column is not None:
            raise ValueError(
                f"unit_column: expected none of it with unit '{self.unit}', got '{self.unit_column}'; remove it "
                f"(--set privacy.unit_column=) or choose unit 'record'"
            )
        if self.unit == "client" and self.metrics != "none":
            raise ValueError(
                "metrics: expected 'none' with unit 'client', got 'noisy'; the server would see a client's own count"
            )
        if self.unit == "none" and self.metrics != "none":
            raise ValueError(
                "metrics: expected 'none' with unit 'none', got 'noisy'; the public test set at the server is measured "
                "without it"
            )
        if self.metrics == "none" and self.metrics_noise_multiplier is not None:
            raise ValueError(
                "metrics_noise_multiplier: expected none of it with metrics 'none'; remove it "
                "(--set privacy.metrics_noise_multiplier=) or choose metrics 'noisy'"
            )
        return self
