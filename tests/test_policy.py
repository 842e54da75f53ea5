"""An owner's policy: read exactly or refused, a digest of what it says, and an objection to whatever is outside."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, replace
from fractions import Fraction
from typing import Any, get_args

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from client import policy as policies
from client.policy import (
    OPENNESS,
    Limits,
    ModelName,
    Policy,
    describe,
    in_words,
    largest_posterior,
    load,
    parse,
    starter,
)  # fmt: skip
from client.proposals import Proposal
from client.proposals import objections as objections_to
from common.errors import BadInputError, PolicyError
from common.model_tables import Cnn, CnnOpacus, Mlp, Transformer
from common.privacy.accounting import epsilon
from common.privacy.events import Adjacency, SampledGaussian

POLICY = """
version = 2
owner = "St Mary's Hospital"
[data]
lineage = "cardiology"
version = "2024-11"
records = 6000
unit = "record"
[budget]
adjacency = "zero-out"
delta = 1e-6
epsilon = 8.0
[limits]
min_noise_multiplier = 0.5
max_grad_norm = 2.0
max_steps_per_round = 100
"""
DIGEST = hashlib.sha256(b"the client's code").hexdigest()
ABSENT = object()
BY_PERSON = {"data.unit": ABSENT, "data.unit_column": "patient_id"}

EVENT = SampledGaussian(noise_multiplier=1.0, sampling_rate=Fraction(1, 100), steps=40)
NOISED = SampledGaussian(noise_multiplier=20.0, sampling_rate=Fraction(1), steps=1)
PROPOSAL = Proposal(
    run="r", event=EVENT, participations=12, max_grad_norm=1.0, model="cnn", cohort=10, metrics="none", code=DIGEST
)


def text_with(changes: dict[str, Any]) -> str:
    """The policy above as a text, with other values; ABSENT removes a key."""
    tables = policies.tomllib.loads(POLICY)
    for key, value in changes.items():
        table, _, name = key.rpartition(".")
        section = tables.setdefault(table, {}) if table else tables
        section[name] = value
        if value is ABSENT:
            del section[name]
    return tomli_w.dumps(tables)


def variant(changes: dict[str, Any]) -> Policy:
    """The policy above, with other values."""
    return parse(text_with(changes))


def with_event(**changes: Any) -> Proposal:
    """The proposal above, with another event."""
    return replace(PROPOSAL, event=replace(EVENT, **changes))


def test_a_policy_says_what_its_file_says():
    """Each value of the file is there after reading."""
    policy = parse(POLICY)
    assert (policy.version, policy.owner) == (2, "St Mary's Hospital")
    assert (policy.data.lineage, policy.data.version, policy.data.records) == ("cardiology", "2024-11", 6000)
    assert (policy.budget.adjacency, policy.budget.delta, policy.budget.epsilon) == ("zero-out", 1e-6, 8.0)
    assert policy.limits.min_noise_multiplier == 0.5
    assert (policy.limits.max_grad_norm, policy.limits.max_steps_per_round) == (2.0, 100)


def test_every_default_is_filled_in():
    """One run may spend the lifetime's epsilon, every known model is allowed, no metrics leave."""
    policy = parse(POLICY)
    assert policy.budget.epsilon_per_run == 8.0
    assert policy.limits.models == ("cnn", "cnn-opacus", "mlp", "transformer")
    assert (policy.limits.min_cohort, policy.limits.metrics) == (1, "none")
    assert (policy.limits.code, policy.limits.bundles, policy.limits.witness) == ((), (), "")
    assert policy.limits.witness_down == "refuse"
    assert (policy.limits.approval, policy.limits.without_privacy) == (False, False)


def test_the_known_models_are_those_of_a_scenario():
    """A policy can name each model that a scenario can, and no other."""
    names = [get_args(table.model_fields["name"].annotation)[0] for table in (Cnn, CnnOpacus, Mlp, Transformer)]
    assert list(get_args(ModelName)) == names


def test_the_unit_is_a_record_or_a_person():
    """A policy that names the column of the person protects persons."""
    assert parse(POLICY).unit == "record"
    assert variant(BY_PERSON).unit == "person"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.records", 1_000_000),  # delta = 1/records
        ("budget.delta", 1e-10),
        ("budget.delta", 1 / 6000),
        ("budget.epsilon_per_run", 8.0),  # epsilon
        ("budget.epsilon", 1e300),
        ("data.lineage", "a" * 64),
        ("owner", "é" * 200),
        ("limits.code", [DIGEST]),
        ("limits.bundles", [DIGEST]),
        ("limits.witness", "w" * 64),
        ("limits.witness", ""),
        ("limits.witness_down", "wait"),
        ("limits.approval", True),
        ("limits.without_privacy", True),
    ],
)
def test_a_value_at_its_edge_is_read(key, value):
    """The last value before a refusal is no refusal."""
    assert variant({key: value})


HEX = "expected a SHA-256 digest of 64 lower-case hexadecimal digits, got"
LABEL = "expected 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first, got"
LINE = "expected one line of at most 200 printable characters, got"
BAD = [
    # unknown keys
    ({"ownr": "x"}, "ownr: unknown key; did you mean owner"),
    ({"zzz": 1}, "zzz: unknown key; known keys are version, owner, data, budget, limits"),
    ({"limts": {"min_cohort": 2}}, "limts: unknown key; did you mean limits"),
    ({"model": "cnn"}, "model: unknown key; known keys are"),
    ({"model": {"cnn": {"dense": 3}}}, "model: unknown key; known keys are"),
    ({"data.lineages": "x"}, "data.lineages: unknown key; did you mean data.lineage"),
    ({"data.zzz": 1}, "data.zzz: unknown key; known keys are lineage, records, unit, unit_column, version"),
    ({"budget.epsilom": 1.0}, "budget.epsilom: unknown key; did you mean budget.epsilon"),
    ({"limits.min_noise": 1.0}, "limits.min_noise: unknown key; did you mean limits.min_noise_multiplier"),
    ({"limits.approve": True}, "limits.approve: unknown key; did you mean limits.approval"),
    # missing
    *(({key: ABSENT}, f"{key}: expected a value, got none; add it.") for key in (
        "owner", "data", "budget", "limits", "data.lineage", "data.version", "data.records", "budget.adjacency",
        "budget.delta", "budget.epsilon", "limits.min_noise_multiplier", "limits.max_grad_norm",
        "limits.max_steps_per_round",
    )),
    # tables
    ({"data": 3}, "data: expected a table, got 3."),
    ({"budget": "8"}, "budget: expected a table, got '8'."),
    ({"limits": [1]}, "limits: expected a table, got [1]."),
    # texts
    ({"owner": ""}, "owner: expected a text, got ''."),
    ({"owner": " \t"}, "owner: expected one line"),
    ({"owner": "  "}, "owner: expected a text, got '  '."),
    ({"owner": "a\nb"}, f"owner: {LINE} 'a\\nb'."),
    ({"owner": "a\u202eb"}, f"owner: {LINE} 'a\\u202eb'."),  # it would turn the rest of a log's line around
    ({"owner": "a" * 201}, f"owner: {LINE} 'aaa"),
    ({"owner": 3}, "owner: expected a valid string, got 3."),
    ({"data.lineage": ""}, f"data.lineage: {LABEL} ''."),
    ({"data.lineage": "../x"}, f"data.lineage: {LABEL} '../x'."),
    ({"data.lineage": "x\n"}, f"data.lineage: {LABEL} 'x\\n'."),
    ({"data.lineage": "a" * 65}, f"data.lineage: {LABEL} 'aaa"),
    ({"data.version": "a b"}, f"data.version: {LABEL} 'a b'."),
    ({"data.version": 2024}, "data.version: expected a valid string, got 2024."),
    ({"data.unit_column": "", "data.unit": ABSENT}, "data.unit_column: expected a text, got ''."),
    ({"data.unit_column": "a\0b", "data.unit": ABSENT}, f"data.unit_column: {LINE} 'a\\x00b'."),
    ({"limits.witness": "a\nb"}, "limits.witness: expected a name as in the roster, or nothing, got 'a\\nb'."),
    ({"limits.witness": "w" * 65}, "limits.witness: expected a name as in the roster, or nothing, got 'www"),
    ({"limits.witness": False}, "limits.witness: expected a valid string, got False."),
    # choices
    ({"data.unit": "person"}, "data.unit: expected 'record', or for persons their column as unit_column instead"),
    ({"data.unit": "client"}, "data.unit: expected 'record', or"),
    ({"data.unit_column": "id"}, "data.unit: expected unit = 'record' or a unit_column, got both; give one of them."),
    ({"data.unit": ABSENT}, "data.unit: expected unit = 'record' or a unit_column, got neither; give one of them."),
    ({"budget.adjacency": "add-remove"}, "budget.adjacency: expected 'zero-out', got 'add-remove'."),
    ({"limits.metrics": "all"}, "limits.metrics: expected 'none', 'noisy' or 'clear', got 'all'."),
    ({"limits.models": ["resnet"]}, "limits.models.0: expected 'cnn', 'cnn-opacus', 'mlp' or 'transformer', got 'res"),
    ({"limits.models": []}, "limits.models: expected at least one model, got none; remove the key to allow all."),
    ({"limits.models": "cnn"}, "limits.models: expected a list, got 'cnn'."),
    ({"limits.code": [DIGEST, "abc"]}, f"limits.code.1: {HEX} 'abc'."),
    ({"limits.code": [DIGEST.upper()]}, f"limits.code.0: {HEX} '"),
    ({"limits.code": [DIGEST + "\n"]}, f"limits.code.0: {HEX} '"),
    ({"limits.code": DIGEST}, "limits.code: expected a list, got '"),
    # numbers
    ({"data.records": 0}, "data.records: expected greater than 0, got 0."),
    ({"data.records": 6000.0}, "data.records: expected a valid integer, got 6000.0."),
    ({"data.records": True}, "data.records: expected a valid integer, got True."),
    ({"data.records": 10**400}, "data.records: expected"),
    ({"budget.delta": 9e-11}, "budget.delta: expected greater than or equal to 0.0000000001, got 9e-11."),
    ({"budget.delta": 1.0}, "budget.delta: expected less than 1, got 1.0."),
    ({"budget.delta": math.nan}, "budget.delta: expected"),
    ({"budget.delta": 1.7e-4}, "budget.delta: expected at most 1/data.records = 0.000167, got 0.00017; a tenth of"),
    ({"data.records": 1_000_001}, "budget.delta: expected at most 1/data.records = 1e-06, got 1e-06; a tenth of"),
    ({"budget.epsilon": 0.0}, "budget.epsilon: expected greater than 0, got 0.0."),
    ({"budget.epsilon": math.nan}, "budget.epsilon: expected a finite number, got nan."),
    ({"budget.epsilon": math.inf}, "budget.epsilon: expected a finite number, got inf."),
    ({"budget.epsilon": True}, "budget.epsilon: expected a valid number, got True."),
    ({"budget.epsilon": "8"}, "budget.epsilon: expected a valid number, got '8'."),
    ({"budget.epsilon_per_run": 0.0}, "budget.epsilon_per_run: expected greater than 0, got 0.0."),
    ({"budget.epsilon_per_run": 8.5}, "budget.epsilon_per_run: expected at most epsilon = 8.0, got 8.5; lower it."),
    ({"limits.min_noise_multiplier": 0.0}, "limits.min_noise_multiplier: expected greater than 0, got 0.0."),
    ({"limits.min_noise_multiplier": math.nan}, "limits.min_noise_multiplier: expected a finite number, got nan."),
    ({"limits.max_grad_norm": 0.0}, "limits.max_grad_norm: expected greater than 0, got 0.0."),
    ({"limits.max_grad_norm": math.inf}, "limits.max_grad_norm: expected a finite number, got inf."),
    ({"limits.max_steps_per_round": 0}, "limits.max_steps_per_round: expected greater than 0, got 0."),
    ({"limits.max_steps_per_round": 1.5}, "limits.max_steps_per_round: expected a valid integer, got 1.5."),
    ({"limits.min_cohort": 0}, "limits.min_cohort: expected greater than 0, got 0."),
    ({"limits.min_cohort": False}, "limits.min_cohort: expected a valid integer, got False."),
    # the layout's version
    ({"version": ABSENT}, "version: expected 2, got none. Put `version = 2` at the head."),
    ({"version": 1}, "version: expected 2, got 1. Put `version = 2` at the head."),
    ({"version": 0}, "version: expected 2, got 0. Put"),
    ({"version": True}, "version: expected 2, got True. Put"),
    ({"version": 1.0}, "version: expected 2, got 1.0. Put"),
    ({"version": "2"}, "version: expected 2, got '2'. Put"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD, ids=[words[:60] for _, words in BAD])
def test_a_bad_value_is_refused_by_file_key_expected_and_got(changes, words):
    """One sentence names the file, the key, what was expected and what was got."""
    with pytest.raises(PolicyError) as refusal:
        parse(text_with(changes), name="policy.toml")
    assert str(refusal.value).startswith(f"policy.toml: {words}")


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it():
    """Of `epsilom` and the missing `epsilon`, the first is what the owner has to look at."""
    with pytest.raises(PolicyError, match=r"^policy: budget\.epsilom: unknown key; did you mean budget\.epsilon"):
        variant({"budget.epsilon": ABSENT, "budget.epsilom": 8.0})


def test_a_default_that_follows_from_a_bad_value_is_no_second_problem():
    """A bad epsilon is one problem, although epsilon_per_run would have followed from it."""
    with pytest.raises(PolicyError, match=r"^policy: budget\.epsilon: expected greater than 0, got 0\.0\.$"):
        variant({"budget.epsilon": 0.0})


@pytest.mark.parametrize("extra", ["", "unheard_of = 3\n"])
def test_a_policy_of_a_newer_version_is_refused_whole(extra):
    """Nothing of a newer layout is guessed at: the answer is to upgrade, whatever else the file says."""
    with pytest.raises(PolicyError, match=r"^policy: version: expected 2, got 3\. .*newer Discreet.*upgrade Discreet"):
        parse(extra + POLICY.replace("version = 2", "version = 3"))


def test_bad_input_is_a_mistake_of_the_user():
    """A wrong policy ends the command with exit code 2."""
    assert issubclass(PolicyError, BadInputError)
    assert PolicyError.exit_code == 2


@pytest.mark.parametrize(
    "text",
    ["version", "[data", "a = ", "a = 3\na = 4", "\0", 'owner = "x', "a = 1979-13-01", "x = [1,,2]", "﻿version = 1",
     "x = " + "[" * 100_000, "x = " + "9" * 5000, '"\\ud800" = 1'],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_toml_is_refused(text):
    """A file that does not read as TOML is refused under its name, however odd it is."""
    with pytest.raises(PolicyError, match=r"^policy\.toml: not a TOML file: "):
        parse(text, name="policy.toml")


def test_an_empty_file_permits_nothing():
    """A file without a line is refused for its missing version."""
    with pytest.raises(PolicyError, match=r"^policy: version: expected 2, got none"):
        parse("")


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_no_text_escapes_as_another_error(text):
    """Whatever the file holds, it is refused with a PolicyError: no short text is a whole policy."""
    with pytest.raises(PolicyError):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(
    key=st.sampled_from(["version", "owner", "data", "data.records", "data.unit", "budget.delta", "budget.epsilon",
                         "budget.epsilon_per_run", "limits", "limits.models", "limits.code", "limits.metrics", "zzz"]),
    value=st.sampled_from([0, -1, 1.5, math.nan, -math.inf, True, [], {}, "", "cnn", [[1]], ["cnn"], {"x": {}}]),
)  # fmt: skip
def test_no_value_escapes_as_another_error(key, value):
    """Whatever value stands at whatever key, the answer is a policy or a PolicyError."""
    try:
        policy = variant({key: value})
    except PolicyError as error:
        assert str(error).startswith("policy: ")  # noqa: PT017 - both answers are right
    else:
        assert len(policy.digest) == 64


def test_a_policy_is_loaded_from_a_file(tmp_path):
    """`load` reads a file as UTF-8, whatever the locale, as `parse` reads a text."""
    path = tmp_path / "policy.toml"
    text = text_with({"owner": "Hôpital Sainte-Marie"})
    path.write_bytes(text.encode())
    assert load(path) == parse(text)


@pytest.mark.parametrize("content", [None, "a directory", b"\xff\xfe"], ids=["missing", "directory", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    """A missing file, a directory, or what is no text, is refused with what to do instead."""
    path = tmp_path / "policy.toml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(
        PolicyError, match=r"policy\.toml: cannot be read \(.*nothing is trained: `discreet policy init`"
    ):
        load(path)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    """A path with a zero byte is bad input, no stray ValueError."""
    with pytest.raises(PolicyError, match="cannot be read"):
        load(tmp_path / "a\0b")


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    """The message begins with the path that the user gave."""
    path = tmp_path / "policy.toml"
    path.write_text("[data")
    with pytest.raises(PolicyError) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path}: not a TOML file")


@pytest.mark.parametrize("table", ["data", "budget", "limits"])
def test_a_policy_cannot_be_changed(table):
    """A policy and each of its tables are frozen."""
    policy = parse(POLICY)
    part = getattr(policy, table)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(policy, table, part)
    first = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, first, getattr(part, first))


# The digest.


def test_the_digest_is_the_hash_of_the_canonical_form():
    """SHA-256 of the sorted JSON without spaces, so that anybody can compute it."""
    policy = parse(POLICY)
    canonical = json.dumps(policy.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    assert policy.digest == hashlib.sha256(canonical.encode()).hexdigest()


def test_the_digest_of_a_known_policy_never_changes():
    """Ledgers hold this value: a change of what is hashed needs a new version of the layout."""
    assert parse(POLICY).digest == "f752ab6963abf696b8a5b03782d25cc86aeca6276bd0bea1c9a6e55fa33d379e"


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n\n" + POLICY,
        POLICY.replace(" = ", "="),
        POLICY.replace("1e-6", "0.000001").replace("8.0", "8").replace("6000", "6_000"),
        POLICY.replace("[limits]", "epsilon_per_run = 8.0\n[limits]"),
        POLICY + 'metrics = "none"\nwitness = ""\ncode = []\nmin_cohort = 1',
        POLICY + 'models = ["transformer", "mlp", "cnn", "cnn-opacus", "cnn"]',
        POLICY.replace('unit = "record"', "unit = 'record'"),
        text_with({}),
    ],
    ids=["comments", "spaces", "numbers", "default of epsilon", "defaults", "order of models", "quotes", "written"],
)
def test_the_digest_does_not_depend_on_how_a_file_is_written(text):
    """Comments, spaces, the spelling of numbers, the order of a set, and defaults written out change nothing."""
    assert parse(text).digest == parse(POLICY).digest


def test_the_digest_does_not_depend_on_the_order_of_digests():
    """The code that may run is a set."""
    other = hashlib.sha256(b"").hexdigest()
    assert variant({"limits.code": [DIGEST, other]}).digest == variant({"limits.code": [other, DIGEST, other]}).digest


CHANGES: dict[str, Any] = {
    "owner": "St Mary's hospital",
    "data.lineage": "cardiology2",
    "data.version": "2024-12",
    "data.records": 6001,
    "data.unit": ABSENT,  # with a column in its place
    "data.unit_column": "patient",
    "budget.delta": 1.0000000000000002e-6,
    "budget.epsilon": 8.000000000000002,
    "budget.epsilon_per_run": 7.999999999999999,
    "limits.min_noise_multiplier": 0.5000000000000001,
    "limits.max_grad_norm": 2.0000000000000004,
    "limits.max_steps_per_round": 101,
    "limits.min_cohort": 2,
    "limits.models": ["cnn", "transformer"],
    "limits.metrics": "noisy",
    "limits.code": [DIGEST],
    "limits.bundles": [DIGEST],
    "limits.witness": "w",
    "limits.witness_down": "wait",
    "limits.approval": True,
    "limits.without_privacy": True,
    "audit.canaries": 200,
}


def keys(table: type[BaseModel], prefix: str = "") -> set[str]:
    """All keys of a file, dotted."""
    found = set()
    for name, field in table.model_fields.items():
        part = field.annotation
        is_table = isinstance(part, type) and issubclass(part, BaseModel)
        found |= keys(part, f"{name}.") if is_table else {prefix + name}
    return found


def test_every_key_is_in_the_list_of_changes():
    """The test below leaves no key out; version and adjacency have one value each."""
    assert keys(Policy) == CHANGES.keys() | {"version", "budget.adjacency"}


@pytest.mark.parametrize("key", CHANGES)
def test_the_digest_depends_on_every_value(key):
    """A change of any value, by its last bit too, is another policy."""
    base = BY_PERSON if key == "data.unit_column" else {}
    changes = BY_PERSON if key == "data.unit" else base | {key: CHANGES[key]}
    assert variant(changes).digest != variant(base).digest


def test_no_two_of_the_changes_share_a_digest():
    """Values of different keys are not mixed up."""
    digests = {variant((BY_PERSON if "unit" in key else {}) | {key: value}).digest for key, value in CHANGES.items()}
    assert len(digests) == len(CHANGES)


# Objections.


def test_a_proposal_within_the_policy_is_accepted():
    """What is inside every limit meets no objection."""
    assert objections_to(parse(POLICY), PROPOSAL) == ()


def test_a_proposal_at_every_limit_is_accepted():
    """Noise, norm, steps, cohort, metrics, code and epsilon may each be exactly at the limit."""
    spent = epsilon((EVENT.times(12),), delta=1e-6)
    at_the_edge = {
        "limits.min_noise_multiplier": 1.0, "limits.max_grad_norm": 1.0, "limits.max_steps_per_round": 40,
        "limits.min_cohort": 10, "limits.models": ["cnn"], "limits.code": [DIGEST],
        "budget.epsilon_per_run": spent, "data.records": 100,  # q = 1/100
    }  # fmt: skip
    assert objections_to(variant(at_the_edge), PROPOSAL) == ()


def test_what_others_must_do_is_no_matter_of_the_proposal():
    """Who must cosign or approve is asked elsewhere: a proposal can neither meet nor miss it."""
    others = {"limits.witness": "notary", "limits.approval": True, "limits.bundles": [DIGEST]}
    assert objections_to(variant(others), PROPOSAL) == ()


@pytest.mark.parametrize("allowed", OPENNESS)
def test_metrics_as_open_as_allowed_or_less_are_accepted(allowed):
    """What is allowed includes what is more closed."""
    for metrics in OPENNESS[: OPENNESS.index(allowed) + 1]:
        proposal = replace(PROPOSAL, metrics=metrics, metrics_event=NOISED if metrics == "noisy" else None)
        assert objections_to(variant({"limits.metrics": allowed}), proposal) == ()


ALONE = [
    ({"limits.min_noise_multiplier": 1.5}, {}, "noise_multiplier: expected at least 1.5, got 1.0"),
    ({"limits.max_grad_norm": math.nextafter(1, 0)}, {}, "max_grad_norm: expected at most 0.9999999999999999, got 1.0"),
    ({"limits.max_steps_per_round": 39}, {}, "steps: expected at most 39 a round, got 40"),
    (BY_PERSON, {}, "unit: expected person by column 'patient_id', got record"),
    ({}, {"unit_column": "patient_id"}, "unit: expected record, got record by column 'patient_id'"),
    ({"data.records": 6001}, {}, "sampling_rate: expected a whole number over the 6001 declared records, got 1/100"),
    ({"limits.models": ["transformer"]}, {}, "model: expected one of transformer, got 'cnn'"),
    ({}, {"model": "x\ny"}, "model: expected one of cnn, cnn-opacus, mlp, transformer, got 'x\\ny'"),
    ({"limits.min_cohort": 11}, {}, "cohort: expected at least 11, got 10"),
    (
        {}, {"metrics": "noisy", "metrics_event": NOISED}, "metrics: expected 'none' or less open, got 'noisy'",
    ),
    ({"limits.metrics": "noisy"}, {"metrics": "clear"}, "metrics: expected 'noisy' or less open, got 'clear'"),
    ({"limits.code": ["0" * 64]}, {}, f"code: expected one of the digests in limits.code, got '{DIGEST}'"),
    ({"limits.code": ["0" * 64]}, {"code": ""}, "code: expected one of the digests in limits.code, got ''"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "proposed", "words"), ALONE, ids=[words[:50] for _, _, words in ALONE])
def test_what_is_outside_in_one_point_meets_that_one_objection(changes, proposed, words):
    """One step beyond a limit is told by name, expected and got, and nothing else is."""
    assert objections_to(variant(changes), replace(PROPOSAL, **proposed)) == (words,)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"unit": "person"}, "unit: expected record, got person"),
        ({"unit": "client"}, "unit: expected record, got client"),
        ({"sampling_rate": Fraction(1, 6001)}, "sampling_rate: expected a whole number over the 6000 declared records"),
        ({"sampling_rate": Fraction(121, 12000)}, "sampling_rate: expected a whole number over"),  # 60.5 records
    ],
)
def test_another_kind_of_event_meets_one_objection(event, words):
    """The unit and the denominator of the sampling rate are the policy's."""
    (objection,) = objections_to(parse(POLICY), with_event(**event))
    assert objection.startswith(words)


@dataclass(frozen=True, kw_only=True)
class Exchanged(SampledGaussian):
    """Training under another adjacency, which no event of this version has."""

    adjacency: Adjacency = "replace-one"


def test_another_adjacency_meets_one_objection():
    """Neighbours of the proposal are those of the policy."""
    exchanged = Exchanged(noise_multiplier=1.0, sampling_rate=Fraction(1, 100), steps=40)
    (objection,) = objections_to(parse(POLICY), replace(PROPOSAL, event=exchanged))
    assert objection == "adjacency: expected zero-out, got replace-one"


def test_a_policy_for_persons_accepts_its_own_column_only():
    """The same unit by another column protects somebody else."""
    persons = replace(with_event(unit="person"), unit_column="patient_id")
    assert objections_to(variant(BY_PERSON), persons) == ()
    assert objections_to(variant(BY_PERSON), replace(persons, unit_column="ward")) == (
        "unit: expected person by column 'patient_id', got person by column 'ward'",
    )
    assert len(objections_to(variant(BY_PERSON), replace(persons, unit_column=None))) == 1


@pytest.mark.parametrize("rate", [Fraction(1, 6000), Fraction(1), Fraction(7, 6000), Fraction(1, 2)])
def test_a_whole_number_of_the_records_is_a_sampling_rate(rate):
    """Some of 6000 records, k of them, in lowest terms or not, fits the declared number."""
    objections = objections_to(variant({"budget.epsilon": 1e6}), with_event(sampling_rate=rate, noise_multiplier=100.0))
    assert objections == ()


def test_epsilon_of_all_reserved_participations_is_what_counts():
    """One participation more than the limit allows is outside, although each alone is inside."""
    spent = epsilon((EVENT.times(12),), delta=1e-6)
    policy = variant({"budget.epsilon_per_run": spent})
    assert objections_to(policy, PROPOSAL) == ()
    (objection,) = objections_to(policy, replace(PROPOSAL, participations=13))
    assert objection.startswith(f"epsilon: expected at most {spent} a run, got 1.")
    assert objection.endswith(" for 13 times 40 steps at delta 1e-06")


def test_epsilon_one_rounding_step_above_the_limit_is_outside():
    """The comparison is exact."""
    spent = epsilon((EVENT.times(12),), delta=1e-6)
    (objection,) = objections_to(variant({"budget.epsilon_per_run": math.nextafter(spent, 0)}), PROPOSAL)
    assert objection.startswith("epsilon: expected at most ")


def test_epsilon_is_that_of_one_run_and_of_the_policys_delta():
    """A smaller delta of the policy makes the same proposal cost more."""
    spent = epsilon((EVENT.times(12),), delta=1e-6)
    (objection,) = objections_to(variant({"budget.epsilon_per_run": spent, "budget.delta": 1e-7}), PROPOSAL)
    assert objection.endswith("at delta 1e-07")


HOPELESS = [
    (replace(with_event(noise_multiplier=0.5, sampling_rate=Fraction(1)), participations=10**9), ""),
    (replace(with_event(noise_multiplier=0.5, sampling_rate=Fraction(1, 6000)), participations=10**9), "no figure ("),
    (with_event(noise_multiplier=1e-3, sampling_rate=Fraction(1, 2)), "no figure ("),
    (with_event(noise_multiplier=1e-320), "no figure ("),
    (replace(PROPOSAL, participations=10**300), "no figure ("),
]


@pytest.mark.parametrize(("proposal", "words"), HOPELESS)
def test_what_the_accountant_cannot_count_is_outside(proposal, words):
    """Numbers beyond all use meet an objection, no stray error and no full memory."""
    objections = objections_to(parse(POLICY), proposal)
    assert objections[-1].startswith(f"epsilon: expected at most 8.0 a run, got {words}")


def test_noised_metrics_are_counted():
    """Epsilon of a run is that of its training and of its metrics together."""
    measured = replace(PROPOSAL, metrics="noisy", metrics_event=NOISED)
    training = epsilon((EVENT.times(12),), delta=1e-6)
    both = epsilon((EVENT.times(12), NOISED.times(12)), delta=1e-6)
    policy = {"limits.metrics": "noisy"}
    assert objections_to(variant(policy | {"budget.epsilon_per_run": both}), measured) == ()
    (objection,) = objections_to(variant(policy | {"budget.epsilon_per_run": training}), measured)
    assert objection.startswith("epsilon: expected at most")


def test_noised_metrics_that_nobody_counts_are_outside():
    """A proposal of noised metrics that does not say what they cost is refused."""
    assert objections_to(variant({"limits.metrics": "noisy"}), replace(PROPOSAL, metrics="noisy")) == (
        "metrics_event: expected what the noised metrics cost, got none",
    )


def test_every_reason_is_given():
    """A proposal that is outside in all points meets all objections."""
    policy = variant({
        "limits.min_noise_multiplier": 2.0, "limits.max_steps_per_round": 1, "limits.max_grad_norm": 0.5,
        "limits.min_cohort": 100, "limits.models": ["transformer"], "limits.code": ["0" * 64],
        "data.records": 7, "budget.epsilon": 0.1,
    })  # fmt: skip
    event = Exchanged(noise_multiplier=1.0, sampling_rate=Fraction(1, 100), steps=40, unit="client")
    outside = replace(PROPOSAL, event=event, metrics="noisy")
    names = [objection.partition(":")[0] for objection in objections_to(policy, outside)]
    assert names == [
        "unit", "adjacency", "sampling_rate", "noise_multiplier", "max_grad_norm", "steps",
        "model", "cohort", "metrics", "code", "metrics_event", "epsilon",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"participations": 0}, "participations: expected a number above 0, got 0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm: expected a number above 0, got nan"),
        ({"cohort": 0}, "cohort: expected a number above 0, got 0"),
        ({"metrics": "all"}, "metrics: expected one of none, noisy, clear, got 'all'"),
        ({"metrics_event": replace(NOISED, unit="client")}, "metrics_event: expected unit 'record' as in event"),
    ],
)
def test_an_impossible_proposal_is_refused_when_it_is_made(change, words):
    """A proposal that no run can carry out is no proposal."""
    with pytest.raises(ValueError, match=words):
        replace(PROPOSAL, **change)


def test_a_proposal_cannot_be_changed():
    """A proposal is frozen: what was judged is what is recorded."""
    with pytest.raises(FrozenInstanceError):
        PROPOSAL.cohort = 3  # type: ignore[misc]


def test_metrics_are_listed_from_the_most_closed_on():
    """The order of the choices is the order of openness, and the default is the first."""
    assert OPENNESS == ("none", "noisy", "clear")
    assert Limits.model_fields["metrics"].default == OPENNESS[0]


# The starter, and what people and scripts read.


@pytest.mark.parametrize("owner", ["St Mary's Hospital", 'the "best" \\ clinic', "Hôpital", "#1", "OWNER"])
def test_the_starter_is_a_policy_of_its_owner(owner):
    """The file to start from parses, and names the owner whatever signs the name has."""
    assert parse(starter(owner)).owner == owner


@pytest.mark.parametrize("owner", ["", "a\nb", "a" * 201, "\ud800"])
def test_no_starter_is_written_for_an_impossible_owner(owner):
    """A name that no policy can have is refused before a file is written."""
    with pytest.raises(PolicyError, match=r"^the starter: owner: expected"):
        starter(owner)


def test_the_starter_says_every_key():
    """All keys are in the starter with their values, the column of the person as a comment."""
    text = starter("x")
    for key in keys(Policy):
        assert any(line.removeprefix("# ").startswith(f"{key.rpartition('.')[2]} = ") for line in text.splitlines()), (
            key
        )


def test_the_description_is_plain_json():
    """Scripts get the values, the digest, the unit and the odds."""
    policy = parse(POLICY)
    description = json.loads(json.dumps(describe(policy)))
    assert Policy.model_validate(description["policy"]) == policy
    assert (description["digest"], description["unit"]) == (policy.digest, "record")
    assert description["largest_posterior"] == pytest.approx(0.999664650)  # e^8 / (1 + e^8)


@pytest.mark.parametrize(("spent", "expected"), [(0.0, 0.5), (math.log(3), 0.75), (1e300, 1.0)])
def test_the_largest_posterior_is_that_of_an_even_guess(spent, expected):
    """e^epsilon / (1 + e^epsilon): even odds times 3 are 3 to 1, and no epsilon overflows."""
    assert largest_posterior(spent) == pytest.approx(expected)


def test_a_policy_is_told_in_words():
    """The sentences name the unit, both budgets with their odds, the limits, and what leaves."""
    words = " ".join(in_words(variant({"budget.epsilon_per_run": 4.0})))
    for part in (
        "St Mary's Hospital protects one record of 'cardiology', version 2024-11: 6000 records, a public number.",
        "epsilon at most 8.0 (adjacency zero-out, delta 1e-06)",
        "becomes at most 99.97 % sure",  # e^8 / (1 + e^8) = 0.99966, rounded up
        "In one run: epsilon at most 4.0, so that 50 % becomes at most 98.21 %.",  # 0.98201, rounded up
        "noise of at least 0.5 times the bound on what one record adds",
        "at most 100 steps a round",
        "Clients in a round: at least 1. Models: cnn, cnn-opacus, mlp, transformer. Client code: any.",
        "Bundles: Discreet's own, without code.",
        "No metrics on the data leave. Who must cosign: nobody.",
        "Approval of runs: none is asked for. Runs of unit 'none' are refused.",
    ):
        assert part in words


def test_what_is_dangerous_is_said_in_words():
    """Clear metrics, a witness that stops runs, no privacy at all, and near certain odds are not glossed over."""
    words = " ".join(
        in_words(variant(BY_PERSON | {
            "limits.metrics": "clear", "limits.witness": "notary", "limits.code": [DIGEST], "budget.epsilon": 20.0,
            "limits.without_privacy": True,
        }))
    )  # fmt: skip
    for part in (
        "one person with all its records (column 'patient_id')",
        "becomes at most more than 99.99 % sure",
        "WITHOUT noise",
        "Who must cosign: 'notary'; when it does not answer, that means no.",
        "Runs of unit 'none' may train WITHOUT privacy: no epsilon covers them.",
        "Client code: 1 named by digest",
    ):
        assert part in words


def test_reading_a_policy_imports_no_heavy_library():
    """`discreet policy check` answers at once: neither torch nor an accountant is loaded for it."""
    program = (
        "import sys, client.policy as p; p.in_words(p.parse(p.starter('x')));"
        "sys.exit(bool({'torch', 'dp_accounting', 'opacus', 'flwr', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
