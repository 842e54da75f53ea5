"""The scenario file: every default filled in, every mistake named, and the way back to text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import Scenario, dump, load, parse
from common.errors import BadInputError, ScenarioError
from common.model_tables import Cnn, CnnOpacus, Transformer

SCENARIO = """
[run]
name = "x"
rounds = 10
[data]
dataset = "digits"
clients = 4
[training]
batch_size = 8
[privacy]
epsilon = 2.0
"""


def variant(*overrides: str) -> Scenario:
    """The scenario above, with overrides."""
    return parse(SCENARIO, overrides=overrides)


NO_PRIVACY = ("privacy.unit=none", "privacy.epsilon=")
TEXT = ("data.dataset=sms-spam", "model.name=transformer")
PERSONS = ("data.dataset=mnist", "privacy.unit_column=writer")
NOISY = "privacy.metrics=noisy"


def test_every_default_is_filled_in():
    """What follows from other tables is there after reading: the cohort, the participations, the budget."""
    scenario = parse(SCENARIO)
    assert scenario.run.seed == 7
    assert scenario.server.cohort == 4  # all clients
    assert scenario.server.max_participations == 10  # ceil(10 rounds x 4 of 4 clients)
    assert scenario.server.spare_rounds == 2
    assert scenario.server.min_replies == 1
    assert scenario.privacy.unit == "record"
    assert scenario.privacy.budget == 2.0  # epsilon
    assert scenario.privacy.noise_multiplier is None
    assert scenario.training.local_epochs == 1
    assert scenario.training.local_steps is None
    assert scenario.model == Cnn(name="cnn")


@pytest.mark.parametrize(
    ("rounds", "cohort", "expected"),
    [(10, 3, 8), (10, 2, 5), (1, 1, 1), (7, 4, 7)],  # 30/4 = 7.5, 20/4 = 5, 1/4, 28/4 = 7, each rounded up
)
def test_participations_default_to_an_even_schedule(rounds, cohort, expected):
    """A client takes part at most ceil(rounds x cohort / clients) times."""
    scenario = variant(f"run.rounds={rounds}", f"server.cohort={cohort}")
    assert scenario.server.max_participations == expected


def test_a_client_cohort_may_be_empty():
    """With unit client, a round counts without replies, since the Poisson cohort may be empty."""
    assert variant("privacy.unit=client").server.min_replies == 0


def test_a_record_is_the_unit_unless_a_column_names_persons():
    """Without `unit_column` nothing is said of persons; with it the column is kept, and the unit is still `record`."""
    assert parse(SCENARIO).privacy.unit_column is None
    assert variant(*PERSONS).privacy.unit_column == "writer"
    assert variant(*PERSONS).privacy.unit == "record"


def test_metrics_are_withheld_unless_they_are_asked_for():
    """By default no count leaves; `noisy` fills in its noise, and a given one is kept."""
    assert parse(SCENARIO).privacy.metrics == "none"
    assert parse(SCENARIO).privacy.metrics_noise_multiplier is None
    assert variant(NOISY).privacy.metrics_noise_multiplier == 20.0
    assert variant(NOISY, "privacy.metrics_noise_multiplier=7.5").privacy.metrics_noise_multiplier == 7.5


def test_given_values_are_kept():
    """A default never replaces what the file says."""
    scenario = variant(
        "server.cohort=2", "server.max_participations=9", "server.min_replies=2", "privacy.budget=5.0",
        "training.local_steps=3",
    )  # fmt: skip
    assert (scenario.server.cohort, scenario.server.max_participations, scenario.server.min_replies) == (2, 9, 2)
    assert scenario.privacy.budget == 5.0
    assert (scenario.training.local_steps, scenario.training.local_epochs) == (3, None)


def test_a_whole_number_stands_for_a_float():
    """`epsilon = 2` is 2.0."""
    assert variant("privacy.epsilon=2") == parse(SCENARIO)


def test_each_model_is_read_as_its_own_record():
    """The name decides which keys a model has."""
    assert variant("model.activation=relu").model == Cnn(name="cnn", activation="relu")
    mnist = variant("data.dataset=mnist", "model.name=cnn-opacus")
    assert mnist.model == CnnOpacus(name="cnn-opacus")
    assert variant(*TEXT, "model.layers=1").model == Transformer(name="transformer", layers=1)


BAD = [
    # unknown keys name the nearest known one
    (("run.round=3",), "run.round: unknown key; did you mean run.rounds"),
    (("privacy.epsilom=3.0",), "privacy.epsilom: unknown key; did you mean privacy.epsilon"),
    (("privacy.max_norm=1.0",), "privacy.max_norm: unknown key; did you mean privacy.max_grad_norm"),
    (("model.activaton=tanh",), "model.activaton: unknown key; did you mean model.activation"),
    (("enigne.kind=auto",), "enigne: unknown key; did you mean engine"),
    (("zzz.kind=auto",), "zzz: unknown key; known keys are run, data, model, training, server, privacy, engine"),
    (("engine.zzz=1",), "engine.zzz: unknown key; known keys are device, kind,"),
    # missing
    (("run.rounds=",), "run.rounds: expected a value, got none; add it"),
    (("training.batch_size=",), "training.batch_size: expected a value, got none; add it"),
    (("data.clients=",), "data.clients: expected a value, got none; add it"),
    # impossible numbers
    (("privacy.epsilon=0.0",), "privacy.epsilon: expected greater than 0, got 0.0"),
    (("privacy.epsilon=-1.0",), "privacy.epsilon: expected greater than 0, got -1.0"),
    (("privacy.epsilon=nan",), "privacy.epsilon: expected a finite number, got nan"),
    (("privacy.epsilon=inf",), "privacy.epsilon: expected a finite number, got inf"),
    (("privacy.epsilon=true",), "privacy.epsilon: expected a valid number, got True"),
    (("privacy.epsilon=much",), "privacy.epsilon: expected a valid number, got 'much'"),
    (("privacy.budget=0.0",), "privacy.budget: expected greater than 0, got 0.0"),
    (("privacy.max_grad_norm=0.0",), "privacy.max_grad_norm: expected greater than 0, got 0.0"),
    (("privacy.max_grad_norm=nan",), "privacy.max_grad_norm: expected a finite number, got nan"),
    (("privacy.delta=1e-11",), "privacy.delta: expected greater than or equal to 0.0000000001, got 1e-11"),
    (("privacy.delta=1.0",), "privacy.delta: expected less than 1, got 1.0"),
    (("privacy.delta=nan",), "privacy.delta: expected"),
    (("privacy.epsilon=", "privacy.noise_multiplier=0.0"), "privacy.noise_multiplier: expected greater than 0, got 0"),
    (("run.rounds=0",), "run.rounds: expected greater than 0, got 0"),
    (("run.rounds=2.0",), "run.rounds: expected a valid integer, got 2.0"),
    (("run.rounds=true",), "run.rounds: expected a valid integer, got True"),
    (("run.seed=-1",), "run.seed: expected greater than or equal to 0, got -1"),
    (("run.seed=9223372036854775808",), "run.seed: expected less than 9223372036854775808, got 9223372036854775808"),
    (("run.name=../escape",), "run.name: expected"),
    (("run.name=3",), "run.name: expected a valid string, got 3"),
    (("data.clients=0",), "data.clients: expected greater than 0, got 0"),
    (("data.dataset=cifar",), "data.dataset: expected 'digits', 'mnist', 'sms-spam', 'csv', 'parquet', 'npz' or"),
    (("data.alpha=0.0",), "data.alpha: expected greater than 0, got 0.0"),
    (("training.batch_size=0",), "training.batch_size: expected greater than 0, got 0"),
    (("training.local_steps=0",), "training.local_steps: expected greater than 0, got 0"),
    (("training.learning_rate=0.0",), "training.learning_rate: expected greater than 0, got 0.0"),
    (("training.momentum=1.0",), "training.momentum: expected less than 1, got 1.0"),
    (("server.cohort=0",), "server.cohort: expected greater than 0, got 0"),
    (("server.cohort=[1]",), "server.cohort: expected a valid integer, got [1]"),
    (("server.spare_rounds=-1",), "server.spare_rounds: expected greater than or equal to 0, got -1"),
    (("server.weighting=size",), "server.weighting: expected 'uniform' or 'records', got 'size'"),
    (("engine.kind=mpi",), "engine.kind: expected 'auto', 'sequential', 'parallel' or 'ray', got 'mpi'"),
    (("engine.physical_batch=0",), "engine.physical_batch: expected greater than 0, got 0"),
    (("model.name=resnet",), "model.name: expected 'cnn', 'cnn-opacus', 'mlp', 'transformer', got 'resnet'"),
    (("model.channels=[1, 2, 0]",), "model.channels.2: expected greater than 0, got 0"),
    ((*TEXT, "model.heads=3"), "model.d_model: expected"),  # 100 is no multiple of 3
    ((*TEXT, "model.dropout=1.0"), "model.dropout: expected less than 1, got 1.0"),
    ((*TEXT, "model.tokens=1"), "model.tokens: expected greater than or equal to 2, got 1"),
    ((*TEXT, "model.vocabulary=15"), "model.vocabulary: expected greater than or equal to 16, got 15"),
    # values that do not go together
    (("server.cohort=5",), "server.cohort: expected at most data.clients = 4, got 5"),
    (("server.max_participations=9",), "server.max_participations: expected at least 10 for 10 rounds of 4 of 4"),
    (("server.min_replies=5",), "server.min_replies: expected at most the cohort 4, got 5"),
    (("privacy.noise_multiplier=1.0",), "privacy.epsilon: expected epsilon or noise_multiplier, got both; give one"),
    (("privacy.epsilon=",), "privacy.epsilon: expected epsilon or noise_multiplier, got neither; give one"),
    (
        ("privacy.unit=none",),
        "privacy.epsilon: expected none of it with unit 'none'; remove it (--set privacy.epsilon=)",
    ),
    ((*NO_PRIVACY, "privacy.noise_multiplier=1.0"), "privacy.noise_multiplier: expected none of it with unit 'none'"),
    ((*NO_PRIVACY, "privacy.budget=1.0"), "privacy.budget: expected none of it with unit 'none'"),
    (("training.local_steps=1", "training.local_epochs=1"), "training.local_steps: expected local_steps or local_epoc"),
    (("privacy.unit=client", "server.weighting=records"), "server.weighting: expected 'uniform' with unit 'client'"),
    (("model.normalization=batch",), "model.normalization: expected 'none' or 'group' with unit 'record', got 'batch'"),
    # persons
    (
        ("privacy.unit=client", *PERSONS),
        "privacy.unit_column: expected none of it with unit 'client', got 'writer'; remove it (--set privacy.unit_col",
    ),
    ((*NO_PRIVACY, *PERSONS), "privacy.unit_column: expected none of it with unit 'none', got 'writer'"),
    ((*PERSONS, "privacy.unit_column=patient"), "privacy.unit_column: expected 'writer' for 'mnist', got 'patient'"),
    (
        ("privacy.unit_column=writer",),
        "privacy.unit_column: expected none of it (--set privacy.unit_column=) for 'digits', got 'writer'",
    ),
    (("privacy.unit_column=3",), "privacy.unit_column: expected a valid string, got 3"),
    (
        (*PERSONS, "data.partition=dirichlet"),
        "data.partition: expected 'iid' with privacy.unit_column, got 'dirichlet'; a person's records would lie with",
    ),
    (
        (*PERSONS, "data.partition=natural"),
        "data.partition: expected 'iid' with privacy.unit_column, got 'natural'; each client would be one person",
    ),
    # metrics
    (("privacy.metrics=clear",), "privacy.metrics: expected 'none' or 'noisy', got 'clear'"),
    (
        ("privacy.unit=client", NOISY),
        "privacy.metrics: expected 'none' with unit 'client', got 'noisy'; the server wou",
    ),
    ((*NO_PRIVACY, NOISY), "privacy.metrics: expected 'none' with unit 'none', got 'noisy'; the public test set"),
    (
        ("privacy.metrics_noise_multiplier=20.0",),
        "privacy.metrics_noise_multiplier: expected none of it with metrics 'none'; remove it (--set privacy.metrics_n",
    ),
    (
        (NOISY, "privacy.metrics_noise_multiplier=0.0"),
        "privacy.metrics_noise_multiplier: expected greater than 0, got 0",
    ),
    (
        (NOISY, "privacy.metrics_noise_multiplier=inf"),
        "privacy.metrics_noise_multiplier: expected a finite number, got",
    ),
    (("data.dataset=sms-spam",), "model.name: expected 'transformer' for a text data set, got 'cnn'"),
    (
        ("model.name=transformer",),
        "model.name: expected 'cnn' or 'cnn-opacus' for an image data set, got 'transformer'",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=[" ".join(overrides) for overrides, _ in BAD])
def test_a_bad_value_is_refused_by_file_key_expected_and_got(overrides, words):
    """One sentence names the file, the key, what was expected and what was got."""
    with pytest.raises(ScenarioError) as refusal:
        parse(SCENARIO, name="study.toml", overrides=overrides)
    assert str(refusal.value).startswith(f"study.toml: {words}")


def test_a_number_beyond_all_floats_is_refused():
    """A run of 10^400 rounds is bad input like any other, no stray arithmetic error."""
    with pytest.raises(ScenarioError, match=r"rounds|participations"):
        variant(f"run.rounds={10**400}")


def test_further_problems_are_counted():
    """The first of three problems is told, with how many follow."""
    with pytest.raises(ScenarioError, match=r"^scenario: run\.rounds: .*\. \(2 more after this one\)$"):
        variant("run.rounds=0", "run.seed=-1", "engine.workers=-1")


def test_bad_input_is_a_mistake_of_the_user():
    """A wrong scenario ends the command with exit code 2."""
    assert issubclass(ScenarioError, BadInputError)
    assert ScenarioError.exit_code == 2


@pytest.mark.parametrize(
    "text", ["run", "[run", "a = ", "run = 3\nrun = 4", "\0", '[run]\nname = "x', "a = 1979-13-01", "x = [1,,2]"]
)
def test_what_is_no_toml_is_refused(text):
    """A file that does not read as TOML is refused under its name."""
    with pytest.raises(ScenarioError, match=r"^study\.toml: not a TOML file: "):
        parse(text, name="study.toml")


@pytest.mark.parametrize("text", ["", "run = 3", "model = 'cnn'", "[[run]]\nname = 'x'", "server = [1]"])
def test_toml_that_is_no_scenario_is_refused(text):
    """A file without the tables of a scenario, or with other things in their place, is refused."""
    with pytest.raises(ScenarioError, match="expected"):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(
    table=st.sampled_from(["run", "data", "model", "training", "server", "privacy", "engine", "other"]),
    key=st.sampled_from(["name", "rounds", "clients", "cohort", "epsilon", "unit", "batch_size", "channels", "zzz"]),
    value=st.sampled_from(["0", "-1", "1.5", "nan", "-inf", "true", "[]", "{}", '""', "1979-05-27", '"cnn"', "[[1]]"]),
)
def test_no_value_escapes_as_another_error(table, key, value):
    """Whatever value stands at whatever key, the answer is a scenario or a ScenarioError."""
    try:
        scenario = variant(f"{table}.{key}={value}")
    except ScenarioError as error:
        assert str(error).startswith("scenario: ")  # noqa: PT017 - both answers are right
    else:
        assert parse(dump(scenario)) == scenario


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_no_text_escapes_as_another_error(text):
    """Whatever the file holds, it is refused with a ScenarioError: no short text is a whole scenario."""
    with pytest.raises(ScenarioError):
        parse(text)


ROUND_TRIPS = [
    (),
    ("privacy.unit=client", "privacy.max_grad_norm=0.3"),
    NO_PRIVACY,
    (*NO_PRIVACY, "model.normalization=batch", "server.weighting=records"),
    ("privacy.epsilon=", "privacy.noise_multiplier=1.1", "privacy.budget=3"),
    ("data.dataset=mnist", "model.name=cnn-opacus", "data.partition=dirichlet", "data.alpha=0.1"),
    (*TEXT, "model.dropout=0.0", "training.local_epochs=3"),
    PERSONS,
    (NOISY,),
    (*PERSONS, NOISY, "privacy.metrics_noise_multiplier=7.5"),
    ("model.channels=[4, 8, 16]", "model.normalization=group", "training.optimizer=adam"),
    ("data.path='C:\\odd \"path\" ü'",),
    ("run.seed=9223372036854775807", "server.optimizer=momentum", "engine.kind=parallel", "engine.workers=3"),
]


@pytest.mark.parametrize("overrides", ROUND_TRIPS, ids=" ".join)
def test_a_dumped_scenario_comes_back_equal(overrides):
    """`parse` of `dump` is the same scenario, and dumping again gives the same text."""
    scenario = variant(*overrides)
    text = dump(scenario)
    assert parse(text) == scenario
    assert dump(parse(text)) == text


@settings(max_examples=100, deadline=None)
@given(
    rounds=st.integers(1, 10**6),
    seed=st.integers(0, 2**63 - 1),
    epsilon=st.floats(1e-300, 1e300),
    rate=st.floats(1e-300, 1e300),
    path=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_numbers_and_texts_survive_the_file_exactly(rounds, seed, epsilon, rate, path):
    """Every finite float comes back to the last bit, and every text to the last sign."""
    base = parse(SCENARIO).model_dump()
    tables = base | {
        "run": base["run"] | {"rounds": rounds, "seed": seed},
        "data": base["data"] | {"path": path},
        "server": base["server"] | {"max_participations": rounds},
        "privacy": base["privacy"] | {"epsilon": epsilon},
        "training": base["training"] | {"learning_rate": rate},
    }
    scenario = Scenario.model_validate(tables)
    assert parse(dump(scenario)) == scenario


def test_a_dumped_scenario_says_every_default():
    """The file of a run needs no program to be understood: defaults are written out."""
    text = dump(parse(SCENARIO))
    for line in ("cohort = 4", "spare_rounds = 2", "delta = 1e-05", "budget = 2.0", 'activation = "tanh"'):
        assert line in text.splitlines()


def test_an_override_replaces_one_key():
    """`server.cohort=2` changes the cohort and what follows from it."""
    scenario = variant("server.cohort=2")
    assert (scenario.server.cohort, scenario.server.max_participations) == (2, 5)  # ceil(10 x 2 / 4)
    assert scenario.run == parse(SCENARIO).run


def test_the_last_override_wins():
    """Two overrides of one key are applied in order."""
    assert variant("run.rounds=3", "run.rounds=5").run.rounds == 5


def test_an_override_is_toml_or_else_plain_text():
    """Numbers, lists and quoted texts are TOML; what is none of it is the text itself."""
    assert variant("model.channels=[1, 2, 3]").model.channels == (1, 2, 3)
    assert variant('run.name="y"').run.name == variant("run.name=y").run.name == variant("run.name = y ").run.name
    assert variant("data.path=a=b").data.path == "a=b"


def test_an_override_makes_a_table_that_the_file_lacks():
    """A table that the file does not have can be set too."""
    assert variant("engine.workers=3").engine.workers == 3


def test_an_empty_value_removes_the_key():
    """`privacy.epsilon=` takes the key out, so that the noise multiplier can stand in its place."""
    scenario = variant("privacy.epsilon=", "privacy.noise_multiplier=1.1")
    assert scenario.privacy.epsilon is None
    assert scenario.privacy.noise_multiplier == 1.1
    assert scenario.privacy.budget is None


def test_removing_a_key_that_is_not_there_changes_nothing():
    """An empty value for an absent key is no mistake."""
    assert variant("server.cohort=") == parse(SCENARIO)


@pytest.mark.parametrize("override", ["", "rounds", "rounds=3", "run.rounds", ".rounds=3", "run.=3", "=", "run=3"])
def test_an_override_without_table_key_and_value_is_refused(override):
    """What is not `table.key=value` is refused with an example."""
    with pytest.raises(ScenarioError, match=r"^--set: expected table\.key=value, for example server\.cohort=50, got"):
        variant(override)


def test_an_override_of_what_is_no_table_is_refused():
    """A key of the file that is no table has no keys of its own."""
    with pytest.raises(ScenarioError, match=r"^--set: 'server' is no table of the scenario, got 'server\.cohort=1'"):
        parse("server = 3\n" + SCENARIO, overrides=["server.cohort=1"])


@pytest.mark.parametrize("table", ["run", "data", "model", "training", "server", "privacy", "engine"])
def test_a_scenario_cannot_be_changed(table):
    """A scenario and each of its tables are frozen."""
    scenario = parse(SCENARIO)
    part = getattr(scenario, table)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(scenario, table, part)
    first = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, first, getattr(part, first))


def test_a_scenario_is_loaded_from_a_file(tmp_path):
    """`load` reads a file, with overrides, as `parse` reads a text."""
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    assert load(path, ["server.cohort=2"]) == variant("server.cohort=2")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    """A missing file, or one that is no text, is refused with what to do instead."""
    path: Path = tmp_path / "scenario.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScenarioError, match=r"scenario\.toml: cannot be read \(.*`discreet init` writes one"):
        load(path)


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    """The message begins with the path that the user gave."""
    path = tmp_path / "study.toml"
    path.write_text("[run")
    with pytest.raises(ScenarioError, match=r"study\.toml: not a TOML file"):
        load(path)
