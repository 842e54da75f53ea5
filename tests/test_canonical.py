"""Canonical JSON: one value has one sequence of bytes, and nothing else reads."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.transparency.canonical import LARGEST, dumps, loads

names = st.text(st.characters(max_codepoint=127))
texts = st.text(st.characters(exclude_categories=["Cs"]))  # a lone surrogate has no UTF-8
values = st.recursive(
    st.one_of(st.integers(-LARGEST, LARGEST), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)


@given(value=values)
def test_a_value_comes_back_equal(value):
    """What has canonical bytes is read from them unchanged, strings and keys of all kinds included."""
    assert loads(dumps(value)) == value


@given(value=values)
def test_the_bytes_are_json_that_others_read(value):
    """Any reader of JSON gets the same value: the form is a restriction, no dialect."""
    assert json.loads(dumps(value)) == value


@given(first=values, second=values)
def test_two_values_never_share_their_bytes(first, second):
    """Bytes are equal exactly when the values are: a hash of them names one value."""
    assert (dumps(first) == dumps(second)) == (first == second)


@given(
    data=st.one_of(st.binary(max_size=40), texts.map(str.encode), values.map(lambda value: json.dumps(value).encode()))
)
@example(data=b'{"a":1,"a":1}')
@example(data=b"-0")
def test_whatever_reads_is_written_again_byte_by_byte(data):
    """Bytes from outside are the canonical ones of their value, or raise ValueError."""
    try:
        value = loads(data)
    except ValueError:
        return
    assert dumps(value) == data


@given(value=values, position=st.integers(0), byte=st.integers(0, 255))
def test_another_byte_is_another_value_or_none(value, position, byte):
    """A changed byte is refused, or reads as a different value: no two spellings of one."""
    data = bytearray(dumps(value))
    place = position % len(data)
    changed = byte != data[place]
    data[place] = byte
    try:
        other = loads(bytes(data))
    except ValueError:
        assert changed
        return
    assert (other != value) == changed


def test_keys_are_sorted_and_nothing_is_spaced():
    """The order in which keys were given does not show."""
    assert dumps({"b": 1, "a": [{"d": "", "c": -2}]}) == b'{"a":[{"c":-2,"d":""}],"b":1}'


def test_strings_are_written_as_rfc_8785_says():
    """RFC 8785, section 3.2.2: control characters are escaped, the shortest way; everything else is raw UTF-8."""
    text = '\u20ac$\x0f\nA\'B"\\\\"/'
    assert dumps(text) == b'"' + "€$".encode() + b"\\u000f\\nA'B" + rb"\"\\\\\"" + b'/"'
    assert dumps("\b\t\n\f\r\x7f\u2028") == b'"\\b\\t\\n\\f\\r' + "\x7f\u2028".encode() + b'"'


@pytest.mark.parametrize("value", [0.5, 1.0, math.nan, math.inf, True, False, None, b"bytes", {1}, object(), 1j])
@pytest.mark.parametrize("around", [lambda value: value, lambda value: [value], lambda value: {"a": [1, value]}])
def test_floats_truths_and_nothing_have_no_bytes(value, around):
    """What readers in other languages read differently is refused, wherever it stands."""
    with pytest.raises(ValueError, match="expected text, whole numbers"):
        dumps(around(value))


@pytest.mark.parametrize("key", [1, None, "é", b"a"])
def test_keys_are_ascii_text(key):
    """Other keys would sort differently elsewhere."""
    with pytest.raises(ValueError, match="keys of ASCII text"):
        dumps({key: 1})


def test_whole_numbers_end_where_doubles_round():
    """2^53 - 1 is the largest number that every reader reads exactly."""
    assert loads(dumps([LARGEST, -LARGEST])) == [2**53 - 1, 1 - 2**53]
    for number in (LARGEST + 1, -LARGEST - 1, 10**400):
        with pytest.raises(ValueError, match="at most 2"):
            dumps(number)


def test_a_text_without_utf_8_has_no_bytes():
    """A lone surrogate raises ValueError, as everything that has no canonical form."""
    with pytest.raises(ValueError, match="surrogates"):
        dumps("\ud800")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" 1",
        b"1\n",
        b"01",
        b"+1",
        b"-0",
        b"1.0",
        b"1e2",
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b"9007199254740992",  # 2^53
        b"9" * 5000,  # more digits than Python reads
        b'{"a":1, "b":2}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"\xc3\xa9":1}',
        b'"\\u0041"',
        b'"\\u00e9"',
        b'"\\/"',
        b'"\\u000A"',
        b'"\n"',
        b'"\xff"',
        b'"\\ud800"',
        b'"a',
        b"[1,]",
        b"[1]]",
        b'\xef\xbb\xbf"a"',
        '"a"'.encode("utf-16"),
        "1".encode("utf-32"),
    ],
)
def test_other_spellings_are_refused(data):
    """Spaces, escapes, orders, encodings and numbers that are not canonical raise ValueError."""
    with pytest.raises(ValueError, match=r".*"):
        loads(data)


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize(("open_", "close"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused_and_does_not_crash(depth, open_, close):
    """A hostile file cannot exhaust the stack."""
    with pytest.raises(ValueError, match="nested too deeply"):
        loads(open_ * depth + b"1" + close * depth)
