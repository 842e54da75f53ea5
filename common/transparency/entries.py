"""The entries of a ledger: what can be said in it, and their bytes.

    GENESIS         an account is opened under its owner's terms
    POLICY_CHANGE   the terms are others from now on; every report shows it
    RESERVE         round 0: a whole run, at most `participations` times `events`; later rounds: one order, before any
                    record is read
    COMMIT          an order was carried out; round 0: the run is over, what it did not use is free again
    EXPIRE          an order of which nothing more was heard: it stays charged in full
    REFUSE          an order or a run that was turned down, and the word that left
    AUDIT           what an attack on the run found
    APPROVAL        what a person decided on a run: by whom, for which purpose, of which scenario

A stored field is never removed and never changes its meaning. An entry that is not exactly one of these is refused.
Long, since each type has its record, its writer and its reader, which change together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from common import checks
from common.privacy.events import Adjacency, Event, History, Unit, from_json
from common.transparency import canonical

Settlement = Literal["COMMIT", "EXPIRE"]
Decision = Literal["approved", "refused"]

PLAN_ROUND = 0
_TEXT_LIMIT = 500


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an account's owner allows, as far as figures depend on it.

    Args:
        owner: who.
        lineage: which data the lifetime budget is about; a new version does not open a new one.
        version: of the data.
        records: declared number of units, public.
        unit: what is protected.
        adjacency: what neighbours are.
        delta: of every epsilon of this account.
        budget: lifetime epsilon.
        policy: SHA-256 of the whole policy, in hexadecimal.
    """

    owner: str
    lineage: str
    version: str
    records: int
    unit: Unit
    adjacency: Adjacency
    delta: float
    budget: float
    policy: str

    def __post_init__(self) -> None:
        checks.positive(records=self.records, delta=self.delta, budget=self.budget)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which code charged: its digest, the libraries' versions, and where its randomness comes from."""

    code: str
    libraries: Mapping[str, str]
    rng: str


@dataclass(frozen=True, kw_only=True)
class Opening:
    """GENESIS, or POLICY_CHANGE where `is_change`."""

    sequence: int
    time_ms: int
    account: str
    terms: Terms
    is_change: bool


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """RESERVE: `events` may happen up to `participations` times."""

    sequence: int
    time_ms: int
    account: str
    policy: str
    run: str
    round: int
    attempt: int
    participations: int
    events: History
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Settle:
    """COMMIT or EXPIRE: what became of a RESERVE."""

    sequence: int
    time_ms: int
    account: str
    run: str
    round: int
    attempt: int
    participations: int
    type: Settlement


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """REFUSE: what was turned down, and the word that left."""

    sequence: int
    time_ms: int
    account: str
    run: str
    round: int
    attempt: int
    word: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """AUDIT: what an empirical audit of a run found, as named texts."""

    sequence: int
    time_ms: int
    account: str
    run: str
    findings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Approval:
    """APPROVAL: what a person decided on a run; the last decision counts.

    Args:
        decision: whether the run may train.
        by: who decided.
        purpose: what the run said it is for; it may be empty.
        scenario: SHA-256 of the scenario's text, in hexadecimal: what the decision is about, and no other.
    """

    sequence: int
    time_ms: int
    account: str
    run: str
    decision: Decision
    by: str
    purpose: str
    scenario: str


Entry = Opening | Reserve | Settle | Refuse | Audit | Approval


def to_bytes(entry: Entry) -> bytes:
    """Return an entry's bytes: the leaf of the tree."""
    return canonical.dumps(_plain(entry))


def from_bytes(data: bytes) -> Entry:
    """Read an entry back; ValueError for whatever is not exactly one."""
    value = canonical.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")  # noqa: TRY004 - bytes from outside
    return from_plain(value)


def from_plain(value: dict[str, Any]) -> Entry:
    """Read an entry from its JSON values; ValueError for whatever is not exactly one."""
    fields = dict(value)
    kind = fields.pop("type", None)
    if not isinstance(kind, str):
        raise ValueError(f"type: expected a text, got {kind!r:.60}")  # noqa: TRY004 - bytes from outside
    try:
        entry = _read(kind, fields)
    except KeyError as error:
        raise ValueError(f"{kind}: expected a field {error}, got none") from error
    if fields:
        raise ValueError(f"{kind}: unknown field {next(iter(fields))!r}; a newer version of Discreet may read it")
    return entry


def type_of(entry: Entry) -> str:
    """Return an entry's type as it is written."""
    match entry:
        case Opening():
            return "POLICY_CHANGE" if entry.is_change else "GENESIS"
        case Settle():
            return entry.type
    return {Reserve: "RESERVE", Refuse: "REFUSE", Audit: "AUDIT", Approval: "APPROVAL"}[type(entry)]


def _plain(entry: Entry) -> dict[str, Any]:
    head = {
        "sequence": entry.sequence,
        "type": type_of(entry),
        "time": entry.time_ms,
        "account": entry.account,
    }
    match entry:
        case Opening():
            return head | {"terms": _plain_terms(entry.terms)}
        case Audit():
            return head | {"run": entry.run, "findings": dict(entry.findings)}
        case Approval():
            said = {"decision": entry.decision, "by": entry.by, "purpose": entry.purpose, "scenario": entry.scenario}
            return head | {"run": entry.run} | said
    order = head | {"run": entry.run, "round": entry.round, "attempt": entry.attempt}
    match entry:
        case Reserve():
            return order | {
                "policy": entry.policy,
                "participations": entry.participations,
                "events": [event.to_json() for event in entry.events],
                "code": entry.provenance.code,
                "libraries": dict(entry.provenance.libraries),
                "rng": entry.provenance.rng,
            }
        case Settle():
            return order | {"participations": entry.participations}
        case Refuse():
            return order | {"word": entry.word}


def _plain_terms(terms: Terms) -> dict[str, Any]:
    return {
        "owner": terms.owner,
        "lineage": terms.lineage,
        "version": terms.version,
        "records": terms.records,
        "unit": terms.unit,
        "adjacency": terms.adjacency,
        "delta": repr(float(terms.delta)),
        "budget": repr(float(terms.budget)),
        "policy": terms.policy,
    }


def _read(kind: object, fields: dict[str, Any]) -> Entry:
    """Take an entry's fields out of `fields`; what is left over is unknown."""
    place: dict[str, Any] = {
        "sequence": _whole(fields, "sequence"),
        "time_ms": _whole(fields, "time"),
        "account": _text(fields, "account"),
    }
    if kind in {"GENESIS", "POLICY_CHANGE"}:
        return Opening(**place, terms=_terms(fields.pop("terms")), is_change=kind == "POLICY_CHANGE")
    place["run"] = _text(fields, "run")
    if kind == "AUDIT":
        return Audit(**place, findings=_texts(fields, "findings"))
    if kind == "APPROVAL":
        return Approval(
            **place,
            decision=_decision(fields),
            by=_text(fields, "by"),
            purpose=_text(fields, "purpose", least=0),
            scenario=_text(fields, "scenario"),
        )
    place |= {"round": _whole(fields, "round"), "attempt": _whole(fields, "attempt")}
    match kind:
        case "RESERVE":
            return Reserve(
                **place,
                policy=_text(fields, "policy"),
                participations=_whole(fields, "participations"),
                events=_events(fields.pop("events")),
                provenance=Provenance(
                    code=_text(fields, "code"), libraries=_texts(fields, "libraries"), rng=_text(fields, "rng")
                ),
            )
        case "COMMIT" | "EXPIRE":
            return Settle(**place, participations=_whole(fields, "participations"), type=kind)
        case "REFUSE":
            return Refuse(**place, word=_text(fields, "word"))
    raise ValueError(f"expected an entry of a known type, got {kind!r}; a newer version of Discreet may read it")


def _terms(value: object) -> Terms:
    if not isinstance(value, dict):
        raise ValueError(f"terms: expected an object, got {type(value).__name__}")  # noqa: TRY004 - from outside
    fields = dict(value)
    unit, adjacency = cast(Unit, _text(fields, "unit")), cast(Adjacency, _text(fields, "adjacency"))
    if unit not in {"record", "person", "client"} or adjacency != "zero-out":
        raise ValueError(f"terms: expected unit record, person or client and adjacency zero-out, got {value}")
    terms = Terms(
        owner=_text(fields, "owner"),
        lineage=_text(fields, "lineage"),
        version=_text(fields, "version"),
        records=_whole(fields, "records"),
        unit=unit,
        adjacency=adjacency,
        delta=_decimal(fields, "delta"),
        budget=_decimal(fields, "budget"),
        policy=_text(fields, "policy"),
    )
    if fields:
        raise ValueError(f"terms: unknown field {next(iter(fields))!r}")
    return terms


def _events(value: object) -> tuple[Event, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("events: expected a list of at least one")
    return tuple(from_json(event) for event in value)


def _whole(fields: dict[str, Any], name: str) -> int:
    value = fields.pop(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return value


def _text(fields: dict[str, Any], name: str, *, least: int = 1) -> str:
    value = fields.pop(name)
    if not isinstance(value, str) or not least <= len(value) <= _TEXT_LIMIT:
        raise ValueError(f"{name}: expected a text of {least} to {_TEXT_LIMIT} characters, got {value!r:.60}")
    return value


def _decision(fields: dict[str, Any]) -> Decision:
    decision = cast(Decision, _text(fields, "decision"))
    if decision not in get_args(Decision):
        raise ValueError(f"decision: expected approved or refused, got {decision!r:.60}")
    return decision


def _texts(fields: dict[str, Any], name: str) -> dict[str, str]:
    value = fields.pop(name)
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError(f"{name}: expected an object of texts, got {value!r:.60}")
    return value


def _decimal(fields: dict[str, Any], name: str) -> float:
    """A float written as `repr` writes it, and no other way."""
    text = _text(fields, name)
    number = float(text)
    if repr(number) != text:
        raise ValueError(f"{name}: expected a number in its shortest form, got {text!r}")
    return number
