r"""Words as numbers, without a vocabulary learnt from private text.

Each word is hashed into one of `vocabulary` - 2 buckets: 0 is padding, 1 the start of every text. Every digit is
written as 0, so that a number is known by its shape: a telephone number, a price, a short code.

    >>> tokens("WIN £1000 now!!").tolist() == tokens("win 2000 NOW").tolist()
    True
    >>> tokens("", length=3).tolist()
    [1, 0, 0]
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PADDING = 0
START = 1
_WORD = re.compile(r"[a-z0']+")
_DIGIT = re.compile(r"[0-9]")


def words(text: str) -> list[str]:
    """Split a text into lower-case words in which every digit is 0."""
    return _WORD.findall(_DIGIT.sub("0", text.lower()))


def tokens(text: str, *, length: int = 32, vocabulary: int = 2048) -> npt.NDArray[np.int64]:
    """Return `length` token numbers in [0, vocabulary), cut off or padded with 0."""
    numbers = [START, *(2 + zlib.crc32(word.encode()) % (vocabulary - 2) for word in words(text))][:length]
    return np.array(numbers + [PADDING] * (length - len(numbers)), dtype=np.int64)


def tokenize(texts: Sequence[str], *, length: int, vocabulary: int) -> npt.NDArray[np.int64]:
    """Return (len(texts), length) token numbers."""
    return np.stack([tokens(text, length=length, vocabulary=vocabulary) for text in texts])
