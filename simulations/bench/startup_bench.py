"""`discreet bench startup`: from the command, as a new process, to the end of a first round.

A person waits for the command, whoever else computes meanwhile: the figures are wall time, and mean something on a
quiet machine only.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulations.bench.contest import Figure, Turn, alternate

REPEATS = 5

TARGET_S, PRIVATE_TARGET_S = 3.0, 6.0
TEXT = """
run = {name = "startup", rounds = 1}
data = {dataset = "digits", clients = 10}
model = {name = "cnn", activation = "relu"}
training = {batch_size = 14, local_steps = 4}
"""
PLAIN, PRIVATE = 'privacy = {unit = "none"}', "privacy = {epsilon = 8.0}"
DONE = "round 1/1"


def figures(repeats: int) -> list[Figure]:
    """Time a first round of 10 clients without privacy and with differential privacy of a record, in seconds."""
    came = alternate({"plain": first_round(TEXT + PLAIN), "private": first_round(TEXT + PRIVATE)}, repeats)
    return [
        Figure(name="cold_start_s", turns=tuple(came["plain"]), target=TARGET_S, at_least=False),
        Figure(name="cold_start_private_s", turns=tuple(came["private"]), target=PRIVATE_TARGET_S, at_least=False),
    ]


def first_round(scenario: str) -> Turn:
    """Return a turn: start the command in a new process, and wait for the line that says that its round is over."""

    def turn() -> float:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "scenario.toml"
            file.write_text(scenario)
            command = [sys.executable, "-m", "discreet", "simulate", str(file), "--out", f"{name}/run", "--json"]
            started = time.perf_counter()
            return _seconds_to_line(command, started)

    return turn


def _seconds_to_line(command: list[str], started: float) -> float:
    """Seconds until a command says DONE on stderr; RuntimeError when it ends without, or fails."""
    took, said = None, []
    with subprocess.Popen(  # noqa: S603 - our own command
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr or ():
            said.append(line)
            if took is None and line.startswith(DONE):
                took = time.perf_counter() - started
    if took is None or process.returncode != 0:
        raise RuntimeError(f"the command ended with {process.returncode}: {''.join(said[-5:])}")
    return took
