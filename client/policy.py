r"""An owner's policy: what may be done with its data, by whoever asks.

    >>> policy = parse(starter("St Mary's Hospital"))
    >>> policy.unit, policy.budget.epsilon, policy.budget.epsilon_per_run
    ('record', 8.0, 4.0)
    >>> in_words(policy)[2]
    'In one run: epsilon at most 4.0, so that 50 % becomes at most 98.21 %.'

A TOML file on the owner's disk. The coordinator proposes; the owner's process accepts the proposal as it is or refuses
it, and never alters one. What cannot be read, or is of a newer version, permits nothing. `Policy.digest` names a policy
in the ledger: a key that is added, renamed or read differently needs a new `version`, except for one whose absence and
whose default mean what the version meant without it (`[audit]`), and which the digest then leaves out.
What it has against a proposal stands in `client.proposals`. Long, since the file's layout, the starter that shows it
and the sentences that explain it change together.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from common.errors import PolicyError
from common.model_tables import PositiveFloat, PositiveInt, Table
from common.privacy.accounting import SMALLEST_DELTA
from common.privacy.events import Unit
from common.privacy.odds import largest_posterior
from common.validation_errors import explain

VERSION = 2
ModelName = Literal["cnn", "cnn-opacus", "mlp", "transformer"]
Metrics = Literal["none", "noisy", "clear"]
WitnessDown = Literal["wait", "refuse"]
OPENNESS: tuple[Metrics, ...] = get_args(Metrics)  # from the most closed on


def _text(is_fit: Callable[[str], object], expected: str) -> AfterValidator:
    """Check one text of the file."""

    def check(text: str) -> str:
        if not is_fit(text):
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return AfterValidator(check)


def _is_line(text: str) -> bool:
    return text.isprintable() and len(text) <= 200  # noqa: PLR2004 - it goes into logs and reports


def _not_empty(models: tuple[ModelName, ...]) -> tuple[ModelName, ...]:
    if not models:
        raise ValueError("expected at least one model, got none; remove the key to allow all")
    return models


def _sorted(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _is_witness(text: str) -> bool:
    return not text or _LABEL.fullmatch(text) is not None


Label = Annotated[
    str,
    _text(
        _LABEL.fullmatch,
        "1 to 64 letters, digits, '.', '_' or '-', a letter or digit first",
    ),
]
Line = Annotated[str, _text(_is_line, "one line of at most 200 printable characters")]
Words = Annotated[Line, _text(str.strip, "a text")]
Record = Annotated[
    str, _text(lambda unit: unit == "record", "'record', or for persons their column as unit_column instead")
]
Sha256 = Annotated[
    str, _text(re.compile(r"[0-9a-f]{64}").fullmatch, "a SHA-256 digest of 64 lower-case hexadecimal digits")
]


class Data(Table):
    """`[data]`: which data, and how many units there are: a declared, public number.

    Args:
        lineage: the data that one lifetime budget is about; a new version never opens a fresh one.
        version: of the data.
        records: how many records, or where `unit_column` is given how many persons.
        unit: 'record', or left out where `unit_column` is given.
        unit_column: the column that tells persons apart.
    """

    lineage: Label
    version: Label
    records: PositiveInt
    unit: Record | None = None
    unit_column: Words | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.unit is None) == (self.unit_column is None):
            got = "neither" if self.unit is None else "both"
            raise ValueError(f"unit: expected unit = 'record' or a unit_column, got {got}; give one of them")
        return self


class Budget(Table):
    """`[budget]`: the most that may ever be learnt about one unit, and in one run."""

    adjacency: Literal["zero-out"]  # the one that training has
    delta: Annotated[float, Field(ge=SMALLEST_DELTA, lt=1, strict=True)]
    epsilon: PositiveFloat
    epsilon_per_run: PositiveFloat = Field(default_factory=lambda given: given.get("epsilon", math.inf))

    @model_validator(mode="after")
    def _run_within_lifetime(self) -> Self:
        if self.epsilon_per_run > self.epsilon:
            raise ValueError(
                f"epsilon_per_run: expected at most epsilon = {self.epsilon}, got {self.epsilon_per_run}; lower it"
            )
        return self


class Limits(Table):
    """`[limits]`: bounds on what a run may propose; models and code have no order.

    Args:
        min_noise_multiplier: of a step's noise, in units of max_grad_norm.
        max_grad_norm: of the bound on what one unit adds to a step.
        max_steps_per_round: noisy steps.
        min_cohort: clients in a round.
        models: that may be trained.
        metrics: what may leave besides the update: nothing, noisy figures or clear ones.
        code: SHA-256 digests of the client code that may run; empty: any.
        bundles: SHA-256 digests of the bundles that may come with a run; empty: Discreet's own, which holds no code.
        witness: name of the witness who must cosign; empty: nobody.
        witness_down: wait for a witness that does not answer, or refuse.
        approval: whether a person must approve each run by hand.
        without_privacy: whether runs of unit 'none' may train: for data that are public anyway.
    """

    min_noise_multiplier: PositiveFloat
    max_grad_norm: PositiveFloat
    max_steps_per_round: PositiveInt
    min_cohort: PositiveInt = 1
    models: Annotated[tuple[ModelName, ...], AfterValidator(_not_empty), AfterValidator(_sorted)] = get_args(ModelName)
    metrics: Metrics = "none"
    code: Annotated[tuple[Sha256, ...], AfterValidator(_sorted)] = ()
    bundles: Annotated[tuple[Sha256, ...], AfterValidator(_sorted)] = ()
    witness: Annotated[str, _text(_is_witness, "a name as in the roster, or nothing")] = ""
    witness_down: WitnessDown = "refuse"
    approval: Annotated[bool, Field(strict=True)] = False
    without_privacy: Annotated[bool, Field(strict=True)] = False


class Audit(Table):
    """`[audit]`: the live audit, with canaries beside the records (`client.live`).

    Args:
        canaries: at most so many, in runs whose scenario has a pad for them; 0: none is ever put in.
    """

    canaries: Annotated[int, Field(ge=0, le=2**20, strict=True)] = 0


class Policy(Table):
    """A whole policy file."""

    version: Literal[2]
    owner: Words
    data: Data
    budget: Budget
    limits: Limits
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _delta_fits(self) -> Self:
        delta, most = self.budget.delta, self.data.records + self.audit.canaries
        if delta > 1 / most:
            of = "(data.records + audit.canaries)" if self.audit.canaries else "data.records"
            raise ValueError(
                f"budget.delta: expected at most 1/{of} = {1 / most:.3g}, got {delta}; a tenth of that is usual"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_default_audit(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A policy without canaries is written, and hashed, as before there were any."""
        tables: dict[str, Any] = serialize(self)
        return tables if self.audit.canaries else {name: table for name, table in tables.items() if name != "audit"}

    def units(self, room: int) -> int:
        """Return N of a run with room for so many canaries (`client.live.room`), a declared and public number.

        Everybody who counts on N asks here: the offer, the plan, the sampling rate, the objections.
        """
        return self.data.records + self.canaries(room)

    def canaries(self, room: int) -> int:
        """Return how many canaries stand beside the records in a run with room for so many."""
        return min(self.audit.canaries, room)

    @property
    def unit(self) -> Unit:
        """What the budget protects: a record, or a person with all its records."""
        return "record" if self.data.unit_column is None else "person"

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of every value, defaults included; comments, order and spelling do not count."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


TABLES: dict[str, tuple[type[Table], ...]] = {
    "version": (),
    "owner": (),
    "data": (Data,),
    "budget": (Budget,),
    "limits": (Limits,),
    "audit": (Audit,),
}


def load(path: Path) -> Policy:
    """Read a policy file, or raise PolicyError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"{path}: cannot be read ({error}). Without a policy nothing is trained: `discreet policy init` writes one "
            f"to start from."
        ) from error
    return parse(text, name=str(path))


def parse(text: str, *, name: str = "policy") -> Policy:
    """Read a policy from its text, or raise PolicyError with the name of the file, key, expected and got."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{name}: not a TOML file: {error}.") from error
    _refuse_other_versions(tables, name=name)
    try:
        return Policy.model_validate(tables)
    except ValidationError as error:
        raise PolicyError(f"{name}: {explain(error, TABLES)}") from error


def starter(owner: str) -> str:
    """Return a commented policy file to start from; it parses. PolicyError for an owner that no policy can have."""
    text = _STARTER.replace("OWNER", tomli_w.dumps({"owner": owner}).strip())
    parse(text, name="the starter")
    return text


def describe(policy: Policy) -> dict[str, Any]:
    """Return a policy as plain values, with its digest, its unit and the odds."""
    return {
        "digest": policy.digest,
        "unit": policy.unit,
        "policy": policy.model_dump(mode="json"),
        "largest_posterior": largest_posterior(policy.budget.epsilon),
        "largest_posterior_per_run": largest_posterior(policy.budget.epsilon_per_run),
    }


def in_words(policy: Policy) -> list[str]:
    """Return what a policy permits, in sentences for people."""
    data, budget, limits = policy.data, policy.budget, policy.limits
    many = f"{data.records} {policy.unit}{'s' if data.records > 1 else ''}"
    whom = "one record" if policy.unit == "record" else f"one person with all its records (column {data.unit_column!r})"
    code = f"{len(limits.code)} named by digest" if limits.code else "any"
    bundles = f"{len(limits.bundles)} named by digest" if limits.bundles else "Discreet's own, without code"
    late = {"wait": "is waited for", "refuse": "means no"}[limits.witness_down]
    witness = f"{limits.witness!r}; when it does not answer, that {late}" if limits.witness else "nobody"
    approval = "each by hand" if limits.approval else "none is asked for"
    unprotected = "may train WITHOUT privacy: no epsilon covers them" if limits.without_privacy else "are refused"
    most = policy.audit.canaries
    canaries = f"up to {most} canaries beside the {policy.unit}s, N is then all of them" if most else "no canaries"
    sentences = f"""
{policy.owner} protects {whom} of {data.lineage!r}, version {data.version}: {many}, a public number.
In all runs together: epsilon at most {budget.epsilon} (adjacency {budget.adjacency}, delta {budget.delta}): \
who holds it for 50 % likely that a certain {policy.unit} is in the data becomes at most {_odds(budget.epsilon)} sure, \
but for a chance of about delta.
In one run: epsilon at most {budget.epsilon_per_run}, so that 50 % becomes at most {_odds(budget.epsilon_per_run)}.
In one step: noise of at least {limits.min_noise_multiplier} times the bound on what one {policy.unit} adds, \
a bound of at most {limits.max_grad_norm}, and at most {limits.max_steps_per_round} steps a round.
Clients in a round: at least {limits.min_cohort}. Models: {", ".join(limits.models)}. Client code: {code}. \
Bundles: {bundles}.
{_LEAVES[limits.metrics]} Who must cosign: {witness}.
Approval of runs: {approval}. Runs of unit 'none' {unprotected}.
In runs that have room for a live audit: {canaries}."""
    return sentences.strip().split("\n")


_LEAVES: dict[Metrics, str] = {
    "none": "No metrics on the data leave.",
    "noisy": "Metrics on the data may leave with noise, and are charged.",
    "clear": "Metrics on the data may leave WITHOUT noise: no epsilon covers them.",
}

_STARTER = """\
# What may be done with this organisation's data, by whoever asks. Check it with: discreet policy check FILE
# Whatever is outside is refused; a file that cannot be read permits nothing.
version = 2                    # of this file's layout
OWNER

[data]
lineage = "my-data"            # the data that one lifetime budget is about; a new version never opens a fresh one
version = "1"                  # of the data
records = 1000                 # how many, a public number: records, or persons where unit_column is given
unit = "record"                # what is protected; where persons have several records, instead:
# unit_column = "patient_id"   # the column that tells persons apart

[budget]
adjacency = "zero-out"         # neighbours differ in one unit whose contribution is zeroed
delta = 1e-6                   # from 1e-10 to 1/records
epsilon = 8.0                  # the most that is ever spent on this lineage, all runs together
epsilon_per_run = 4.0          # the most that one run may reserve

[limits]
min_noise_multiplier = 0.5     # noise of a step, in units of the bound on what one unit adds
max_grad_norm = 2.0            # the largest such bound
max_steps_per_round = 100
min_cohort = 1                 # clients in a round
models = ["cnn", "cnn-opacus", "mlp", "transformer"]
metrics = "none"               # figures on the data that may leave: none, noisy or clear
code = []                      # SHA-256 digests of the client code that may run; empty: any
bundles = []                   # SHA-256 digests of bundles that may come with a run; empty: Discreet's, without code
witness = ""                   # name of the witness who must cosign the ledger; empty: nobody
witness_down = "refuse"        # when the witness does not answer: wait or refuse
approval = false               # true: a person approves each run by hand (discreet runs, approve, refuse)
without_privacy = false        # true: runs of unit "none" may train, for data that are public anyway

[audit]
canaries = 0                   # at most so many rows of no person beside the records, to see whether epsilon holds
"""


def _refuse_other_versions(tables: dict[str, Any], *, name: str) -> None:
    """Refuse before anything else is read: the keys of another version may mean other things."""
    version = tables.get("version")
    if type(version) is int and version > VERSION:
        raise PolicyError(
            f"{name}: version: expected {VERSION}, got {version}. The file was written for a newer Discreet, and what "
            f"it permits is unknown: upgrade Discreet."
        )
    if type(version) is not int or version != VERSION:
        got = "none" if version is None else repr(version)
        raise PolicyError(f"{name}: version: expected {VERSION}, got {got}. Put `version = {VERSION}` at the head.")


def _odds(epsilon: float) -> str:
    """The largest posterior as per cent, rounded up: it is a bound."""
    hundredths = math.ceil(10_000 * largest_posterior(epsilon))
    return f"{hundredths / 100:.2f} %" if hundredths < 10_000 else "more than 99.99 %"  # noqa: PLR2004 - 100 %
