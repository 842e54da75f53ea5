"""The rounds: a Flower strategy whose loop can be stopped anywhere and taken up again.

Shapes: P is the number of parameters.

    begin (durable) -> cohort -> charge -> orders -> replies, one by one -> check -> ordered sum -> (noise) -> step
                    -> evaluate -> rounds.csv -> checkpoint

Only messages of Flower's kind go through the `Grid`, so that the same strategy runs in process, on Ray and on a
SuperLink. It is longer than most modules: the loop, and the methods that Flower expects of it, read best in one place.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from common.config import Scenario
from common.errors import BudgetSpentError, RunFailedError
from common.messages import FloatArray, Order, Refusal
from common.privacy.entropy import Entropy
from common.privacy.plan import Plan
from server.aggregation import OrderedSum
from server.attempts import SPENT, Attempt, Attempts
from server.evaluation import Evaluator
from server.exchange import order_message, replies, report_in, weights_record
from server.global_model import GlobalModel, float32, noised
from server.observer import RoundRecord, observer
from server.pooling import Pool
from server.replies import ReplyRefusedError, checked_correct, checked_update
from server.run_folder import RunFolder

log = logging.getLogger("discreet.server")

_EMPTY = np.zeros(0, np.float32)


class PrivateAveraging(Strategy):
    """Federated averaging of private updates, with checkpoints.

    Guarantees:
        After a kill at any point, `start` continues with the round that was lost. Without privacy the result is
        bit-equal to an unbroken run; with it the lost round is charged and attempted again.
        A reply that fails a check is not used, its sender is named, and the others count.
        A round in which fewer than `min_replies` replies are good, or none came by the deadline, changes nothing.
        For unit `client` the charge is on disk before anybody is asked, and noise is added to an empty cohort too.
    """

    def __init__(
        self, *, scenario: Scenario, plan: Plan, model: GlobalModel, folder: RunFolder, evaluator: Evaluator
    ) -> None:
        self._scenario, self._plan, self._model = scenario, plan, model
        self._folder, self._evaluator = folder, evaluator
        self._attempts = Attempts(scenario, plan, folder)
        self._observer = observer.get()
        self._nodes: list[int] = []
        self._client_of: dict[int, int] = {}
        self._attempt = Attempt(round=0, number=1, cohort=np.arange(0))
        self._refused: list[tuple[int, str]] = []
        self._replies = 0
        self._last: RoundRecord | None = None
        self._pool = Pool()

    def start(  # noqa: D417, PLR0917 - the arguments are Flower's
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds that are not done yet; RunFailedError when too few replies came and no spare is left.

        Args:
            grid: the way to the clients.
            initial_arrays: the weights to start from; replaced by the checkpoint's where there is one.
            num_rounds: how many rounds the run has in all.
            timeout: seconds to wait for a round's replies.
        """
        del train_config, evaluate_config, evaluate_fn  # a scenario says all of it
        self._nodes = sorted(grid.get_node_ids())
        self._client_of = {node: client for client, node in enumerate(self._nodes)}
        if len(self._nodes) < self._scenario.data.clients:
            raise RunFailedError(
                f"Expected {self._scenario.data.clients} nodes, got {len(self._nodes)}. Start the missing ones."
            )
        done = self._resume()
        self._observer.run_started(rounds=num_rounds, done=done)
        result = Result(arrays=initial_arrays)
        with self._attempts.open():
            for number in range(done + 1, num_rounds + 1):
                try:
                    record = self._round(grid, number, timeout_s=timeout)
                except BudgetSpentError:
                    self._evaluate_late()
                    raise
                result.arrays = self._arrays()
                if record.metrics:
                    result.evaluate_metrics_serverapp[number] = MetricRecord(dict(record.metrics))
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Yield one order for each client of the cohort; all share one array, each has a record of its own."""
        del config, grid
        for client in self._attempt.cohort.tolist():
            order = self._order(server_round, client)
            ttl_s = self._scenario.server.round_timeout_s
            yield order_message(order, arrays=arrays, node=self._nodes[client], ttl_s=ttl_s)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the good replies as they come, then move the model; None where too few were good."""
        size = len(self._model.weights_P)
        weights = None
        if self._scenario.server.weighting == "records":
            weights = {client: float(self._plan.records[client]) for client in self._attempt.cohort.tolist()}
        total = OrderedSum(self._attempt.cohort.tolist(), size=size, weights=weights)
        self._refused, self._replies, self._pool = [], 0, Pool()
        missing = set(self._attempt.cohort.tolist())
        for reply in replies:
            client = self._client_of.get(reply.metadata.src_node_id, -1)
            if client not in missing:
                log.warning("round %d: an answer that nobody was asked for", server_round)
                continue
            missing.remove(client)
            try:
                total.add(client, self._accepted(reply, server_round, client, size))
                self._replies += 1
            except ReplyRefusedError as error:
                log.warning("round %d: client %d: %s", server_round, client, error)
                self._refused.append((client, str(error)))
                total.skip(client)
            self._observer.client_done()
        self._refused += [(client, Refusal.NO_ANSWER.value) for client in sorted(missing)]
        if self._replies < self._scenario.server.min_replies or self._all_spent():
            return None, None
        sum_P = total.result()
        if self._plan.unit == "client":
            account = self._plan.accounts[0]
            sum_P = noised(
                sum_P,
                noise_multiplier=account.event.noise_multiplier,
                max_norm=self._plan.max_grad_norm,
                entropy=Entropy(),
            )
            sum_P /= float(account.event.sampling_rate * len(self._plan.records))
            self._model.step(sum_P)
        elif total.total_weight:
            sum_P /= total.total_weight
            self._model.step(sum_P)
        return self._arrays(), MetricRecord({"replies": self._replies})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: metrics on private data are withheld; the public test set is at the server."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: see `configure_evaluate`."""
        del server_round, replies
        return None

    def summary(self) -> None:
        """Log what this strategy does."""
        log.info(
            "unit %s, %d clients, cohort %d", self._plan.unit, len(self._plan.records), self._scenario.server.cohort
        )

    def _resume(self) -> int:
        """Take up the checkpoint, and return how many rounds are done."""
        saved = self._folder.load()
        done = 0 if saved is None else saved[0]
        if saved is not None:
            self._model.restore(saved[1])
        self._folder.cut_rounds(done)
        return done

    def _round(self, grid: Grid, number: int, *, timeout_s: float) -> RoundRecord:
        """Attempt a round until enough replies came, checkpoint it, and return its record."""
        started = time.monotonic()
        while not self._attempted(grid, number, timeout_s=timeout_s):
            log.warning("round %d lost: %d replies; refused: %s", number, self._replies, _few(self._refused))
            if not self._all_spent():
                self._attempts.lose()
            else:
                self._attempts.retract(self._attempt)
                raise BudgetSpentError(f"Round {number}: all {len(self._refused)} clients said budget-spent. {SPENT}")
        self._attempts.commit()
        is_last = number == self._scenario.run.rounds
        is_evaluated = is_last or number % self._scenario.server.evaluate_every == 0
        record = RoundRecord(
            round=number,
            attempt=self._attempt.number,
            cohort=len(self._attempt.cohort),
            replies=self._replies,
            refused=tuple(self._refused),
            metrics=self._evaluator.measure(self._model.result_P) if is_evaluated else {},
            epsilon_max=self._attempts.epsilon_max() if is_evaluated else None,
            seconds=time.monotonic() - started,
            client_accuracy=self._pool.accuracy(),
        )
        self._last = record
        self._folder.append_round(record)
        self._folder.save(number, self._model.state())
        self._observer.round_done(record)
        return record

    def _all_spent(self) -> bool:
        """Whether everybody who was asked has nothing left: asking again would change nothing."""
        words = {word for _, word in self._refused}
        return self._plan.unit == "record" and not self._replies and words == {Refusal.BUDGET_SPENT.value}

    def _evaluate_late(self) -> None:
        """Measure the last whole round of this process, which was not known to be the last."""
        if self._last is not None and not self._last.metrics:
            metrics = self._evaluator.measure(self._model.result_P)
            self._folder.cut_rounds(self._last.round - 1)
            self._folder.append_round(replace(self._last, metrics=metrics, epsilon_max=self._attempts.epsilon_max()))

    def _attempted(self, grid: Grid, number: int, *, timeout_s: float) -> bool:
        """Attempt a round once; whether enough good replies came."""
        self._attempt = self._attempts.begin(number)
        self._observer.round_started(round_number=number, cohort=len(self._attempt.cohort))
        messages = self.configure_train(number, self._arrays(), ConfigRecord(), grid)
        arrays, _ = self.aggregate_train(number, replies(grid, messages, timeout_s=timeout_s))
        return arrays is not None

    def _order(self, number: int, client: int) -> Order:
        return Order(
            run=self._plan.run,
            round=number,
            attempt=self._attempt.number,
            client=client,
            weights_P=_EMPTY,  # travels once, in the array that all orders share
            mechanism=self._plan.mechanism(client),
            max_update_norm=self._plan.max_grad_norm if self._plan.unit == "client" else None,
            metrics_noise_multiplier=self._plan.metrics_noise_multiplier(client),
        )

    def _arrays(self) -> ArrayRecord:
        return weights_record(float32(self._model.weights_P))

    def _accepted(self, reply: Message, number: int, client: int, size: int) -> FloatArray:
        """The update in a reply, whose noised count is pooled, or ReplyRefusedError with one word."""
        report = report_in(reply, size=size)
        update_P = checked_update(
            report,
            run=self._plan.run,
            round_number=number,
            attempt=self._attempt.number,
            client=client,
            size=size,
            max_norm=self._plan.max_grad_norm if self._plan.unit == "client" else None,
        )
        units, noise_multiplier = self._plan.records[client], self._plan.metrics_noise_multiplier(client)
        self._pool.add(checked_correct(report, units=units, noise_multiplier=noise_multiplier), units=units)
        return update_P


def _few(refused: list[tuple[int, str]]) -> str:
    """The first few refusals, for a message."""
    named = ", ".join(f"client {client}: {word}" for client, word in refused[:3])
    return named + (f" and {len(refused) - 3} more" if len(refused) > 3 else "") if refused else "nobody"  # noqa: PLR2004
