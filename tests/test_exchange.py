"""A round's messages: what is read of an answer, and that nothing of it stays behind."""

import gc
import weakref

import numpy as np
import pytest
from fake_grid import reply
from flwr.app import Array, ConfigRecord, MetricRecord

from common.messages import Order
from server.exchange import order_message, report_in, weights_record
from server.replies import ReplyRefusedError
from simulations.engine.executors import identify


def answer(update=(1.0, 2.0)):
    """A good reply to an order."""
    identify()
    order = Order(run="r", round=1, attempt=1, client=0, weights_P=np.zeros(0, np.float32))
    asked = order_message(order, arrays=weights_record(np.zeros(2, np.float32)), node=1, ttl_s=60.0)
    return reply(asked, np.array(update, np.float32))


def test_an_answer_is_read():
    """The update and its address come out as they were sent."""
    report = report_in(answer(), size=2)
    assert (report.run, report.client, report.update_P.tolist()) == ("r", 0, [1.0, 2.0])


def test_an_answer_that_was_read_is_gone_at_once():
    """No cycle keeps it until Python collects garbage: one update is in memory at a time."""
    gc.collect()
    gc.disable()
    try:
        one = answer()
        array: Array = one.content["arrays"]["update"]  # type: ignore[assignment,index]
        gone = weakref.ref(array)
        report = report_in(one, size=2)
        del one, array, report
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("arrays", ConfigRecord({"update": 1.0})),
        ("report", MetricRecord({"round": 1})),
        ("arrays", None),
        ("report", None),
    ],
)
def test_a_record_that_is_missing_or_of_another_kind_is_malformed(name, record):
    """Arrays where scalars belong, scalars where arrays belong, or nothing: one word."""
    one = answer()
    del one.content[name]
    if record is not None:
        one.content[name] = record
    with pytest.raises(ReplyRefusedError, match=r"^malformed$"):
        report_in(one, size=2)
