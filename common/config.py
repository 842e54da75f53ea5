r"""The scenario file: what a run is, as frozen records.

    >>> from common.config import parse
    >>> run_and_data = '[run]\nname = "x"\nrounds = 2\n[data]\ndataset = "digits"\nclients = 4\n'
    >>> parse(run_and_data + '[training]\nbatch_size = 8\n[privacy]\nunit = "none"').server.cohort
    4

What changes privacy (`[privacy]`, the sizes in `[training]`) is never in the same table as what changes speed
(`[engine]`). Unknown keys are refused with the nearest known one; every default is filled in when the file is read, so
that a run folder's `scenario.toml` says all of it. A little over 250 lines: what must fit together stands together.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from common.data_table import LAYOUTS, Data
from common.errors import ScenarioError
from common.layouts import ArrayLayout, Column, ImageLayout, TableLayout
from common.model_tables import Cnn, CnnOpacus, Mlp, Model, Momentum, PositiveFloat, PositiveInt, Table, Transformer
from common.privacy_table import Privacy
from common.sources import CsvFormat, NpzFormat
from common.tasks import Task, task_of
from common.validation_errors import explain

Optimizer = Literal["sgd", "momentum", "adam"]
Precision = Literal["float32", "bf16"]


class Run(Table):
    """`[run]`: name, length, seed, and what it is for. The seed never reaches noise or private sampling."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    rounds: PositiveInt
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 7
    purpose: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""


class Training(Table):
    """`[training]`: what one client does in one round.

    Under unit `record`, batch_size is an expected size. With precision `bf16` layers compute in bfloat16; weights,
    norms, clipped sums and noise stay in single precision or better.
    """

    batch_size: PositiveInt
    local_steps: PositiveInt | None = None
    local_epochs: PositiveInt | None = None
    optimizer: Optimizer = "sgd"
    learning_rate: PositiveFloat = 0.1
    momentum: Momentum = 0.9
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps: expected local_steps or local_epochs, got both; remove one")
        return self


class Server(Table):
    """`[server]`: cohorts, the server optimiser, and when a round counts."""

    cohort: PositiveInt
    max_participations: PositiveInt
    spare_rounds: Annotated[int, Field(ge=0, strict=True)] = 2
    optimizer: Optimizer = "sgd"
    learning_rate: PositiveFloat = 1.0
    momentum: Momentum = 0.9
    weighting: Literal["uniform", "records"] = "uniform"
    ema_decay: Momentum = 0.0
    min_replies: Annotated[int, Field(ge=0, strict=True)] = 1
    round_timeout_s: PositiveFloat = 3600.0
    evaluate_every: PositiveInt = 1


class Engine(Table):
    """`[engine]`: what changes speed and nothing else."""

    kind: Literal["auto", "sequential", "parallel", "ray"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0, strict=True)] = 0
    physical_batch: PositiveInt = 128
    ray_address: Annotated[str, Field(pattern=r"^(local|auto|[A-Za-z0-9.:\[\]-]+:\d{1,5})$")] = "local"
    scratch: str = ""


class Audit(Table):
    """`[audit]`: a pad for canaries, which everybody's model then has (`common.canaries`).

    The pad alone changes nothing: canaries are put beside records by `discreet audit`, or by an owner whose policy
    says so. Each canary's gradient is longer than the norm that it is clipped to, so that clipping shows.
    """

    canaries: Annotated[int, Field(gt=0, le=2**20, strict=True)]
    gradient_norm: Annotated[float, Field(gt=0, le=1e6, strict=True)] = 10.0


class Scenario(Table):
    """A whole scenario file."""

    run: Run
    data: Data
    model: Model
    training: Training
    server: Server
    privacy: Privacy
    engine: Engine = Engine()
    audit: Audit | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, tables: Any) -> Any:
        """Fill in the defaults that follow from other tables."""
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            return tables
        tables = {"server": {}, "privacy": {}} | tables
        flat = LAYOUTS.get(tables.get("data", {}).get("dataset")) == "table"
        tables["model"] = {"name": "mlp" if flat else "cnn"} | tables.get("model", {})
        clients, rounds = tables.get("data", {}).get("clients"), tables.get("run", {}).get("rounds")
        server = {"cohort": clients or 1} | tables["server"]
        cohort = server["cohort"]
        known = all(isinstance(x, int) and x > 0 for x in (clients, rounds, cohort))
        server = {"max_participations": -(-rounds * cohort // clients) if known else 1} | server
        if tables["privacy"].get("unit") == "client":
            server = {"min_replies": 0} | server  # a Poisson cohort may be empty: noise is added all the same
        privacy = tables["privacy"]
        epsilon = privacy.get("epsilon")
        if isinstance(epsilon, int | float) and epsilon > 0:
            privacy = {"budget": epsilon} | privacy
        audit = tables.get("audit")
        if audit is not None and isinstance(privacy.get("max_grad_norm", 1.0), int | float):
            tables = tables | {"audit": {"gradient_norm": 10.0 * privacy.get("max_grad_norm", 1.0)} | audit}
        training = tables.get("training")
        if isinstance(training, dict) and not {"local_steps", "local_epochs"} & training.keys():
            tables["training"] = training | {"local_epochs": 1}
        return tables | {"server": server, "privacy": privacy}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        server, data, privacy = self.server, self.data, self.privacy
        if server.cohort > data.clients:
            raise ValueError(f"server.cohort: expected at most data.clients = {data.clients}, got {server.cohort}")
        if self.run.rounds * server.cohort > server.max_participations * data.clients and privacy.unit != "client":
            needed = -(-self.run.rounds * server.cohort // data.clients)
            raise ValueError(
                f"server.max_participations: expected at least {needed} for {self.run.rounds} rounds of "
                f"{server.cohort} of {data.clients} clients, got {server.max_participations}; raise it or lower rounds"
            )
        if server.min_replies > server.cohort:
            raise ValueError(
                f"server.min_replies: expected at most the cohort {server.cohort}, got {server.min_replies}"
            )
        if privacy.unit == "client" and server.weighting != "uniform":
            raise ValueError(
                "server.weighting: expected 'uniform' with unit 'client', got 'records'; unequal weights break the "
                "sensitivity that the noise is calibrated to"
            )
        if privacy.unit == "record" and isinstance(self.model, Cnn) and self.model.normalization == "batch":
            raise ValueError(
                "model.normalization: expected 'none' or 'group' with unit 'record', got 'batch'; batch normalisation "
                "mixes the samples of a batch, so that no bound on one record's influence holds"
            )
        if self.audit is not None and task_of(self.data).width == 1:
            raise ValueError(
                "audit: expected none of it with records of one number, where a canary needs two; remove it"
            )
        fit, kind = _fitting(task_of(self.data))
        if type(self.model) not in fit:
            raise ValueError(f"model.name: expected {kind}, got '{self.model.name}'")
        return self

    @model_validator(mode="after")
    def _persons_are_known(self) -> Self:
        column, data = self.privacy.unit_column, self.data
        if column is None:
            return self
        known = task_of(data).unit_columns
        if column not in known:
            expected = " or ".join(f"'{name}'" for name in known) or "none of it (--set privacy.unit_column=)"
            raise ValueError(f"privacy.unit_column: expected {expected} for '{data.dataset}', got '{column}'")
        if data.partition != "iid":
            why = {
                "dirichlet": "a person's records would lie with several clients",
                "natural": "each client would be one person, which is unit 'client'",
            }[data.partition]
            raise ValueError(f"data.partition: expected 'iid' with privacy.unit_column, got '{data.partition}'; {why}")
        return self


def _fitting(task: Task) -> tuple[tuple[type[Table], ...], str]:
    """The models that a data set's records fit, and in words."""
    if task.is_text:
        return (Transformer,), "'transformer' for a text data set"
    if task.image_shape is None:
        return (Mlp,), "'mlp' for flat features"
    return (Cnn, CnnOpacus), "'cnn' or 'cnn-opacus' for an image data set"


TABLES: dict[str, tuple[type[Table], ...]] = {
    "run": (Run,),
    "data": (Data,),
    "data.table": (TableLayout,),
    "data.table.columns": (Column,),
    "data.arrays": (ArrayLayout,),
    "data.images": (ImageLayout,),
    "data.csv": (CsvFormat,),
    "data.npz": (NpzFormat,),
    "model": (Cnn, CnnOpacus, Mlp, Transformer),
    "training": (Training,),
    "server": (Server,),
    "privacy": (Privacy,),
    "engine": (Engine,),
    "audit": (Audit,),
}


def load(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file, with `table.key=value` overrides, or raise ScenarioError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}). `discreet init` writes one to start from.") from error
    return parse(text, name=str(path), overrides=overrides)


def parse(text: str, *, name: str = "scenario", overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario from its text, or raise ScenarioError with the name of the file, key, expected and got."""
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{name}: not a TOML file: {error}.") from error
    for override in overrides:
        _override(tables, override)
    try:
        return Scenario.model_validate(tables)
    except ValidationError as error:
        raise ScenarioError(f"{name}: {explain(error, TABLES)}") from error


def dump(scenario: Scenario) -> str:
    """Write a scenario as a TOML file in which every default is filled in; `parse` brings it back equal."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


def _override(tables: dict[str, Any], override: str) -> None:
    """Put one `table.key=value` into the tables; the value is TOML, or else a plain text; none removes the key."""
    key, equals, value = override.partition("=")
    table, dot, name = key.strip().partition(".")
    if not (equals and dot and table and name):
        raise ScenarioError(f"--set: expected table.key=value, for example server.cohort=50, got '{override}'.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    section = tables.setdefault(table, {})
    if not isinstance(section, dict):
        raise ScenarioError(f"--set: '{table}' is no table of the scenario, got '{override}'.")
    if value.strip():
        section[name] = parsed
    else:
        section.pop(name, None)
