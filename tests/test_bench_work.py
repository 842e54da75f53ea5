"""The benchmarks of growth, startup and aggregation: that they do the work which they say they time."""

import sys

import numpy as np
import pytest
import torch

from common.config import Server, parse
from common.errors import BadInputError
from common.shards import open_shard
from server.global_model import GlobalModel
from simulations.bench import aggregation_bench, growth_bench, startup_bench
from simulations.engine.executors import identify

TINY = 8  # records of a client: 2 steps of 4


def test_clients_of_a_population_share_one_base_array(tmp_path):
    """Client k has the records of client k modulo the group, under one more name of the same file."""
    growth_bench.write_population(tmp_path, clients=5, group=2, records=TINY)
    shards = [open_shard(tmp_path / str(client // 2), client) for client in range(5)]
    assert [len(shard) for shard in shards] == [TINY] * 5
    for client, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.features_ND, shards[client % 2].features_ND)
    assert not np.array_equal(shards[0].features_ND, shards[1].features_ND)
    files = {(tmp_path / name / "features.npy").stat().st_ino for name in ("0", "1", "2")}
    assert len(files) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growth_gives_a_time_and_a_memory_figure_for_each_large_round():
    """Whole rounds of the server app on worker processes; each turn compares a client's time with a client's time."""
    time, memory = growth_bench.figures(2, many=6, few=2, around=1, work_size=TINY)
    assert (time.name, memory.name) == ("time_per_client_10000_to_100", "memory_growth_mb")
    assert len(time.turns) == len(time.sides) == len(memory.turns) == 2
    assert all(side > 0 for pair in time.sides for side in pair)
    assert (time.target, memory.target, time.at_least, memory.at_least) == (1.1, 100.0, False, False)


def test_growth_says_that_it_needs_linux():
    """Elsewhere memory cannot be measured: one error, before any work."""
    with pytest.raises(BadInputError, match="expected Linux"):
        growth_bench.refuse_elsewhere(is_linux=False)


def test_startup_times_rounds_of_ten_clients():
    """Both scenarios are valid; every client takes part in the one round."""
    plain, private = (parse(startup_bench.TEXT + privacy) for privacy in (startup_bench.PLAIN, startup_bench.PRIVATE))
    assert (plain.privacy.unit, private.privacy.unit) == ("none", "record")
    assert (plain.server.cohort, plain.run.rounds) == (10, 1)


def test_a_command_that_fails_has_no_startup_time():
    """A scenario that is refused is no first round: the error says what the command said."""
    with pytest.raises(RuntimeError, match="ended with 2"):
        startup_bench.first_round(startup_bench.TEXT)()  # no table `privacy`


def test_aggregation_moves_the_model_by_the_mean():
    """Three updates of ones and one of their own length: what is timed is the server's own arithmetic."""
    identify()
    came = list(aggregation_bench.replies(3, 5))
    model = GlobalModel(torch.zeros(5), Server(cohort=3, max_participations=1))
    aggregation_bench.aggregated(came, model, updates=3)
    drawn = [np.random.default_rng(client).standard_normal(5, np.float32) for client in range(3)]
    mean = np.sum(np.asarray(drawn, np.float64), axis=0) / 3
    np.testing.assert_allclose(model.weights_P.numpy(), mean, rtol=1e-6)


def test_aggregation_holds_the_sum_and_one_update():
    """The sum takes 8 bytes a parameter, an update 4, and nothing else is as long: below 14 for ten updates."""
    identify()
    size = 100_000
    assert aggregation_bench.held_mb(10, size) < 14 * size / 1e6


def test_aggregation_compares_time_and_measures_memory():
    """Flower's time over ours is a floor; what ours holds is a ceiling."""
    time, memory = aggregation_bench.figures(1, updates=2, size=1000)
    assert (time.name, time.at_least, time.target) == ("flower_to_ours_time", True, 4.0)
    assert (memory.name, memory.at_least) == ("aggregation_memory_mb", False)
    assert time.turns[0] > 0
