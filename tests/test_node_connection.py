"""A link that comes and goes: nothing but a request to stop ends the waiting, and a change of state is one line."""

import logging
import threading

import pytest

from client.node import connection as connections
from client.node.connection import Connection, StoppedError
from client.node.link_errors import ClockRefusedError, KeyRefusedError, RejectedError, UnreachableError


class FakeFleet:
    """Answers what it is told to, call by call."""

    def __init__(self) -> None:
        self.done = []
        self.problems = []  # raised by the next calls
        self.online = False

    def _next(self, what):
        self.done.append(what)
        if self.problems:
            raise self.problems.pop(0)

    def activate(self):
        self._next("activate")
        if self.online:
            raise KeyRefusedError("online")
        self.online = True
        return 7

    def deactivate(self, number):
        self.done.append(f"deactivate {number}")
        self.online = False

    def heartbeat(self):
        self._next("heartbeat")


@pytest.fixture
def fleet(monkeypatch):
    monkeypatch.setattr(connections, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(connections, "LONGEST_PAUSE_S", 0.002)
    return FakeFleet()


@pytest.fixture
def stop():
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def link(fleet, stop, tmp_path):
    return Connection(fleet, "hub:9443", folder=tmp_path, stop=stop)


def test_a_node_that_was_killed_takes_its_place_again(fleet, link, stop, tmp_path):
    """The link's number of it is kept, and taken off before it comes back: nobody waits for a minute."""
    link.join()
    assert fleet.online
    again = Connection(fleet, "hub:9443", folder=tmp_path, stop=stop)
    again.join()
    assert fleet.done == ["activate", "deactivate 7", "activate"]


@pytest.mark.parametrize("kept", ["", "x", "-1", "99999999999999999999999"])
def test_a_number_that_is_none_is_ignored(fleet, link, tmp_path, kept):
    """A torn file keeps nobody away."""
    (tmp_path / "node.number").write_text(kept)
    link.join()
    assert fleet.done == ["activate"]


def test_each_state_is_one_line(fleet, link, caplog):
    """Twenty attempts are one line, another trouble is another, and so is the end of it."""
    caplog.set_level(logging.INFO)
    fleet.problems = [UnreachableError("no answer")] * 20 + [ClockRefusedError("the clocks differ")] * 5
    link.join()
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert "no answer" in said[0]
    assert "the clocks differ. Set this machine's clock right" in said[1]
    assert "answers again" in said[2]


def test_after_an_outage_the_node_says_first_that_it_is_there(fleet, link):
    """The link may have taken it for dead, or be a new one that knows nothing of it."""
    link.join()
    troubles = [UnreachableError("gone")]

    def act():
        if troubles:
            raise troubles.pop()
        return "pulled"

    fleet.problems = [UnreachableError("still gone"), KeyRefusedError("unknown")]
    assert link.patiently(act) == "pulled"
    assert fleet.done == ["activate", "heartbeat", "heartbeat", "deactivate 7", "activate"]


def test_what_will_never_work_is_not_tried_again(link):
    """The caller decides."""
    calls = []

    def act():
        calls.append(1)
        raise RejectedError("too large")

    with pytest.raises(RejectedError):
        link.patiently(act)
    assert len(calls) == 1


def test_a_request_to_stop_ends_the_waiting(fleet, link, stop):
    """At once, also in the middle of a pause."""
    fleet.problems = [UnreachableError("no answer")] * 10_000
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(StoppedError):
        link.join()


def test_pauses_grow_to_a_bound(fleet, link, stop, monkeypatch):
    """From 0.2 s to 10 s, spread by a quarter."""
    monkeypatch.setattr(connections, "FIRST_PAUSE_S", 0.2)
    monkeypatch.setattr(connections, "LONGEST_PAUSE_S", 10.0)
    pauses = []
    monkeypatch.setattr(stop, "wait", pauses.append)
    fleet.problems = [UnreachableError("no answer")] * 12
    link.patiently(fleet.activate)
    assert 0.15 <= pauses[0] <= 0.25
    assert all(pause <= 12.5 for pause in pauses)
    assert pauses[-1] >= 7.5
