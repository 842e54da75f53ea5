"""The apps behind `flwr run`: whoever runs them, no order of a private run trains before it is charged.

Flower's grid is played by one that calls the client app at once; tests/test_ray.py has the real runtime.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid
from flwr.app import Context, Message, RecordDict, UserConfig
from ledger_reader import charged, refused, settled
from safetensors.torch import load_file

from common.config import parse
from common.errors import BadInputError, BudgetSpentError, DiscreetError, RunFailedError, ScenarioError
from common.transparency.export import read
from common.transparency.verification import verify
from server.observer import Observer
from simulations import flower_apps
from simulations.single_run import simulate

NODES = (907, 13, 450, 88)  # Flower's numbers of nodes are random, and say nothing of the partition
SMALL = """
run = {name = "small", rounds = 2}
data = {dataset = "digits", clients = 4}
model = {name = "cnn", channels = [4, 4, 4], dense = 8}
training = {batch_size = 40, local_steps = 1}
engine = {kind = "sequential", device = "cpu"}
"""
NONE = SMALL + 'privacy = {unit = "none"}\n'
RECORD = SMALL + "privacy = {epsilon = 8.0}\n"
CLIENT = SMALL + 'privacy = {unit = "client", noise_multiplier = 2.0, delta = 0.05}\n'


class FlowerGrid(FakeGrid):
    """Nodes with Flower's numbers; each has a context of its own, which Flower keeps between messages."""

    def __init__(
        self, config: UserConfig, *, nodes: tuple[int, ...] = NODES, before: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(len(nodes), self._ask, before_push=before)
        self.answers: list[Message] = []
        self._nodes = nodes
        self._contexts = {
            node: Context(1, node, {"partition-id": 0, "num-partitions": len(nodes)}, RecordDict(), dict(config))
            for node in nodes
        }

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def _ask(self, message: Message) -> Message:
        answer = flower_apps.client_app(message, self._contexts[message.metadata.dst_node_id])
        self.answers.append(answer)
        return answer


@pytest.fixture(autouse=True)
def _fresh_process():
    """A client's process knows one run; several tests share this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    flower_apps._member.cache_clear()


def config_of(text: str, folder: Path, **more: str) -> UserConfig:
    return {"scenario": text, "set": "", "folder": str(folder), "ledger": ""} | more


def serve(grid: FlowerGrid, config: UserConfig) -> None:
    flower_apps.server_app(grid, Context(1, 0, {}, RecordDict(), config))


def run(text: str, folder: Path, **more: str) -> FlowerGrid:
    config = config_of(text, folder, **more)
    grid = FlowerGrid(config)
    serve(grid, config)
    return grid


def words(grid: FlowerGrid) -> set[str | None]:
    return {answer.error.reason for answer in grid.answers if answer.has_error()}


def test_run_without_privacy_is_bit_equal_to_simulate(tmp_path, capsys):
    """The same clients have the same records, whatever the numbers of their nodes are."""
    run(NONE, tmp_path / "flower")
    simulate(parse(NONE), out=tmp_path / "simulate", ledger=None, watcher=Observer())
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("flower", "simulate"))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (outcome["rounds"], outcome["client_updates"]) == (2, 8)


def test_private_run_charges_each_order_and_settles_it(tmp_path):
    """Two rounds of four clients: eight charges, eight commits, the end of the run, and the ledger is whole."""
    run(RECORD, tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.db"
    names = [f"digits/client-{client:06d}" for client in range(4)]
    assert sorted(charged(ledger)) == [(number, 1, name) for number in (1, 2) for name in names]
    assert sorted(settled(ledger)) == [("COMMIT", number, 1, name) for number in (0, 1, 2) for name in names]
    verify(read(ledger))
    assert not (tmp_path / "run" / flower_apps.SHEET).exists()


def spoilt(folder: Path, spoil: Callable[[Path], None]) -> FlowerGrid:
    """Run until the orders come, spoil something, and return the grid of a run that failed."""
    config = config_of(RECORD, folder)
    grid = FlowerGrid(config, before=lambda: spoil(folder))
    with pytest.raises(DiscreetError):
        serve(grid, config)
    return grid


def blinded(folder: Path) -> None:
    """Take the records away, as on a node that does not see the scratch folder."""
    sheet = json.loads((folder / flower_apps.SHEET).read_text())
    (Path(sheet["shards"]) / "features.npy").unlink(missing_ok=True)


def test_order_is_charged_before_its_records_are_looked_for(tmp_path):
    """Where the records are out of sight every client says data-unfit, and its order is charged all the same."""
    grid = spoilt(tmp_path / "run", blinded)
    assert words(grid) == {"data-unfit"}
    ledger = tmp_path / "run" / "ledger.db"
    assert len(charged(ledger)) == len(grid.answers) == 3 * 4  # the round and its two spares
    assert {entry[0] for entry in settled(ledger)} == {"EXPIRE"}


def test_client_level_run_charges_the_population_alone(tmp_path):
    """The coordinator's own account is charged by the server app, no client's."""
    run(CLIENT, tmp_path / "run")
    assert charged(tmp_path / "run" / "ledger.db") == [(number, 1, "digits/population") for number in (1, 2)]


def elsewhere(folder: Path) -> None:
    sheet = json.loads((folder / flower_apps.SHEET).read_text())
    (folder / flower_apps.SHEET).write_text(json.dumps(sheet | {"machine": "another"}))


def test_ledger_of_another_machine_is_not_written_and_nobody_trains(tmp_path):
    """SQLite's locks do not reach another machine: every client refuses, and nothing is charged."""
    grid = spoilt(tmp_path / "run", elsewhere)
    assert words(grid) == {"not-recorded"}
    assert all(answer.has_error() for answer in grid.answers)
    assert charged(tmp_path / "run" / "ledger.db") == []


@pytest.mark.parametrize("name", [flower_apps.SHEET, "ledger.db.key", "plan.json"])
def test_client_that_cannot_know_its_run_does_not_train(tmp_path, name):
    """Without the sheet, the ledger's key or the plan there is nothing to charge on, so that nothing is trained."""
    grid = spoilt(tmp_path / "run", lambda folder: (folder / name).unlink(missing_ok=True))
    assert words(grid) == {"not-recorded"}
    assert all(answer.has_error() for answer in grid.answers)


def test_same_order_does_not_train_twice_and_a_foreign_one_is_not_charged(tmp_path):
    """A message that comes twice is refused by the ledger; one for another node's client before it."""
    found: list[str] = []

    class Twice(FlowerGrid):
        def _ask(self, message: Message) -> Message:
            answer = super()._ask(message)
            found.append(super()._ask(message).error.reason)
            other = next(node for node in NODES if node != message.metadata.dst_node_id)
            found.append(flower_apps.client_app(message, self._contexts[other]).error.reason)
            return answer

    config = config_of(RECORD, tmp_path / "run", set="run.rounds=1")
    serve(Twice(config), config)
    assert found == ["already-trained", "not-in-plan"] * 4
    assert len(charged(tmp_path / "run" / "ledger.db")) == 4


def test_reservation_that_a_node_s_state_holds_is_not_believed(tmp_path):
    """Only a charge of this order lets it train: what lies in Flower's own context is not looked at."""
    config = config_of(RECORD, tmp_path / "run")

    class Forging(FlowerGrid):
        def _ask(self, message: Message) -> Message:
            elsewhere(tmp_path / "run")
            order = flower_apps.order_in(message, weights_P=np.zeros(0, np.float32))
            self._contexts[message.metadata.dst_node_id].state["reservation"] = flower_apps.reservation(order)
            return super()._ask(message)

    grid = Forging(config)
    with pytest.raises(RunFailedError):
        serve(grid, config)
    assert words(grid) == {"not-recorded"}


def test_spent_budget_ends_the_run_with_an_error(tmp_path):
    """On a ledger whose budget one run used up, the next fails as a whole, so that Flower says failed."""
    run(RECORD, tmp_path / "first", ledger=str(tmp_path / "owners.db"))
    flower_apps._member.cache_clear()
    with pytest.raises(BudgetSpentError):
        run(RECORD.replace("rounds = 2", "rounds = 40"), tmp_path / "second", ledger=str(tmp_path / "owners.db"))
    assert {word for _, word in refused(tmp_path / "owners.db")} == {"budget-spent"}


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"folder": "runs/x"}, BadInputError, "folder: expected a full path"),
        ({"folder": ""}, BadInputError, "folder: expected a full path"),
        ({"set": "data.clients=5"}, BadInputError, "num-supernodes=5"),
        ({"scenario": "nonsense"}, BadInputError, "scenario: expected digits, "),
        ({"scenario": "/nowhere/x.toml"}, ScenarioError, "/nowhere/x.toml: cannot be read"),
    ],
)
def test_wrong_run_config_is_refused_before_anything_is_written(tmp_path, changes, error, says):
    """Too few nodes, a folder that only one side would find, a scenario that is none: one error with a remedy."""
    config = config_of(RECORD, tmp_path / "run") | changes
    with pytest.raises(error, match=says):
        serve(FlowerGrid(config), config)
    assert list(tmp_path.iterdir()) == []


def test_scenario_comes_by_name_or_as_a_file(tmp_path):
    """As a shipped scenario's name, or as a full path, with overrides."""
    (tmp_path / "own.toml").write_text(NONE)
    assert flower_apps._scenario({"scenario": "digits", "set": "run.rounds=3"}).run.rounds == 3
    own = flower_apps._scenario({"scenario": str(tmp_path / "own.toml"), "set": "run.rounds=3 run.seed=4"})
    assert (own.run.name, own.run.rounds, own.run.seed) == ("small", 3, 4)
