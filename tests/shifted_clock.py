"""Runs discreet by a clock that is off by as many seconds as a file says: `shifted_clock.py FILE join ...`.

A machine's clock cannot be changed in a test, but what a process reads of it can; the file is read at each look.
"""

import datetime as dt
import sys
import time
from pathlib import Path


def main() -> None:
    """Shift what this process takes for the time, then be discreet."""
    file = Path(sys.argv.pop(1))
    right = time.time

    def offset() -> float:
        return float(file.read_text() or 0)

    from flwr.supercore import date  # before whoever takes `now` from it

    date.now = lambda: dt.datetime.fromtimestamp(right() + offset(), tz=dt.UTC)
    time.time = lambda: right() + offset()

    import discreet

    discreet.main()


if __name__ == "__main__":
    main()
