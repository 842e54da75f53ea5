"""`discreet bench peers`: Discreet and other frameworks, in turns, on the same work.

The work is a CNN of 93,322 parameters, 100 clients a round with 56 random records each, one epoch of 4 steps of 14 by
SGD, as many single-threaded processes as there are cores. Each peer is a process of the environment that `make peers`
makes (`.venv-peers`, or the folder in DISCREET_PEERS), written as its competent user would: see `peers/`.

A figure is our clients a second over theirs. Three whole rounds of each turn are counted, after one that is not (one,
where a round takes a quarter of a minute): messages, training and aggregation, and with us also the checkpoint and the
ledger on disk. Starting is not counted. Between its turns a peer waits; Ray's own processes then use about 0.04 of a
core. Non-private and private contestants alternate apart, so that no more than needed are there at a time.

Memory is that of all processes of a contestant after its last turn (PSS), ours over theirs, measured once.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInputError
from simulations.bench.contest import Figure, alternate, ratio
from simulations.bench.memory import is_measurable, pss_mb
from simulations.bench.peer_process import Peer, interpreter, missing_modules

if TYPE_CHECKING:
    from simulations.bench.engine_rounds import Contestant

REPEATS = 3

ROUNDS = 3
MEMORY_AT_MOST = 1.0  # times theirs
SCRIPTS = Path(__file__).with_name("peers")
TORCHRUN = (
    "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node",
    str(os.cpu_count() or 1),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A peer we are compared with.

    Args:
        figure: the name of the ratio.
        at_least: its target.
        needs: the modules that its environment must have.
        arguments: what its Python is given.
        rounds: how many are counted in a turn.
    """

    figure: str
    at_least: float
    needs: tuple[str, ...]
    arguments: tuple[str, ...]
    rounds: int = ROUNDS


PLAIN = (
    Rival(
        figure="engine_to_flower_ray",
        at_least=2.5,
        needs=("torch", "flwr", "ray"),
        arguments=(str(SCRIPTS / "flower_ray.py"), "none"),
    ),
    Rival(
        figure="engine_to_pfl_torchrun",
        at_least=1.2,
        needs=("torch", "pfl"),
        arguments=(*TORCHRUN, str(SCRIPTS / "pfl_torchrun.py"), "contiguous"),
    ),
    Rival(
        figure="engine_to_pfl_torchrun_channels_last",
        at_least=1.0,
        needs=("torch", "pfl"),
        arguments=(*TORCHRUN, str(SCRIPTS / "pfl_torchrun.py"), "channels_last"),
    ),
)
PRIVATE = (
    Rival(
        figure="dp_engine_to_flower_opacus",
        at_least=3.0,
        needs=("torch", "flwr", "ray", "opacus"),
        arguments=(str(SCRIPTS / "flower_ray.py"), "opacus"),
    ),
    Rival(
        figure="dp_engine_to_flower_opacus_with_epsilon",
        at_least=6.0,
        needs=("torch", "flwr", "ray", "opacus"),
        arguments=(str(SCRIPTS / "flower_ray.py"), "epsilon"),
        rounds=1,  # it takes longer than three of the others
    ),
)


def figures(repeats: int) -> list[Figure]:
    """Compare our clients a second, and our memory, with those of Flower on Ray, of Flower with Opacus, and of pfl."""
    python = interpreter()
    needed = sorted({name for rival in (*PLAIN, *PRIVATE) for name in rival.needs})
    missing = missing_modules(python, needed)
    plain, private = able(PLAIN, missing), able(PRIVATE, missing)
    if not plain and not private:
        raise BadInputError(f"bench peers: {python} can import none of the peers. Run `make peers` again.")
    from simulations.bench.engine_rounds import engine  # with torch: after everything that is wrong was refused

    came: list[Figure] = []
    for privacy, rivals in (('{unit = "none"}', plain), ("{noise_multiplier = 1.0, budget = 1000.0}", private)):
        if rivals:
            with engine(privacy, turns=repeats + 1, rounds=ROUNDS) as ours:
                came += contest(ours, rivals, python=python, repeats=repeats)
    return came


def able(rivals: Sequence[Rival], missing: Mapping[str, str]) -> list[Rival]:
    """Return the rivals whose modules are there; say on stderr which are left out, a line each."""
    for rival in rivals:
        lacking = [missing[name] for name in rival.needs if name in missing]
        if lacking:
            sys.stderr.write(f"{rival.figure} is left out: {lacking[0]}. Run `make peers`.\n")
    return [rival for rival in rivals if not missing.keys() & set(rival.needs)]


def contest(ours: "Contestant", rivals: Sequence[Rival], *, python: Path, repeats: int) -> list[Figure]:
    """Start the rivals, let all take turns, and return the ratios of speed and of memory."""
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for rival in rivals:
            peers[rival.figure] = Peer(rival.figure, [python, *rival.arguments])
            stack.callback(peers[rival.figure].close)
        for peer in peers.values():
            peer.wait()
        turns = {rival.figure: partial(peers[rival.figure].turn, rounds=rival.rounds) for rival in rivals}
        came = alternate({"ours": ours.turn} | turns, repeats)
        memory = {name: pss_mb(peer.pids) for name, peer in peers.items()}
        our_memory = ours.memory_mb()
    speed = [ratio(r.figure, came["ours"], came[r.figure], target=r.at_least, at_least=True) for r in rivals]
    if not is_measurable():
        return speed
    return speed + [
        ratio(f"{r.figure}_memory", [our_memory], [memory[r.figure]], target=MEMORY_AT_MOST, at_least=False)
        for r in rivals
    ]
