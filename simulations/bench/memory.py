"""The memory of processes, as the kernel counts it: what several share is split among them (PSS).

Linux only. Elsewhere there is no /proc, and nothing to measure.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def is_measurable() -> bool:
    """Whether this machine tells."""
    return (PROC / "self" / "smaps_rollup").exists()


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for one in found:  # it grows while it is walked
        for task in PROC.glob(f"{one}/task/*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found += [int(child) for child in task.read_text().split()]
    return found


def pss_mb(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes together, in MB of 10^6 bytes; those that ended count nothing."""
    kilobytes = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes * 1024 / 1e6
