"""The global model on public test data: free, since it reads nothing private.

Shapes: N test records, K classes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from common import flat
from common.config import Scenario
from common.devices import device
from common.models.registry import model_of
from common.shards import Shard
from common.tasks import task_of

BATCH = 1000


class Evaluator:
    """Measures weights on a test set."""

    def __init__(self, scenario: Scenario, test: Shard) -> None:
        """Build a model of its own for evaluation."""
        self._task = task_of(scenario.data)
        self._device = device(scenario.engine)
        self._model = model_of(scenario).to(self._device).eval()
        self._features = torch.tensor(test.features_ND)
        self._labels_N = torch.tensor(test.labels_N)

    def measure(self, weights_P: Tensor) -> dict[str, float]:
        """Return accuracy and loss, for two classes F1 of the positive one, and AUC where the test set has both."""
        flat.load(self._model, weights_P)
        with torch.no_grad(), _all_cores():
            logits_NK = torch.cat(
                [self._model(part.to(self._device)).cpu() for part in torch.split(self._features, BATCH)]
            )
        loss = functional.cross_entropy(logits_NK, self._labels_N).item()
        accuracy = (logits_NK.argmax(1) == self._labels_N).double().mean().item()
        return {"accuracy": accuracy, "loss": loss} | self._two_classes(logits_NK)

    def _two_classes(self, logits_NK: Tensor) -> dict[str, float]:
        positive = self._task.positive
        if positive is None:
            return {}
        from sklearn.metrics import f1_score, roc_auc_score

        is_positive = (self._labels_N == positive).numpy()
        predicted = (logits_NK.argmax(1) == positive).numpy()
        f1 = {"f1": float(f1_score(is_positive, predicted, zero_division=0.0))}
        if is_positive.all() or not is_positive.any():
            return f1  # there is no order of two classes where there is one
        score = torch.nan_to_num(logits_NK.softmax(1)[:, positive]).numpy()
        return f1 | {"auc": float(roc_auc_score(is_positive, score))}


@contextmanager
def _all_cores() -> Iterator[None]:
    """Between rounds every core is free; the same number of threads in every engine gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
