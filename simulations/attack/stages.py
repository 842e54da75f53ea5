"""How far an attack is, on stderr: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from simulations.attack.attack import Stage


@contextmanager
def shown() -> Iterator[Stage]:
    """Yield what an attack tells its stages to."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        yield lambda name, total: _lines(console, name, total)
        return
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield lambda name, total: _moves(bar, name, total)


def silent(name: str, total: int) -> Callable[[], None]:
    """Say nothing."""
    del name, total
    return lambda: None


def _moves(bar: Progress, name: str, total: int) -> Callable[[], None]:
    task = bar.add_task(name, total=total)
    return lambda: bar.advance(task)


def _lines(console: Console, name: str, total: int) -> Callable[[], None]:
    done = 0

    def is_done() -> None:
        nonlocal done
        done += 1
        console.print(f"{name} {done}/{total}", markup=False)

    return is_done
