"""Flower's simulation on Ray, with its own FedAvg: one actor a core, and one thread an actor.

    python flower_ray.py none | opacus | epsilon

Rounds go on within one run. The strategy calls `evaluate_fn` after each round, which waits there for the next turn: a
round is all that happens between two such calls, messages, training and aggregation.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cnn import CLIENTS, CORES, network
from flower_client import app as client_app
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from turns import Turns

ENDLESS = 10**9


class TurnsOver(Exception):  # noqa: N818 - nothing is wrong
    """Ends Flower's run."""


def rounds(grid: Grid, protection: str) -> None:
    """Run rounds until the turns are over; RuntimeError when a client failed, which Flower would pass over."""
    turns, trained = Turns(clients=CLIENTS), [CLIENTS]

    def count(replies: Sequence[RecordDict], _: str) -> MetricRecord:
        trained.append(len(replies))
        return MetricRecord()

    def wait(_: int, __: ArrayRecord) -> None:
        if [*trained, 0].pop(0) != CLIENTS:
            raise RuntimeError("a client failed: the figure would mean nothing")
        trained.clear()
        if not turns.wait():
            raise TurnsOver

    FedAvg(
        fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, train_metrics_aggr_fn=count
    ).start(
        grid,
        ArrayRecord(network().state_dict()),
        num_rounds=ENDLESS,
        train_config=ConfigRecord({"protection": protection}),
        evaluate_fn=wait,
    )


def main(protection: str) -> None:
    """Start Flower and Ray, on this machine alone."""
    server_app = ServerApp()
    server_app.main()(lambda grid, _: rounds(grid, protection))
    ray = {"num_cpus": CORES, "address": "local", "_node_ip_address": "127.0.0.1", "_temp_dir": str(Path.cwd())}
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=CLIENTS,
            backend_config={"client_resources": {"num_cpus": 1}, "init_args": ray},
        )
    except TurnsOver:
        return


if __name__ == "__main__":
    main(sys.argv[1])
