"""The node's memory: an interrupted message is found again, and an order is answered once."""

import numpy as np
import pytest

from client.node import journal as journals
from client.node.journal import Journal
from client.node.letters import Envelope
from client.node.orders import SealedReport
from common.errors import JournalError, RefusedError
from common.messages import Order, Refusal

DIGEST = "d" * 64


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def envelope(name, **changes: object):
    return Envelope(**{"id": name, "flower_run": 2**64 - 1, "expires": 7.5, "head": b"h", "tree": b"t"} | changes)


def order(number=1, attempt=1, run="r"):
    return Order(run=run, round=number, attempt=attempt, client=0, weights_P=np.zeros(2, np.float32))


def report(mark=b"\0\0\0\0"):
    return SealedReport(
        scalars={"run": "r", "round": 1, "correct": "1.5"}, update=mark, policy="p", code="c", signature=b"s"
    )


def test_messages_wait_in_their_order_until_they_are_done_with(journal, tmp_path):
    """Another process that opens the file finds what was left."""
    for name in ("b", "a", "c", "a"):
        journal.receive(envelope(name))
    journal.finish(envelope("b"))
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert again.waiting() == [envelope("a"), envelope("c")]
    again.close()


def test_the_same_order_gets_the_very_same_report(journal, tmp_path):
    """Bytes, signature and all, also after a restart."""
    assert journal.answered(order(), DIGEST) is None
    journal.keep(order(), DIGEST, report(b"\1\2\3\4"))
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert again.answered(order(), DIGEST) == report(b"\1\2\3\4")
    assert again.answered(order(attempt=2), DIGEST) is None
    again.close()


def test_another_order_of_the_same_round_and_attempt_is_refused(journal):
    """Other weights under the same numbers would be a second look at the records."""
    journal.keep(order(), DIGEST, report())
    with pytest.raises(RefusedError) as refused:
        journal.answered(order(), "e" * 64)
    assert refused.value.word is Refusal.ALREADY_TRAINED
    with pytest.raises(RefusedError):
        journal.keep(order(), "e" * 64, report())


def test_old_reports_are_let_go_of_and_never_trained_again(journal, monkeypatch):
    """The file does not grow with every update; what is no longer kept is refused."""
    monkeypatch.setattr(journals, "KEPT", 2)
    for number in (1, 2, 3):
        journal.keep(order(number), DIGEST, report())
    journal.keep(order(1, run="other"), DIGEST, report())
    assert journal.answered(order(2), DIGEST) is not None
    assert journal.answered(order(1, run="other"), DIGEST) is not None
    with pytest.raises(RefusedError) as refused:
        journal.answered(order(1), DIGEST)
    assert refused.value.word is Refusal.ALREADY_TRAINED


def test_the_reports_of_a_run_that_is_over_are_let_go_of(journal):
    """Its orders stay known."""
    journal.keep(order(), DIGEST, report())
    journal.forget("r")
    with pytest.raises(RefusedError):
        journal.answered(order(), DIGEST)


def test_every_write_waits_for_the_disk(journal):
    """SQLite's own promise: synchronous=FULL in WAL mode."""
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_journal_is_named(tmp_path):
    """Nothing is trained without a memory."""
    (tmp_path / "journal.db").write_text("not SQLite" * 200)
    with pytest.raises(JournalError, match=r"journal\.db: expected the node's journal"):
        Journal(tmp_path / "journal.db")
