"""The link's log: lines without data, and no flood of them."""

import io
import logging

import pytest

from server.link.log_lines import LineFormatter, SparingFilter


@pytest.fixture
def written():
    """Return a function that logs through the link's handler and returns the lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    handler.addFilter(SparingFilter())

    def write(name: str, level: int, message: str, *arguments: object, **more: object) -> list[str]:
        record = logging.getLogger(name).makeRecord(
            name, level, "file", 1, message, arguments, more.get("exc_info"), extra=more.get("extra")
        )
        handler.handle(record)
        return [line.split(" ", 2)[2] for line in stream.getvalue().splitlines()]

    return write


def test_own_line_is_written_as_it_is(written):
    """What the link says itself carries no data and is written whole."""
    assert written("discreet.link", logging.INFO, "%s: registered", "north") == ["INFO north: registered"]


def test_flowers_exception_text_is_left_out(written):
    """Flower writes an exception's text, parameters of SQL among it, behind the call: the call alone is kept."""
    text = "[/v1/fleet/push-object][UnexpectedError:IntegrityError] patient 17\nparameters: ..."
    assert written("flwr", logging.ERROR, text) == [
        "ERROR Flower: [/v1/fleet/push-object][UnexpectedError:IntegrityError]"
    ]


def test_flowers_arguments_are_left_out(written):
    """Of another line only the words that stand in Flower's source are kept."""
    assert written("flwr", logging.WARNING, "Lost %s", "patient 17") == ["WARNING Flower: Lost %s"]


def test_traces_become_the_exceptions_name(written):
    """A trace would hold the exception's text."""
    with pytest.raises(ValueError, match="patient") as raised:
        int("patient 17")
    info = (raised.type, raised.value, raised.tb)
    assert written("uvicorn.error", logging.ERROR, "Exception in app\n", exc_info=info) == [
        "ERROR Exception in app (ValueError)"
    ]


def test_same_kind_of_line_comes_once_in_a_while(written):
    """A flood of one refusal is one line; another member's is another line."""
    for name in ("north", "north", "south"):
        lines = written("discreet.link", logging.WARNING, "refused %s", name, extra={"member": name})
    assert lines == ["WARNING refused north", "WARNING refused south"]


def test_others_chatter_is_not_written(written):
    """Below a warning only the link itself is heard."""
    assert written("flwr", logging.INFO, "Using x") == []


def test_memory_of_kinds_is_bounded(written):
    """Lines of ever other kinds do not fill the memory."""
    sparing = SparingFilter()
    for number in range(5000):
        sparing.filter(logging.LogRecord("x", logging.ERROR, "file", 1, f"kind {number}", (), None))
    assert len(sparing._last) <= 1024
