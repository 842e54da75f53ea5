"""The optimisers of clients and of the server, step by step."""

import subprocess
import sys

import pytest
import torch
from torch.nn import Parameter

from common.config import Server, Training
from common.optimizers import client_optimizer, server_optimizer


def training(optimizer, **changes: float):
    """A client's table."""
    return Training(batch_size=8, optimizer=optimizer, **changes)


def server(optimizer, **changes: float):
    """The server's table."""
    return Server(cohort=2, max_participations=3, optimizer=optimizer, **changes)


def walk(make, table, gradients):
    """Where one weight that starts at 0 stands after each of these gradients."""
    weight = Parameter(torch.zeros(1))
    optimizer = make([weight], table)
    places = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        places.append(weight.item())
    return places


def test_sgd_subtracts_learning_rate_times_gradient():
    """With rate 0.5: 0 - 0.5 x 2 = -1, then -1 - 0.5 x (-4) = 1."""
    assert walk(client_optimizer, training("sgd", learning_rate=0.5), [2.0, -4.0]) == [-1.0, 1.0]


def test_sgd_has_no_momentum():
    """The key `momentum` belongs to the optimiser of that name: a gradient of 0 moves nothing under sgd."""
    assert walk(client_optimizer, training("sgd", learning_rate=0.5, momentum=0.9), [2.0, 0.0]) == [-1.0, -1.0]


def test_momentum_remembers_its_speed():
    """With rate 1 and momentum 0.5: speed 2, then 0.5 x 2 + 0 = 1, then 0.5 x 1 + 4 = 4.5."""
    table = training("momentum", learning_rate=1.0, momentum=0.5)
    assert walk(client_optimizer, table, [2.0, 0.0, 4.0]) == [-2.0, -3.0, -7.5]


def test_momentum_defaults_to_nine_tenths():
    """Speed 1, then 0.9."""
    assert walk(client_optimizer, training("momentum", learning_rate=1.0), [1.0, 0.0]) == pytest.approx([-1.0, -1.9])


def test_adam_of_a_client_takes_steps_of_the_learning_rate():
    """The first step is g / (|g| + 1e-8) times the rate: nearly the rate, whatever the gradient's size."""
    table = training("adam", learning_rate=0.1)
    assert walk(client_optimizer, table, [1e-3]) == pytest.approx([-0.1], rel=1e-4)
    assert walk(client_optimizer, table, [-1e3]) == pytest.approx([0.1], rel=1e-6)


def test_adam_of_the_server_damps_small_updates():
    """With eps 1e-3 a first gradient of 1e-3 moves by 1e-3 / (1e-3 + 1e-3) = 1/2 of the rate."""
    assert walk(server_optimizer, server("adam", learning_rate=1.0), [1e-3]) == pytest.approx([-0.5], rel=1e-5)


def test_adam_decays_by_nine_tenths_and_ninety_nine_hundredths():
    """After gradients 1 and 0: mean 0.09 / 0.19, square 0.0099 / 0.0199, and the step is their ratio."""
    # m = 0.9 x 0.1 = 0.09, corrected by 1 - 0.9^2 = 0.19; v = 0.99 x 0.01 = 0.0099, by 1 - 0.99^2 = 0.0199
    first, second = walk(client_optimizer, training("adam", learning_rate=1.0), [1.0, 0.0])
    assert first - second == pytest.approx((0.09 / 0.19) / (0.0099 / 0.0199) ** 0.5, rel=1e-5)


def test_the_server_moves_by_the_mean_update():
    """With sgd and rate 1, the negative mean update as gradient moves the weight by the mean update."""
    assert walk(server_optimizer, server("sgd"), [-0.25]) == [0.25]


def test_the_server_has_its_own_momentum():
    """With rate 1 and momentum 0.5, an update of 1 goes on to move the weight by 0.5."""
    assert walk(server_optimizer, server("momentum", momentum=0.5), [-1.0, 0.0]) == [1.0, 1.5]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("make", [client_optimizer, server_optimizer])
def test_a_new_optimiser_has_no_state(make, name):
    """Nothing of one client is in the next one's optimiser: its state is empty until the first step."""
    table = training(name) if make is client_optimizer else server(name)
    weight = Parameter(torch.zeros(1))
    first = make([weight], table)
    weight.grad = torch.ones(1)
    first.step()
    assert make([weight], table).state == {}


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_no_optimiser_decays_weights(name):
    """A gradient of 0 leaves a weight of 3 where it is: no hidden regularisation."""
    weight = Parameter(torch.full((1,), 3.0))
    optimizer = client_optimizer([weight], training(name))
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == 3.0


def test_no_optimiser_imports_the_compiler():
    """Building, stepping and clearing both kinds leave PyTorch's compiler unimported: it takes longer than a round."""
    code = """
import sys, torch
from common.config import Server, Training
from common.optimizers import client_optimizer, server_optimizer
weight = torch.nn.Parameter(torch.ones(1))
for name in ("sgd", "momentum", "adam"):
    tables = (Training(batch_size=1, optimizer=name), Server(cohort=1, max_participations=1, optimizer=name))
    for make, table in zip((client_optimizer, server_optimizer), tables):
        optimizer = make([weight], table)
        optimizer.zero_grad(set_to_none=True)
        weight.grad = torch.ones(1)
        optimizer.step()
print("torch._dynamo" in sys.modules, weight.item() < 1)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False True\n"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_steps_are_those_of_torch_bit_for_bit(optimizer):
    """Leaving out the compiler's marks changes no number, and nothing is recorded for a gradient of a step."""
    plain = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.99), eps=1e-8),
    }[optimizer]
    makers = (lambda parameters: client_optimizer(parameters, training(optimizer)), plain)
    ends = []
    for make in makers:
        weight = Parameter(torch.linspace(-1, 1, 50))
        stepper = make([weight])
        for step in range(5):
            weight.grad = torch.sin(torch.arange(50.0) * (step + 1))
            stepper.step()
        assert weight.grad_fn is None
        ends.append(weight.detach().numpy().tobytes())
    assert ends[0] == ends[1]
