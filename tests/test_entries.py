"""Entries: each comes back equal from its bytes, and whatever is not exactly one is refused."""

import dataclasses
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.event_kinds import (
    FixedSizeGaussian,
    RandomizedResponse,
    SampledGaussian,
    SampledLaplace,
    SelectedRun,
    TreeGaussian,
    ZeroConcentrated,
)
from common.transparency import canonical
from common.transparency.entries import (
    Approval,
    Audit,
    Opening,
    Provenance,
    Refuse,
    Reserve,
    Settle,
    Terms,
    from_bytes,
    to_bytes,
    type_of,
)

TERMS = Terms(
    owner="St Mary's – Ü",
    lineage="cardiology",
    version="2026-08",
    records=60000,
    unit="person",
    adjacency="zero-out",
    delta=1e-6,
    budget=0.1,
    policy="ab" * 32,
)
GAUSSIAN = SampledGaussian(noise_multiplier=1.1, sampling_rate=Fraction(8, 1875), steps=3)
EVENTS = (
    GAUSSIAN,
    SampledLaplace(scale=2.5, sampling_rate=Fraction(1, 3)),
    ZeroConcentrated(rho=0.1, steps=2),
    TreeGaussian(noise_multiplier=3.0, leaves=8),
    FixedSizeGaussian(noise_multiplier=2.0, sample_size=10, source_size=100),
    RandomizedResponse(noise_parameter=0.5, buckets=2),
    SelectedRun(run=(GAUSSIAN,), mean_runs=4.0, distribution="poisson"),
)
PROVENANCE = Provenance(code="cd" * 32, libraries={"torch": "2.11.0", "numpy": "2.3.1"}, rng="AES")
PLACE = {"sequence": 7, "time_ms": 1_790_000_000_123, "account": "a"}
ORDER = PLACE | {"run": "r", "round": 3, "attempt": 2}
ENTRIES = {
    "GENESIS": Opening(**PLACE, terms=TERMS, is_change=False),
    "POLICY_CHANGE": Opening(**PLACE, terms=TERMS, is_change=True),
    "RESERVE": Reserve(**ORDER, policy="ab" * 32, participations=1, events=EVENTS, provenance=PROVENANCE),
    "COMMIT": Settle(**ORDER, participations=1, type="COMMIT"),
    "EXPIRE": Settle(**ORDER, participations=1, type="EXPIRE"),
    "REFUSE": Refuse(**ORDER, word="budget-spent"),
    "AUDIT": Audit(**PLACE, run="r", findings={"verdict": "not refuted", "empty": ""}),
    "APPROVAL": Approval(**PLACE, run="r", decision="approved", by="Dr Grey", purpose="a trial", scenario="ef" * 32),
}
FIELDS = {
    "GENESIS": {"sequence", "type", "time", "account", "terms"},
    "POLICY_CHANGE": {"sequence", "type", "time", "account", "terms"},
    "RESERVE": {
        *("sequence", "type", "time", "account", "run", "round", "attempt", "policy", "participations"),
        *("events", "code", "libraries", "rng"),
    },
    "COMMIT": {"sequence", "type", "time", "account", "run", "round", "attempt", "participations"},
    "EXPIRE": {"sequence", "type", "time", "account", "run", "round", "attempt", "participations"},
    "REFUSE": {"sequence", "type", "time", "account", "run", "round", "attempt", "word"},
    "AUDIT": {"sequence", "type", "time", "account", "run", "findings"},
    "APPROVAL": {"sequence", "type", "time", "account", "run", "decision", "by", "purpose", "scenario"},
}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
whole = st.integers(0, canonical.LARGEST)
positive = st.floats(min_value=1e-300, max_value=1e300)
orders = {"sequence": whole, "time_ms": whole, "account": texts, "run": texts, "round": whole, "attempt": whole}
gaussians = st.builds(
    SampledGaussian,
    noise_multiplier=positive,
    sampling_rate=st.fractions(min_value=Fraction(1, 10**6), max_value=1),
    steps=st.integers(1, canonical.LARGEST),
    unit=st.sampled_from(["record", "person", "client"]),
)
names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=10)
anything = st.recursive(
    st.one_of(st.integers(-5, 5), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=5,
)
entries = st.one_of(
    st.builds(
        Opening,
        sequence=whole,
        time_ms=whole,
        account=texts,
        is_change=st.booleans(),
        terms=st.builds(
            Terms,
            owner=texts,
            lineage=texts,
            version=texts,
            records=st.integers(1, canonical.LARGEST),
            unit=st.sampled_from(["record", "person", "client"]),
            adjacency=st.just("zero-out"),
            delta=positive,
            budget=positive,
            policy=texts,
        ),
    ),
    st.builds(
        Reserve,
        **orders,
        policy=texts,
        participations=whole,
        events=st.lists(gaussians, min_size=1, max_size=3).map(tuple),
        provenance=st.builds(Provenance, code=texts, libraries=st.dictionaries(names, texts, max_size=3), rng=texts),
    ),
    st.builds(Settle, **orders, participations=whole, type=st.sampled_from(["COMMIT", "EXPIRE"])),
    st.builds(Refuse, **orders, word=texts),
    st.builds(
        Audit,
        sequence=whole,
        time_ms=whole,
        account=texts,
        run=texts,
        findings=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    ),
    st.builds(
        Approval,
        sequence=whole,
        time_ms=whole,
        account=texts,
        run=texts,
        decision=st.sampled_from(["approved", "refused"]),
        by=texts,
        purpose=st.one_of(st.just(""), texts),
        scenario=texts,
    ),
)


def plain(kind):
    """An entry as JSON values."""
    return json.loads(to_bytes(ENTRIES[kind]))


def refused(value):
    """Whether an entry of these JSON values is refused with ValueError; anything else that is raised passes through."""
    try:
        from_bytes(canonical.dumps(value))
    except ValueError:
        return True
    return False


def leaves(value, path=()):
    """Every place inside JSON values, objects and lists included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from leaves(item, (*path, key))


def replaced(value, path, new):
    """The same values with another one in one place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def places(kind):
    """Every place inside an entry of this type."""
    return [path for path in leaves(plain(kind)) if path]


def within(value, path):
    """What stands in a place."""
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("kind", ENTRIES)
def test_each_type_comes_back_equal(kind):
    """An entry read from its bytes is the one that was written, and its bytes name its type."""
    entry = ENTRIES[kind]
    assert from_bytes(to_bytes(entry)) == entry
    assert type_of(entry) == kind == plain(kind)["type"]


@pytest.mark.parametrize("kind", ENTRIES)
def test_each_type_has_exactly_its_fields(kind):
    """A stored field is never removed and never renamed: this list only grows by new types."""
    assert plain(kind).keys() == FIELDS[kind]


def test_the_bytes_of_a_stored_entry_never_change():
    """What version 1 wrote is read by every later version, to the same bytes."""
    data = (
        b'{"account":"a","attempt":2,"code":"c0de","events":[{"adjacency":"zero-out","mechanism":"poisson-gaussian",'
        b'"noise_multiplier":"1.1","sampling_rate":"8/1875","steps":3,"unit":"record"}],"libraries":{"torch":"2"},'
        b'"participations":1,"policy":"ab","rng":"AES","round":3,"run":"r","sequence":7,"time":1790000000123,'
        b'"type":"RESERVE"}'
    )
    entry = Reserve(
        **ORDER,
        policy="ab",
        participations=1,
        events=(GAUSSIAN,),
        provenance=Provenance(code="c0de", libraries={"torch": "2"}, rng="AES"),
    )
    assert from_bytes(data) == entry
    assert to_bytes(entry) == data


def test_terms_are_written_as_decimal_strings():
    """Delta and budget travel as text that reads back to the same float, never as JSON numbers."""
    written = plain("GENESIS")["terms"]
    assert (written["delta"], written["budget"], written["records"]) == ("1e-06", "0.1", 60000)


@given(entry=entries)
def test_every_entry_comes_back_equal(entry):
    """Whatever texts and numbers it holds."""
    assert from_bytes(to_bytes(entry)) == entry


@given(first=entries, second=entries)
def test_two_entries_never_share_their_bytes(first, second):
    """A leaf's hash names one entry."""
    assert (to_bytes(first) == to_bytes(second)) == (first == second)


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_without_one_of_its_fields_is_refused(kind):
    """Each field of each type, those of terms and events too."""
    for path in places(kind):
        value = plain(kind)
        inside = within(value, path[:-1])
        if isinstance(inside, list) or path[:-1] in {("libraries",), ("findings",)}:
            continue  # a shorter list, or a shorter object of free names, is another entry
        del inside[path[-1]]
        assert refused(value), path


@pytest.mark.parametrize("wrong", [[], {}, [[]], {"a": []}, 1, "text", "", -1], ids=repr)
@pytest.mark.parametrize("kind", ENTRIES)
def test_a_field_of_another_type_is_refused(kind, wrong):
    """With a list, an object, a number or a text in its place, a field is refused, unless it is one of that type."""
    for path in places(kind):
        is_of_this_type = type(within(plain(kind), path)) is type(wrong) and wrong not in ("", -1)
        # findings, libraries and a purpose may be empty
        if not is_of_this_type and not (path[0] in {"findings", "libraries", "purpose"} and wrong == ""):
            assert refused(replaced(plain(kind), path, wrong)), path


@pytest.mark.parametrize("number", ["1.5", "7.0", "1e3", "NaN", "Infinity", "true", "null"])
@pytest.mark.parametrize("kind", ENTRIES)
def test_floats_truths_and_nothing_are_refused_everywhere(kind, number):
    """There is no float in an entry, wherever it is put."""
    for field in FIELDS[kind]:
        key = f'"{field}":'.encode()
        data = to_bytes(ENTRIES[kind]).replace(key + canonical.dumps(plain(kind)[field]), key + number.encode())
        with pytest.raises(ValueError, match=r"expected text, whole numbers"):
            from_bytes(data)


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, ()) for kind in ENTRIES] + [("GENESIS", ("terms",)), ("RESERVE", ("events", 0))]
)
def test_an_unknown_field_is_refused(kind, path):
    """It may change what the others mean, so that it is never skipped."""
    value = plain(kind)
    inside = value
    for key in path:
        inside = inside[key]
    inside["zeal"] = "1"
    with pytest.raises(ValueError, match=r"zeal"):
        from_bytes(canonical.dumps(value))


@pytest.mark.parametrize("decision", ["APPROVED", "maybe", "approved "])
def test_a_decision_is_one_of_two_words(decision):
    """Whether a run may train is never guessed."""
    assert refused(plain("APPROVAL") | {"decision": decision})


@pytest.mark.parametrize("kind", ["REFUND", "genesis", "", "GENESIS ", 1, [], {}, ["GENESIS"], None])
def test_an_unknown_type_is_refused(kind):
    """An entry of a newer version, or of none, is never skipped."""
    for like in ENTRIES:
        value = plain(like)
        del value["type"]
        assert refused(value if kind is None else value | {"type": kind})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mechanism", "poisson-cauchy"),
        ("mechanism", "poisson-laplace"),
        ("noise_multiplier", "0.0"),
        ("noise_multiplier", "-1.0"),
        ("noise_multiplier", "nan"),
        ("noise_multiplier", "inf"),
        ("noise_multiplier", "1.10"),
        ("noise_multiplier", "1"),
        ("noise_multiplier", " 1.1"),
        ("sampling_rate", "0"),
        ("sampling_rate", "3/2"),
        ("sampling_rate", "1/0"),
        ("sampling_rate", "0.5"),
        ("sampling_rate", "-1/2"),
        ("sampling_rate", "1e-9"),
        ("sampling_rate", "2/4"),
        ("sampling_rate", "01/2"),
        ("sampling_rate", "1/1"),
        ("sampling_rate", "\u0661/2"),
        ("steps", 0),
        ("steps", -1),
        ("steps", "1"),
        ("unit", "hospital"),
        ("adjacency", "replace-one"),
        ("adjacency", "add-remove"),
    ],
)
def test_an_event_that_is_not_exactly_one_is_refused(field, value):
    """Unknown mechanisms, impossible numbers and second spellings of possible ones."""
    entry = plain("RESERVE")
    entry["events"][0][field] = value
    assert refused(entry)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delta", "0.0"),
        ("delta", "nan"),
        ("delta", "-1e-06"),
        ("delta", "0.000001"),
        ("delta", "1E-6"),
        ("delta", "1e-6"),
        ("delta", "one"),
        ("budget", "inf"),
        ("budget", "0.10"),
        ("budget", "+0.1"),
        ("budget", "0_0.1"),
        ("budget", "0"),
        ("records", 0),
        ("records", -1),
        ("unit", "hospital"),
        ("adjacency", "replace-one"),
        ("owner", ""),
        ("owner", "x" * 501),
    ],
)
def test_impossible_terms_are_refused(field, value):
    """Numbers in one spelling, above 0; units and adjacencies that exist."""
    entry = plain("GENESIS")
    entry["terms"][field] = value
    assert refused(entry)


@pytest.mark.parametrize("field", ["sequence", "time", "round", "attempt", "participations"])
@pytest.mark.parametrize("value", [-1, 2**53, "1", True, 1.0, [1]])
def test_numbers_are_whole_and_not_negative(field, value):
    """Up to 2^53 - 1, and a truth is no number."""
    data = json.dumps(plain("RESERVE") | {field: value}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(ValueError, match=r"expected"):
        from_bytes(data.encode())


@pytest.mark.parametrize("events", [[], {}, "text", [[]], ["poisson-gaussian"], [1]])
def test_a_reservation_of_nothing_is_refused(events):
    """Without events there is nothing to charge: such an entry hides something."""
    assert refused(plain("RESERVE") | {"events": events})


@pytest.mark.parametrize("data", [b"", b"[]", b'"RESERVE"', b"7", b"{}", b"null", b"\xff", b"[" * 10_000])
def test_bytes_that_are_no_object_are_refused(data):
    """Whatever a file holds raises ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        from_bytes(data)


@given(kind=st.sampled_from(sorted(ENTRIES)), position=st.integers(0), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_another_entry(kind, position, byte):
    """No byte of an entry can be exchanged without changing what it says."""
    data = bytearray(to_bytes(ENTRIES[kind]))
    place = position % len(data)
    is_same = data[place] == byte
    data[place] = byte
    try:
        entry = from_bytes(bytes(data))
    except ValueError:
        assert not is_same
        return
    assert (entry == ENTRIES[kind]) == is_same
    assert to_bytes(entry) == bytes(data)


@given(value=anything)
def test_no_value_breaks_the_reader(value):
    """Whatever canonical JSON says reads as an entry or raises ValueError, in place of any field too."""
    assert refused(value)
    for kind in ENTRIES:
        for path in places(kind)[::7]:
            refused(replaced(plain(kind), path, value))


def test_entries_are_frozen():
    """An entry that was read is a fact."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ENTRIES["REFUSE"].word = "fine"
