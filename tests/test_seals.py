"""Seals: what is signed binds every field and its kind, and nothing else passes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.consortium import seals
from common.errors import WireError
from common.transparency import canonical
from common.transparency.notes import Signer

SIGNER = Signer.new("north")
WHOLE = {
    "order": (
        seals.order_statement,
        {
            "roster": "aa",
            "consortium": "study",
            "recipient": "north",
            "flower_run": 2**64 - 1,
            "scenario": "bb",
            "policy": "cc",
            "scalars": {"round": 1, "run": "r"},
            "weights": "dd",
        },
    ),
    "report": (
        seals.report_statement,
        {
            "roster": "aa",
            "consortium": "study",
            "sender": "north",
            "order": "bb",
            "policy": "cc",
            "code": "dd",
            "scalars": {"round": 1},
            "update": "ee",
        },
    ),
    "question": (
        seals.question_statement,
        {
            "roster": "aa",
            "consortium": "study",
            "recipient": "north",
            "flower_run": 7,
            "scenario": "bb",
            "run": "r",
            "kind": "offer",
        },
    ),
    "answer": (
        seals.answer_statement,
        {"roster": "aa", "consortium": "study", "sender": "north", "question": "bb", "fields": {"records": 5}},
    ),
    "refusal": (
        seals.refusal_statement,
        {"roster": "aa", "consortium": "study", "sender": "north", "order": "bb", "word": "failed"},
    ),
}
KINDS = sorted(WHOLE)
SCALARS = st.one_of(st.integers(), st.text(), st.booleans(), st.binary(), st.floats())
MAPPINGS = st.dictionaries(st.text(max_size=5), SCALARS, max_size=4)


def made(statement, /, **changed: object):
    make, fields = WHOLE[statement]
    return make(**(fields | changed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seal_of_the_same_statement_passes(kind):
    """A statement made again on the other side from the same fields is the same bytes."""
    seals.refuse_unsealed(SIGNER.key, made(kind), seals.seal(SIGNER, made(kind)))


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in WHOLE[kind][1]])
def test_every_field_is_bound(kind, field):
    """One other value in one field, whichever, and the signature is refused."""
    other = {"flower_run": 8, "scalars": {"round": 2}, "fields": {"records": 6}, "kind": "end"}.get(field, "zz")
    with pytest.raises(WireError, match=rf"^discreet/{kind}/v1: expected a signature of north"):
        seals.refuse_unsealed(SIGNER.key, made(kind, **{field: other}), seals.seal(SIGNER, made(kind)))


def test_no_kind_can_stand_for_another():
    """Each statement begins with its kind, and what follows is one canonical value: no two kinds share bytes."""
    for kind in KINDS:
        first, _, rest = made(kind).partition(b"\n")
        assert first == f"discreet/{kind}/v1".encode()
        assert canonical.dumps(canonical.loads(rest)) == rest
    same = {"roster": "a", "consortium": "b", "sender": "c"}
    names = ("answer", "denied", "order", "question", "refusal", "report", "request", "roster")
    assert len({seals.statement(kind, **same) for kind in names}) == len(names)


@given(kind=st.sampled_from(KINDS), text=st.text(), other=st.text())
def test_two_texts_never_give_one_statement(kind, text, other):
    """Whatever stands in a field, line feeds and quotation marks too, moves nothing into another field."""
    statements = [made(kind, roster=one, consortium=two) for one, two in ((text, other), (other, text))]
    assert (statements[0] == statements[1]) == (text == other)


@given(one=MAPPINGS, two=MAPPINGS)
def test_two_sets_of_scalars_never_give_one_statement(one, two):
    """Names, values and types are all bound; an order of keys is not."""

    def typed(scalars):
        return {
            name: (type(value), value.hex() if isinstance(value, float) else value) for name, value in scalars.items()
        }

    is_same = made("order", scalars=one) == made("order", scalars=two)
    assert is_same == (typed(one) == typed(two))
    assert made("order", scalars=one) == made("order", scalars=dict(reversed(one.items())))


@pytest.mark.parametrize(("one", "two"), [(1, True), (1, 1.0), (1, "1"), ("00", b"\0"), (0.0, -0.0), (0, False)])
def test_values_that_look_alike_are_different(one, two):
    """1, 1.0, True and "1" are four values; zero has a sign."""
    assert made("order", scalars={"x": one}) != made("order", scalars={"x": two})


def test_nan_and_infinity_can_be_signed():
    """A report of NaN is refused by who reads it; that it was signed must be provable first."""
    statement = made("report", scalars={"a": float("nan"), "b": float("inf")})
    seals.refuse_unsealed(SIGNER.key, statement, seals.seal(SIGNER, statement))


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, 1j])
def test_what_is_no_scalar_is_refused(value):
    """Flower's records may hold lists, ours do not: that is an error of the wire."""
    with pytest.raises(WireError, match="expected a scalar"):
        made("order", scalars={"x": value})


def test_text_that_has_no_bytes_is_refused():
    """Half a character of UTF-16 cannot be signed, and is no stray exception."""
    with pytest.raises(WireError, match="fields that can be signed"):
        made("refusal", word="\ud800")


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\0" * 63, "text", None])
def test_what_is_no_signature_is_refused(signature):
    """Any length and any type: refused, never raised."""
    with pytest.raises(WireError, match="expected a signature of north"):
        seals.refuse_unsealed(SIGNER.key, made("order"), signature)


def test_the_signature_of_another_member_is_refused():
    """The statement is right and signed, but by somebody else of the same name."""
    with pytest.raises(WireError, match="sent by somebody else"):
        seals.refuse_unsealed(SIGNER.key, made("order"), seals.seal(Signer.new("north"), made("order")))


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_signature_is_refused(place, bit):
    """Every bit of a signature counts."""
    signature = bytearray(seals.seal(SIGNER, made("order")))
    signature[place] ^= 1 << bit
    assert not SIGNER.key.is_signed(made("order"), bytes(signature))


def test_a_digest_is_sha256():
    """Reports and refusals name the order by the hash of its statement."""
    assert seals.digest(made("order")) == hashlib.sha256(made("order")).hexdigest()
