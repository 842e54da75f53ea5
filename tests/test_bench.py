"""Benchmarks: contestants alternate, ratios are exact, and figures are shown, saved and read by scripts."""

import json
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from common.errors import BadInputError
from discreet import app
from simulations.bench import catalogue
from simulations.bench.contest import Figure, alternate, ratio

FLOOR = ratio("ours_to_theirs", [6.0, 8.0, 10.0], [2.0, 2.0, 2.5], target=4.0, at_least=True)
CEILING = Figure(name="order_ms", turns=(1.0, 4.0), target=3.0, at_least=False)


def test_a_ratio_is_ours_over_theirs_turn_by_turn():
    """6/2, 8/2 and 10/2.5 are 3, 4 and 4; the median is 4."""
    assert FLOOR.turns == (3.0, 4.0, 4.0)
    assert FLOOR.median == 4.0
    assert FLOOR.sides == ((6.0, 2.0), (8.0, 2.0), (10.0, 2.5))


def test_sides_of_unequal_length_are_refused():
    """A turn that one side did not take cannot be compared."""
    with pytest.raises(ValueError, match="shorter"):
        ratio("x", [1.0, 2.0], [1.0], target=1.0, at_least=True)


@pytest.mark.parametrize(
    ("turns", "at_least", "is_met"),
    [
        ((1.0, 2.0, 9.0), True, True),  # median 2 reaches a floor of 2
        ((1.0, 1.9, 9.0), True, False),
        ((1.0, 2.0, 9.0), False, True),  # and a ceiling of 2
        ((1.0, 2.1, 9.0), False, False),
        ((1.0, 3.0), True, True),  # the median of two turns is their mean
    ],
)
def test_the_median_decides_whether_a_target_is_met(turns, at_least, is_met):
    """Neither the best turn nor the worst does."""
    assert Figure(name="x", turns=turns, target=2.0, at_least=at_least).is_met == is_met


def test_every_other_time_the_order_is_reversed():
    """One turn each does not count; then a b, b a, a b."""
    calls: list[str] = []

    def turn(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    came = alternate({"a": lambda: turn("a"), "b": lambda: turn("b")}, 3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert came == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_scripts_read_median_min_max_target_and_met():
    """The JSON has these keys for each figure, and nothing that json cannot write."""
    table = json.loads(json.dumps(catalogue.to_json("engine", [FLOOR, CEILING], repeats=3)))
    assert table == {
        "bench": "engine",
        "repeats": 3,
        "ratio": {
            "ours_to_theirs": {"median": 4.0, "min": 3.0, "max": 4.0, "target": 4.0, "met": True},
            "order_ms": {"median": 2.5, "min": 1.0, "max": 4.0, "target": 3.0, "met": True},
        },
    }


def test_every_turn_is_in_the_csv(tmp_path: Path):
    """A line a turn, with both sides of a ratio; a figure that is no ratio has none."""
    catalogue.save("engine", [FLOOR, CEILING], tmp_path / "new" / "folder")
    table = pd.read_csv(tmp_path / "new" / "folder" / "engine.csv")
    assert list(table.columns) == ["figure", "turn", "value", "ours", "theirs", "target"]
    assert table["turn"].tolist() == [1, 2, 3, 1, 2]
    assert table["value"].tolist() == [3.0, 4.0, 4.0, 1.0, 4.0]
    assert table["ours"].tolist()[:3] == [6.0, 8.0, 10.0]
    assert table["theirs"].isna().tolist() == [False, False, False, True, True]


def test_a_plot_is_written_beside_the_csv(tmp_path: Path):
    """It is a PNG."""
    catalogue.save("engine", [FLOOR, CEILING], tmp_path)
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def test_people_see_a_line_a_figure(capsys):
    """With its median, its target and whether it is met."""
    catalogue.show("engine", [FLOOR, Figure(name="slow", turns=(9.0,), target=3.0, at_least=False)], repeats=3)
    printed = capsys.readouterr().out
    met = next(line for line in printed.splitlines() if "ours_to_theirs" in line)
    missed = next(line for line in printed.splitlines() if "slow" in line)
    assert "4.00" in met
    assert "≥ 4" in met
    assert "yes" in met
    assert "≤ 3" in missed
    assert "no" in missed


def test_an_unknown_benchmark_is_bad_input(tmp_path: Path):
    """The message names those there are; the exit code is 2, and nothing is written."""
    with pytest.raises(BadInputError, match=r"expected one of engine, .*got 'speed'") as refused, suppress(SystemExit):
        app(["bench", "speed", "--out", str(tmp_path / "out")], standalone_mode=False)
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()
