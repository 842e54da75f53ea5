"""pfl's distributed simulation: one process a core and one thread a process, sums by all-reduce.

    python -m torch.distributed.run --standalone --nproc-per-node 2 pfl_torchrun.py contiguous
    python -m torch.distributed.run --standalone --nproc-per-node 2 pfl_torchrun.py channels_last

Rounds go on within one `FederatedAveraging.run`. A callback waits after each round for the next turn: the first process
talks, the others wait for its word. A round is everything between two callbacks: sampling, training, reduction, and the
step of the central optimiser. Only the first round of all evaluates on the clients' records; none that counts does.
"""

import sys

import numpy as np
import torch
from cnn import BATCH, CLIENTS, LEARNING_RATE, network, records
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from turns import Turns

ENDLESS = 10**9


class Classifier(nn.Sequential):
    """The network, with the two methods that pfl asks for."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Return the loss of a data set."""
        with torch.no_grad():
            return {"loss": Weighted(cross_entropy(self(images), labels, reduction="sum").item(), len(labels))}


class Waiting(TrainingProcessCallback):
    """Waits between rounds."""

    def __init__(self) -> None:
        self._turns = Turns(clients=CLIENTS) if distributed.get_rank() == 0 else None

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Wait for the first turn."""
        del model
        self._is_over()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Wait for the next turn, or say that there is none."""
        del aggregate_metrics, model, central_iteration
        return self._is_over(), Metrics()

    def _is_over(self) -> bool:
        word = torch.tensor([0 if self._turns is None else int(self._turns.wait())])
        distributed.broadcast(word, src=0)
        return not word.item()


def main(layout: str) -> None:
    """Run rounds until the turns are over."""
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - pfl draws from numpy's global state, which must be the same in all processes
    users = {number: Dataset(raw_data=(images, labels)) for number, (images, labels) in enumerate(records())}
    clients = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    module = Classifier(*network())
    if layout == "channels_last":
        module.to(memory_format=torch.channels_last)
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=clients, val_data=clients),
        model=PyTorchModel(
            module,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        ),
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ENDLESS,
            evaluation_frequency=ENDLESS,
            train_cohort_size=CLIENTS,
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Waiting()],
    )


if __name__ == "__main__":
    main(sys.argv[1])
