"""Stacked clients learn what single ones do."""

import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from common.config import parse
from simulations.bench import stacking_bench
from simulations.bench import workload as work


def test_stacked_gradients_are_those_of_each_client():
    """What is compared is the same work: each client's own gradient, from its own records."""
    scenario = parse(work.TEXT + 'privacy = {unit = "none"}')
    model = stacking_bench._model(scenario)
    features, labels = stacking_bench._records(scenario, 3)
    weights, _ = stack_module_state([model] * 3)
    moves = vmap(grad(stacking_bench._loss(model)))(weights, features[:, 0], labels[:, 0])
    parameters = dict(model.named_parameters())
    for client in range(3):
        loss = functional.cross_entropy(functional_call(model, parameters, (features[client, 0],)), labels[client, 0])
        expected = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(moves[name][client], gradient, rtol=1e-3, atol=1e-6)


def test_both_ways_say_a_speed():
    """Two clients each."""
    scenario = parse(work.TEXT + 'privacy = {unit = "none"}')
    assert stacking_bench.stacked(scenario, 2)() > 0
    assert stacking_bench.one_by_one(scenario, 2)() > 0
