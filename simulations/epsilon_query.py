"""`discreet epsilon`: what three accountants say of a history that is given in figures."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.errors import BadInputError
from common.privacy import accounting
from common.privacy.events import ADJACENCY, MAX_SEGMENTS, History, SampledGaussian


def history(
    segments: Path | None, noise_multiplier: float | None, sampling_rate: str | None, steps: int | None
) -> History:
    """Return the history that the options of `discreet epsilon` describe, or raise BadInputError."""
    if segments is not None:
        if (noise_multiplier, sampling_rate, steps) != (None, None, None):
            raise BadInputError("--segments: expected it alone, got it with other figures. Leave those out.")
        return _read_segments(segments)
    if noise_multiplier is None or sampling_rate is None or steps is None:
        raise BadInputError("expected --noise-multiplier, --sampling-rate and --steps, or --segments FILE.")
    return (_event({"noise_multiplier": noise_multiplier, "sampling_rate": sampling_rate, "steps": steps}, "options"),)


def verdict(events: History, *, delta: float) -> dict[str, Any]:
    """Return epsilon by three accountants as plain values."""
    return verdict_of(accounting.check(events, delta=delta)) | {"delta": delta, "adjacency": ADJACENCY}


def verdict_of(answer: accounting.Verdict) -> dict[str, Any]:
    """Return a verdict as plain values."""
    return {
        "epsilon": answer.reported,
        "reported_by": answer.reported_by,
        "pld": answer.pld,
        "prv": answer.prv,
        "prv_interval": None if answer.prv_low is None else [answer.prv_low, answer.prv_high],
        "rdp": answer.rdp,
        "unanswered": answer.unanswered,
    }


def show_verdict(table: Mapping[str, Any]) -> None:
    """Print epsilon for people."""
    from rich.console import Console

    Console().print(f"ε = {table['epsilon']:.4f} at δ = {table['delta']:g}, {table['adjacency']} adjacency")
    Console().print(in_words(table))


def in_words(table: Mapping[str, Any]) -> str:
    """Say what each accountant answered, and which figure is reported."""
    said = []
    if table["pld"] is not None:
        said.append(f"PLD {table['pld']:.4f} (reported)")
    if table["prv"] is not None:
        low, high = table["prv_interval"]
        said.append(f"PRV {table['prv']:.4f} in [{low:.4f}, {high:.4f}]")
    said.append(f"RDP {table['rdp']:.4f} ({'reported' if table['pld'] is None else 'looser bound'})")
    agreed = ": they agree." if len(said) > 1 else "."
    return ", ".join(said) + agreed + (f" {table['unanswered']}" if table["unanswered"] else "")


def _read_segments(path: Path) -> History:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: expected a JSON list of segments ({error}).") from error
    if not isinstance(values, list) or not 0 < len(values) <= MAX_SEGMENTS:
        raise BadInputError(f"{path}: expected a list of 1 to {MAX_SEGMENTS} segments.")
    return tuple(_event(value, f"{path}: segment {number}") for number, value in enumerate(values, 1))


def _event(value: object, place: str) -> SampledGaussian:
    known = {"noise_multiplier", "sampling_rate", "steps"}
    if not isinstance(value, dict) or value.keys() != known:
        raise BadInputError(f"{place}: expected {{noise_multiplier, sampling_rate, steps}}, got {value}.")
    try:
        if not isinstance(value["steps"], int):
            raise ValueError(f"steps: expected a whole number, got {value['steps']}")  # noqa: TRY301, TRY004
        return SampledGaussian(
            noise_multiplier=float(value["noise_multiplier"]),
            sampling_rate=Fraction(value["sampling_rate"]),
            steps=value["steps"],
        )
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise BadInputError(f"{place}: {error}.") from error
