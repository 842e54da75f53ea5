"""The link's log: one line a fact, no data, and no flood.

Others' log lines may carry what was sent (Flower puts an exception's text into them), and anyone who can reach the
public port can cause them. So of Flower's lines only the part that names the call is kept, no trace is written, and
the same line comes at most once in `SPARING_S`.
"""

import logging
import re
import sys
import time

SPARING_S = 30
_MOST_KINDS = 1024
_CALL = re.compile(r"(?:\[[^\]]{1,80}\]){1,2}")
_LONGEST = 300


class SparingFilter(logging.Filter):
    """Let the same kind of line through once in a while; a member's lines are a kind of their own."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is written; of the link's own INFO lines each, of others' none."""
        if record.levelno < logging.WARNING:
            return record.name.startswith("discreet")
        kind = (f"{record.name}:{record.msg}"[:_LONGEST], str(getattr(record, "member", "")))
        now = time.monotonic()
        if now - self._last.get(kind, -SPARING_S) < SPARING_S:
            return False
        if len(self._last) >= _MOST_KINDS:
            self._last.clear()
        self._last[kind] = now
        return True


class LineFormatter(logging.Formatter):
    """One line: when, how grave, what; never an exception's text."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record without what it was caused with."""
        text = record.getMessage().splitlines()[0] if record.getMessage() else ""
        if record.name.startswith("flwr"):
            call = _CALL.match(text)
            text = f"Flower: {call[0] if call else record.msg.splitlines()[0]}"  # arguments may hold data
        if record.exc_info and record.exc_info[0] is not None:
            text = f"{text} ({record.exc_info[0].__name__})"
        return f"{self.formatTime(record)} {record.levelname} {text[:_LONGEST]}"


def prepare() -> None:
    """Send everything that is worth a line to stderr, once, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(SparingFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("discreet").setLevel(logging.INFO)


def quieten_flower() -> None:
    """Take away the handlers that Flower gave itself when it was imported."""
    for name in ("flwr", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
