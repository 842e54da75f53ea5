"""`discreet bench stacking`: is it faster to train clients of equal shape stacked together than one after another?

Stacked, the weights of many clients are one tensor each, `torch.func.vmap` maps the gradient over them, and one call
serves all. The engine trains one client after another: this is what decides whether it should. On two cores stacking
loses; on a GPU, where a single small client leaves most of the card idle, it has to be measured there.
"""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from common.config import Scenario, parse
from common.devices import device
from common.models.registry import build
from common.tasks import task_of
from simulations.bench import workload as work
from simulations.bench.contest import Figure, Turn, alternate, ratio

REPEATS = 5

STEPS, BATCH = 4, 14
STACKS = (10, 40)


def figures(repeats: int) -> list[Figure]:
    """Compare clients a second, stacked and one after another, on the device that a scenario would take."""
    torch.set_num_threads(1)
    scenario = parse(work.TEXT + 'privacy = {unit = "none"}')
    made = []
    for clients in STACKS:
        came = alternate({"stacked": stacked(scenario, clients), "single": one_by_one(scenario, clients)}, repeats)
        name = f"stacked_{clients}_to_one_by_one"
        made.append(ratio(name, came["stacked"], came["single"], target=1.0, at_least=True))
    return made


def stacked(scenario: Scenario, clients: int) -> Turn:
    """Clients a second of training `clients` at once."""
    features_CSB, labels_CSB = _records(scenario, clients)
    model = _model(scenario)
    gradients = vmap(grad(_loss(model)))

    def turn() -> float:
        started = time.perf_counter()
        weights, _ = stack_module_state([model] * clients)
        with torch.no_grad():
            for step in range(STEPS):
                moves = gradients(weights, features_CSB[:, step], labels_CSB[:, step])
                weights = {name: weight - 0.1 * moves[name] for name, weight in weights.items()}
        return _speed(clients, started, weights)

    return turn


def one_by_one(scenario: Scenario, clients: int) -> Turn:
    """Clients a second of training one after another on a resident model, as the engine does."""
    features_CSB, labels_CSB = _records(scenario, clients)
    model = _model(scenario).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def turn() -> float:
        started = time.perf_counter()
        for client in range(clients):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(start[name])
            for step in range(STEPS):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(model(features_CSB[client, step]), labels_CSB[client, step]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return _speed(clients, started, dict(model.named_parameters()))

    return turn


def _model(scenario: Scenario) -> nn.Module:
    return build(scenario.model, task_of(scenario.data), seed=7).to(device(scenario.engine))


def _loss(model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]:
    def loss(weights: Mapping[str, Tensor], features_B: Tensor, labels_B: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, dict(weights), (features_B,)), labels_B)

    return loss


def _records(scenario: Scenario, clients: int) -> tuple[Tensor, Tensor]:
    """Random records, (clients, steps, batch, ...), on the scenario's device."""
    shard = work.records(clients * STEPS * BATCH)
    features, labels = torch.from_numpy(shard.features_ND), torch.from_numpy(shard.labels_N)
    shape, there = (clients, STEPS, BATCH), device(scenario.engine)
    return features.view(*shape, *features.shape[1:]).to(there), labels.view(shape).to(there)


def _speed(clients: int, started: float, weights: Mapping[str, Tensor]) -> float:
    """Clients a second, once the device is done."""
    next(iter(weights.values())).sum().item()
    return clients / (time.perf_counter() - started)
