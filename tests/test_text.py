"""Words as numbers: the same everywhere, of fixed length, without a vocabulary."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.text import PADDING, START, tokenize, tokens, words

texts = st.text(max_size=100)
lengths = st.integers(1, 40)
vocabularies = st.integers(16, 4096)


@settings(max_examples=200, deadline=None)
@given(text=texts, length=lengths, vocabulary=vocabularies)
def test_any_text_becomes_length_numbers_of_the_vocabulary(text, length, vocabulary):
    """Whatever is written, the model gets exactly `length` whole numbers that it has an embedding for."""
    numbers = tokens(text, length=length, vocabulary=vocabulary)
    assert numbers.shape == (length,)
    assert numbers.dtype == np.int64
    assert ((numbers >= 0) & (numbers < vocabulary)).all()


@settings(max_examples=200, deadline=None)
@given(text=texts, length=lengths, vocabulary=vocabularies)
def test_start_comes_first_and_padding_last(text, length, vocabulary):
    """One start, then the words, then nothing but padding: no text is only padding."""
    numbers = tokens(text, length=length, vocabulary=vocabulary).tolist()
    kept = min(len(words(text)), length - 1)
    assert numbers[0] == START
    assert all(number > START for number in numbers[1 : 1 + kept])
    assert numbers[1 + kept :] == [PADDING] * (length - 1 - kept)


@given(text=texts, shorter=lengths, longer=lengths)
def test_a_longer_length_adds_to_the_end(text, shorter, longer):
    """Cutting off or padding changes no number before it."""
    numbers = tokens(text, length=max(shorter, longer))
    assert tokens(text, length=min(shorter, longer)).tolist() == numbers[: min(shorter, longer)].tolist()


@given(text=texts)
def test_upper_and_lower_case_are_the_same(text):
    """A word does not depend on how loud it is written."""
    plain = text.encode("ascii", "ignore").decode()
    assert tokens(plain.upper()).tolist() == tokens(plain.lower()).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Call me NOW", ["call", "me", "now"]),
        ("don't  stop", ["don't", "stop"]),
        ("a-b_c.d", ["a", "b", "c", "d"]),
        ("\n\t ,;", []),
    ],
)
def test_a_text_is_split_into_lower_case_words(text, expected):
    """Words are letters and apostrophes; what lies between separates them."""
    assert words(text) == expected


def test_numbers_are_known_by_their_shape():
    """Two numbers of the same length are the same word, two of different lengths are not."""
    assert words("07700900123") == words("09061209465")
    assert words("150p") == words("999p")
    assert words("1000") != words("100")


def test_a_word_is_its_crc_32():
    """The bucket is the CRC-32 of the word modulo what the vocabulary leaves, after padding and start."""
    # CRC-32 of "a" is the published e8b7be43: 3904355907 = 1908287 x 2046 + 705, and 2 are taken
    assert 0xE8B7BE43 == 1908287 * 2046 + 705
    assert tokens("a", length=3, vocabulary=2048).tolist() == [1, 707, 0]


def test_the_same_word_is_the_same_number_in_every_process():
    """Nothing of Python's randomised hashing is in it: clients on different machines agree."""
    program = "from common.text import tokens; print(tokens('win a prize').tolist())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == f"{tokens('win a prize').tolist()}\n"


@given(texts=st.lists(texts, min_size=1, max_size=5), length=lengths)
def test_many_texts_are_the_rows_of_one_array(texts, length):
    """Each row is what the text is on its own."""
    table = tokenize(texts, length=length, vocabulary=64)
    assert table.shape == (len(texts), length)
    assert table.tolist() == [tokens(text, length=length, vocabulary=64).tolist() for text in texts]
