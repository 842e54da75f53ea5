"""The Flower app of one data owner.

It runs behind every grid: in process, on Ray, on a SuperNode. What it needs comes from two sides that are not trusted
alike: the scenario and the order from the coordinator, the data and the budget from the node's own configuration.

    context.run_config   scenario: its text
    context.node_config  shards: folder of the data; partition-id: which client this is;
                         policy, ledger: files of the owner, where no grid has reserved already;
                         ledger-seen: a file that keeps the ledger's newest checkpoint, so that an older copy is noticed
    context.state        reservation: put there by a grid of ours after the charge was durable; it never travels

Every failure leaves as one word of `Refusal`; its text stays in the owner's log.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from client.live.rows import refuse_marked
from client.live.watch import Watch
from client.owner import Owner
from client.resident import scenario_in, trainer_of
from common.config import Scenario
from common.errors import DiscreetError, RefusedError, WireError
from common.messages import Order, Refusal
from common.shards import Shard, open_shard
from common.wire import Frame, Scalar, decode_order, encode_report

log = logging.getLogger("discreet.client")

Kind = TypeVar("Kind", ArrayRecord, ConfigRecord)

REFUSED = 100  # an error code of ours, above Flower's

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Carry out an order, or answer with one word."""
    try:
        order, scenario = _order(message), _scenario(context)
        _refuse_foreign(order, context)
        trainer = trainer_of(scenario)
        with _charged(order, scenario, context) as watch:  # whatever can be refused without a record was refused above
            report = trainer.train(order, _shard(order, scenario, context, watch))
            if watch is not None:
                watch.note(order, report)
    except RefusedError as error:
        log.warning("order refused: %s", error)
        return Message(Error(REFUSED, error.word.value), reply_to=message)
    except Exception:
        log.exception("order failed")
        trainer_of.cache_clear()  # the resident model may be in any state
        return Message(Error(REFUSED, Refusal.FAILED.value), reply_to=message)
    frame = encode_report(report)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"update": Array(frame.array)}),
            "report": ConfigRecord(dict(frame.scalars)),
            "metrics": MetricRecord({"num-examples": 1}),  # Flower's strategies want a weight; sizes stay private
        }
    )
    return Message(content, reply_to=message)


def warm(run_config: UserConfig) -> None:
    """Build the resident model before the first order comes; a model that is unfit is refused when it does."""
    with contextlib.suppress(RefusedError):
        trainer_of(scenario_in(str(run_config["scenario"])))


def order_in(message: Message, *, weights_P: npt.NDArray[Any]) -> Order:
    """Return the order that a message carries; WireError or KeyError when there is none."""
    scalars = cast(dict[str, Scalar], dict(_record(message.content, "order", ConfigRecord)))
    return decode_order(Frame(scalars=scalars, array=weights_P))


def _record(content: RecordDict, name: str, kind: type[Kind]) -> Kind:
    """A record by its name, KeyError where there is none of this kind.

    Flower's own `array_records` and its like are cycles that keep a message's arrays until Python collects them.
    """
    record = content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def reservation(order: Order) -> ConfigRecord:
    """Return the record by which a grid says, in the client's own state, that an order is charged."""
    return ConfigRecord({"run": order.run, "round": order.round, "attempt": order.attempt, "client": order.client})


def _scenario(context: Context) -> Scenario:
    try:
        return scenario_in(str(context.run_config["scenario"]))
    except KeyError as error:
        raise RefusedError(Refusal.MALFORMED, str(error)) from error


def _order(message: Message) -> Order:
    try:
        return order_in(message, weights_P=_numbers(_record(message.content, "arrays", ArrayRecord)["weights"]))
    except (WireError, KeyError, ValueError, TypeError) as error:
        raise RefusedError(Refusal.MALFORMED, str(error)) from error


def _numbers(array: Array) -> npt.NDArray[Any]:
    """An array's numbers, to be read only; those of the last array are kept, which all orders of a round may share."""
    if _last.data is not array.data:
        _last.data, _last.numbers = array.data, array.numpy()
    return _last.numbers


@dataclass
class _Decoded:
    """An array as it came, and its numbers."""

    data: bytes | None = None
    numbers: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.float32))


_last = _Decoded()


@contextlib.contextmanager
def _charged(order: Order, scenario: Scenario, context: Context) -> Iterator[Watch | None]:
    """Charge an order, durably, before any record is read, and settle it when it is done.

    A node that has a policy decides by it, whatever the coordinator's scenario says of privacy.
    """
    names = {"policy", "ledger"} & context.node_config.keys()
    is_charged = context.state.get("reservation") == reservation(order)
    if not names and (is_charged or scenario.privacy.unit != "record"):
        yield None
        return
    if len(names) < 2:  # noqa: PLR2004 - both of them
        raise RefusedError(Refusal.NOT_RECORDED, "the node's configuration names no policy, or no ledger")
    policy, ledger = (Path(str(context.node_config[name])) for name in ("policy", "ledger"))
    try:
        seen = context.node_config.get("ledger-seen")
        owner = Owner(policy=policy, ledger=ledger, memory=None if seen is None else Path(str(seen)))
    except (OSError, DiscreetError) as error:
        raise RefusedError(Refusal.NOT_RECORDED, str(error)) from error
    with owner.charged(order, scenario) as watch:
        yield watch


def _refuse_foreign(order: Order, context: Context) -> None:
    if context.node_config.get("partition-id") != order.client:
        raise RefusedError(Refusal.NOT_IN_PLAN, "the order is for another client")


def _shard(order: Order, scenario: Scenario, context: Context, watch: Watch | None) -> Shard:
    """The client's rows, and canaries beside them; an owner's carry no mark, those of a simulated audit do."""
    try:
        mine = open_shard(Path(str(context.node_config["shards"])), order.client)
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise RefusedError(Refusal.DATA_UNFIT, str(error)) from error
    if scenario.audit is not None and "policy" in context.node_config:
        refuse_marked(mine)
    return mine if watch is None else watch.beside(mine)
