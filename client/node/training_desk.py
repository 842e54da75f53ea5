"""What the training process does: an owner who decides alone, and a trainer that is resident.

The order of things is what keeps the promises: whatever can be refused without a record is refused first; the charge is
on the disk (and cosigned, where a witness is named) before a record is read; the signed report is on the disk before
the ledger says that the order was carried out.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from client.live.room import room_in
from client.live.rows import refuse_marked
from client.live.watch import Watch
from client.node.work import (
    Began,
    Done,
    End,
    Offered,
    Propose,
    Refused,
    Request,
    Response,
    Stored,
    Train,
    Trained,
    Workplace,
)
from client.own_data import open_source, refuse_other_layout
from client.owner import Owner
from client.policy import load
from client.resident import scenario_in, trainer_of
from client.trainer import Trainer
from client.witness import Witness
from common import flat
from common.config import Scenario, parse
from common.consortium import identity as identities
from common.consortium.members import Roster
from common.data_table import Data
from common.errors import (
    DataMissingError,
    DiscreetError,
    RefusedError,
    SettingsError,
    WireError,
)
from common.messages import Mechanism, Order, Refusal
from common.models.registry import model_of
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian
from common.shards import Shard
from common.sources import Source
from common.transparency.provenance import provenance
from common.wire import Frame, decode_order, encode_report

log = logging.getLogger("discreet.node")

LITTLE_ENDIAN = np.dtype("<f4")
_WARMING_UP = """
run = {name = "none", rounds = 1}
data = {dataset = "digits", clients = 1}
training = {batch_size = 2, local_steps = 1}
privacy = {noise_multiplier = 1.0}
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grown:
    """An owner's records, a run's notebook, and the records with the run's canaries beside them."""

    mine: Shard
    run: Path
    rows: Shard


class Desk:
    """One owner's work, request by request.

    Guarantees:
        Every request is answered, with one word where it is not done.
        Records are read once in the life of the process, and never before a charge for them is durable.
    """

    def __init__(self, place: Workplace) -> None:
        """Open policy and ledger; DiscreetError when either does not read."""
        self._place = place
        self._grown: _Grown | None = None
        self._owner()
        self.code = provenance().code

    def warm(self) -> None:
        """Load and set up what the first run would have to wait for: the accountant, and a step on blank records."""
        epsilon((SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 2), steps=1),), delta=1e-5)
        scenario = parse(_WARMING_UP)
        size = flat.size(model_of(scenario))
        blank = Shard(features_ND=np.zeros((2, 1, 8, 8), np.float32), labels_N=np.zeros(2, np.int64))
        mechanism = Mechanism(sampling_rate=Fraction(1), noise_multiplier=1.0, max_grad_norm=1.0, steps=1)
        weights_P = np.zeros(size, np.float32)
        order = Order(run="none", round=1, attempt=1, client=0, weights_P=weights_P, mechanism=mechanism)
        Trainer(scenario).train(order, blank)

    def offered(self, request: Propose) -> Offered:
        """Say what stands against a run; nothing is charged and no record is read."""
        purpose, units = "", 0
        try:
            scenario = scenario_in(request.scenario)
            purpose, units = scenario.run.purpose, load(self._place.policy).units(room_in(scenario))
            self._refuse_other_layout(scenario)
            refusal = self._owner().offer(scenario, request.run)
            if refusal is None:
                trainer_of(scenario)  # it is built before the first order comes, or refused
        except RefusedError as error:
            log.warning("run %s: %s", request.run[:8], error)
            refusal = error.word
        except DiscreetError as error:
            log.warning("run %s: %s", request.run[:8], error)
            refusal = Refusal.NOT_RECORDED
        except Exception:
            log.exception("run %s: the proposal failed", request.run[:8])
            refusal = Refusal.FAILED
        return Offered(refusal=refusal, purpose=purpose, units=units)

    def train(self, request: Train, *, send: Callable[[Response], None], receive: Callable[[], Request]) -> None:
        """Carry out an order: charged, trained, stored, settled."""
        try:
            order, scenario = _order(request), scenario_in(request.scenario)
            self._refuse_other_layout(scenario)
            trainer = trainer_of(scenario)
            with self._owner().charged(order, scenario) as watch:
                send(Began())
                report = trainer.train(order, self._shard(scenario, watch))
                frame = encode_report(report)
                send(Trained(scalars=frame.scalars, update=frame.array.astype(LITTLE_ENDIAN).tobytes()))
                _refuse_unkept(receive())
                if watch is not None:
                    watch.note(order, report)
        except RefusedError as error:
            send(Refused(word=error.word, why=error.detail))
        except EOFError:
            raise  # the node is gone
        except Exception:
            log.exception("order failed")
            trainer_of.cache_clear()  # the resident model may be in any state
            send(Refused(word=Refusal.FAILED, why="the trace above says at what"))
        else:
            send(Done())

    def ended(self, request: End) -> Response:
        """Close a run in the ledger: what it did not use is free again."""
        try:
            self._owner().end(request.run)
        except (DiscreetError, OSError) as error:
            return Refused(word=Refusal.NOT_RECORDED, why=f"run {request.run[:8]} cannot be closed: {error}")
        return Done()

    def _owner(self) -> Owner:
        """The owner as its policy is now; the ledger stays open."""
        place = self._place
        witness = _witness(load(place.policy).limits.witness, place.identity)
        return Owner(policy=place.policy, ledger=place.ledger, memory=place.memory, witness=witness)

    def _refuse_other_layout(self, scenario: Scenario) -> None:
        """Refuse what the owner has not pinned, before anything is charged: the word then tells nothing of a record."""
        try:
            refuse_other_layout(self._place.data, scenario_data=scenario.data)
        except SettingsError as error:
            raise RefusedError(Refusal.OUTSIDE_POLICY, str(error)) from error

    def _shard(self, scenario: Scenario, watch: Watch | None) -> Shard:
        """The records as the scenario declares them, read when they are first asked for, and canaries beside them."""
        mine = self._records(scenario)
        if scenario.audit is not None:
            refuse_marked(mine)
        self._grown = None if watch is None else self._beside(mine, watch)
        return mine if self._grown is None else self._grown.rows

    def _beside(self, mine: Shard, watch: Watch) -> "_Grown":
        """The records with a run's canaries beside them, copied once a run."""
        known, run = self._grown, watch.notebook.folder
        if known is not None and known.mine is mine and known.run == run:
            return known
        self._grown = None  # before there is another one: they may be large
        return _Grown(mine=mine, run=run, rows=watch.beside(mine))

    def _records(self, scenario: Scenario) -> Shard:
        data = load(self._place.policy).data
        column = data.unit_column
        try:
            return _records(self._place.data, scenario.data, data.records, column)
        except (DataMissingError, SettingsError, OSError) as error:
            raise RefusedError(Refusal.DATA_UNFIT, str(error)) from error


def _witness(name: str, folder: Path) -> Witness | None:
    """Whoever must cosign by the policy, as the roster has them now."""
    if not name:
        return None
    return _channel(name, identities.trusted_roster(identities.load(folder)), folder)


@lru_cache(maxsize=1)
def _channel(name: str, roster: Roster, folder: Path) -> Witness:
    """A witness, asked over the same connection until the roster is another."""
    return Witness.listed(name, roster=roster, identity=identities.load(folder))


def _refuse_unkept(answer: Request) -> None:
    """Raise RefusedError unless the node has the report on its disk: what stands around this stays charged."""
    if answer != Stored(is_kept=True):
        raise RefusedError(Refusal.NOT_RECORDED, "the report could not be stored")


def _order(request: Train) -> Order:
    try:
        weights_P = np.frombuffer(bytearray(request.weights), LITTLE_ENDIAN)  # PyTorch wants what may be written to
        return decode_order(Frame(scalars=dict(request.scalars), array=weights_P))
    except WireError as error:
        raise RefusedError(Refusal.MALFORMED, str(error)) from error


@lru_cache(maxsize=2)
def _records(source: Source, data: Data, records: int, unit_column: str | None) -> Shard:
    return open_source(source, scenario_data=data, records=records, unit_column=unit_column)
