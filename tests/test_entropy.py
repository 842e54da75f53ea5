"""Secret randomness: the right stream, the right distributions, and never the same twice."""

import copy
import os
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import chi2

from common.privacy.entropy import KEY_BYTES, Entropy

KEY = bytes(range(32))
DRAWS = 1_000_000
# With a fixed key each statistic below is one number: the test passes always or never. Its bound is the one that a
# fresh key would pass but for a probability of 1e-6.
FIVE_SIGMA = 4.8917  # two-sided normal tail of 1e-6


def uniform_words(key, count):
    """AES-256 of 0, 1, 2, ... as big-endian 128-bit numbers, in ECB mode: counter mode, computed the other way."""
    blocks = b"".join(number.to_bytes(16, "big") for number in range((count + 1) // 2))
    stream = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)  # noqa: S305 - the definition of CTR
    return np.frombuffer(stream, "<u8")[:count]


@pytest.fixture(scope="module")
def normals():
    """A million normal numbers of a fixed key."""
    return Entropy(KEY).normal(DRAWS)


def test_the_stream_is_aes_256_in_counter_mode():
    """The words are the encryptions of the counters 0, 1, 2, ..., across the boundaries of calls."""
    entropy = Entropy(KEY)
    drawn = np.concatenate([entropy.words(count) for count in (1, 2, 5, 0, 92)])
    np.testing.assert_array_equal(drawn, uniform_words(KEY, 100))


def test_the_key_stream_has_its_published_first_block():
    """AES-256 of the zero block under the zero key is the published dc95c078a2408989ad48a21492842087."""
    # NIST's AESAVS, GFSbox and KeySbox files for ECB with 256-bit keys share this starting point
    assert Entropy(bytes(32)).words(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_two_streams_differ():
    """Streams opened one after the other agree in no word (for 200 words: with probability below 1e-14)."""
    # 100 x 100 pairs of 64-bit words: 1e4 / 2^64 < 1e-15
    assert not set(Entropy().words(100).tolist()) & set(Entropy().words(100).tolist())


def test_a_key_is_new_for_each_stream_and_as_long_as_aes_256_asks():
    """256 bits from the operating system: a thousand streams begin with a thousand different words."""
    assert KEY_BYTES * 8 == 256
    # 1000^2 / 2 pairs / 2^64 < 1e-13
    assert len({int(Entropy().words(1)[0]) for _ in range(1000)}) == 1000


def test_the_same_key_gives_the_same_stream():
    """A stream is a function of its key, so that a test can fix it."""
    np.testing.assert_array_equal(Entropy(KEY).normal(7), Entropy(KEY).normal(7))


def test_a_stream_never_repeats_itself():
    """Consecutive draws of one stream share no word."""
    entropy = Entropy(KEY)
    assert not set(entropy.words(100).tolist()) & set(entropy.words(100).tolist())


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_pickled_or_copied(copied):
    """A second copy of a stream would repeat it: there is none."""
    with pytest.raises(TypeError, match="Secret randomness crosses no process"):
        copied(Entropy())


FORK = """
import os
from common.privacy.entropy import Entropy
inherited = Entropy()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, {child}.words(4).tobytes())
    os._exit(0)
os.wait()
os.close(write)
print(os.read(read, 32).hex(), {parent}.words(4).tobytes().hex())
"""


def forked(child, parent):
    """What a forked child and its parent draw."""
    program = FORK.format(child=child, parent=parent)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return ended.stdout.removesuffix("\n").split(" ")


def test_a_forked_child_that_opens_a_stream_does_not_repeat_its_parent():
    """A key is drawn from the operating system when a stream is opened, so that forks share none."""
    child, parent = forked("Entropy()", "Entropy()")
    assert len(child) == len(parent) == 64  # 4 words of 8 bytes, in hexadecimal
    assert child != parent  # equal with probability 2^-256


def test_nothing_is_inherited_through_a_fork():
    """A forked child that uses its parent's open stream gets no numbers that the parent draws too."""
    child, parent = forked("inherited", "inherited")
    assert child != parent


fractions = st.builds(
    lambda numerator, denominator: Fraction(min(numerator, denominator), denominator),
    st.integers(0, 2**80),
    st.integers(1, 2**80),
)


@settings(max_examples=200, deadline=None)
@given(probability=fractions, count=st.integers(0, 200))
def test_bernoulli_compares_each_word_with_the_exact_threshold(probability, count):
    """A position is in when its word is below floor(p 2^64): whole-number arithmetic, for any fraction."""
    words = uniform_words(KEY, count).tolist()
    threshold = probability.numerator * 2**64 // probability.denominator
    expected = [position for position, word in enumerate(words) if word < threshold]
    assert Entropy(KEY).bernoulli(count, probability=probability).tolist() == expected


def test_bernoulli_is_sharp_at_the_threshold():
    """With p = w / 2^64 the word w itself is out, and with (w + 1) / 2^64 it is in: never more than p."""
    word = int(uniform_words(KEY, 1)[0])
    assert Entropy(KEY).bernoulli(1, probability=Fraction(word, 2**64)).tolist() == []
    assert Entropy(KEY).bernoulli(1, probability=Fraction(word + 1, 2**64)).tolist() == [0]
    # a rate between the two is rounded down
    assert Entropy(KEY).bernoulli(1, probability=Fraction(2 * word + 1, 2**65)).tolist() == []


def test_bernoulli_takes_all_or_none_at_the_ends():
    """Probability 1 takes every position and 0 none."""
    assert Entropy(KEY).bernoulli(5, probability=Fraction(1)).tolist() == [0, 1, 2, 3, 4]
    assert Entropy(KEY).bernoulli(1000, probability=Fraction(0)).tolist() == []
    assert Entropy(KEY).bernoulli(0, probability=Fraction(1, 2)).tolist() == []


def test_a_probability_below_the_resolution_is_never_drawn():
    """Less than 2^-64 rounds to 0, never up."""
    assert Entropy(KEY).bernoulli(1000, probability=Fraction(1, 2**64 + 1)).tolist() == []


def test_bernoulli_draws_as_often_as_it_says():
    """Of a million positions at p = 1/125, 8000 are in; a fresh key would be beyond 4.89 sigma once in a million."""
    drawn = Entropy(KEY).bernoulli(DRAWS, probability=Fraction(1, 125))
    assert (np.diff(drawn) > 0).all()
    sigma = (DRAWS * (1 / 125) * (124 / 125)) ** 0.5
    assert abs(len(drawn) - DRAWS / 125) < FIVE_SIGMA * sigma


def test_bernoulli_positions_are_independent():
    """Neighbours are both in a quarter of the time at p = 1/2 (fixed key; a fresh one fails once in a million)."""
    is_in = np.zeros(DRAWS)
    is_in[Entropy(KEY).bernoulli(DRAWS, probability=Fraction(1, 2))] = 1
    signs = 2 * is_in - 1
    # a sum of DRAWS - 1 independent signs
    assert abs(signs[1:] @ signs[:-1]) < FIVE_SIGMA * DRAWS**0.5


def test_normal_numbers_follow_the_normal_distribution(normals):
    """Kolmogorov-Smirnov on a million draws (fixed key; a fresh one fails once in a million)."""
    probability = ndtr(np.sort(normals))
    steps = np.arange(DRAWS + 1) / DRAWS
    distance = max((steps[1:] - probability).max(), (probability - steps[:-1]).max())
    # P[D sqrt(n) > x] < 2 exp(-2 x^2) = 1e-6 at x = 2.6932
    assert distance * DRAWS**0.5 < 2.6932


def test_normal_numbers_have_mean_0_and_variance_1(normals):
    """The first two moments of a million draws (fixed key; a fresh one fails each once in a million)."""
    assert abs(normals.sum()) < FIVE_SIGMA * DRAWS**0.5
    low, high = chi2.ppf([5e-7, 1 - 5e-7], DRAWS)
    assert low < normals @ normals < high


def test_the_two_numbers_of_a_pair_are_uncorrelated(normals):
    """The numbers that share a radius, and their squares, do not correlate (fixed key; fresh: once in a million)."""
    cosines, sines = normals.reshape(2, -1)  # the first half are the cosines, the second the sines
    pairs = DRAWS // 2
    assert abs(cosines @ sines) < FIVE_SIGMA * pairs**0.5  # a product has variance 1
    squares = (cosines**2 - 1) @ (sines**2 - 1)
    assert abs(squares) < FIVE_SIGMA * 2 * pairs**0.5  # Var(x^2) = 2, so the product has variance 4


def test_neighbouring_numbers_are_uncorrelated(normals):
    """The lag-1 correlation of a million draws is that of noise (fixed key; a fresh one fails once in a million)."""
    assert abs(normals[1:] @ normals[:-1]) < FIVE_SIGMA * DRAWS**0.5


def test_noise_of_two_streams_is_uncorrelated(normals):
    """Two keys give unrelated noise (both keys fixed; fresh ones fail once in a million)."""
    other = Entropy(KEY[::-1]).normal(DRAWS)
    assert abs(normals @ other) < FIVE_SIGMA * DRAWS**0.5


def test_tails_reach_as_far_as_they_should(normals):
    """Of a million, 63 are beyond 4 sigma; a Poisson count is outside 25 to 110 less than once in a million."""
    # 1e6 x 2 Phi(-4) = 63.3; Poisson(63.3): P[<= 24] = 3e-8, P[>= 111] = 4e-8
    assert 25 <= (np.abs(normals) > 4).sum() <= 110


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 11])
def test_any_number_of_normals_can_be_drawn(count):
    """Odd counts drop the last of a pair; nothing is short, nothing is not finite."""
    drawn = Entropy(KEY).normal(count)
    assert drawn.shape == (count,)
    assert drawn.dtype == np.float64
    assert np.isfinite(drawn).all()


def test_normal_numbers_are_box_and_mullers():
    """The first pair is sqrt(-2 ln u) cos and sin of 2 pi v, with u in (0, 1] and v in [0, 1) of 53 bits each."""
    first, second = (int(word) >> 11 for word in uniform_words(KEY, 2))
    u, v = (first + 1) / 2**53, second / 2**53
    radius = np.sqrt(-2 * np.log(u))
    expected = [radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)]
    np.testing.assert_allclose(Entropy(KEY).normal(2), expected, rtol=1e-14)


class Constant(Entropy):
    """A stream of one word: what no key gives in a lifetime."""

    def __init__(self, word) -> None:
        super().__init__()
        self.word = word

    def words(self, count: int) -> np.ndarray:
        return np.full(count, self.word, np.uint64)


def test_the_rarest_words_give_finite_normals():
    """Words of zeros reach sqrt(2 x 53 ln 2) = 8.5717 standard deviations, words of ones 0: nothing is infinite."""
    assert Constant(0).normal(2).tolist() == pytest.approx([8.57167, 0.0], abs=1e-5)  # u = 2^-53, angle 0
    assert Constant(2**64 - 1).normal(2).tolist() == pytest.approx([0.0, 0.0], abs=1e-7)  # u = 1


def test_seeds_are_whole_numbers_that_libraries_take():
    """A seed is a fresh word without its last bit: between 0 and 2^63, and new each time."""
    entropy = Entropy(KEY)
    words = uniform_words(KEY, 100)
    seeds = [entropy.seed() for _ in range(100)]
    assert seeds == [int(word) >> 1 for word in words]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_key_comes_from_the_operating_system_alone():
    """Seeding NumPy and Python fixes nothing: the same program run twice draws different numbers."""
    program = (
        "import random, numpy; random.seed(0); numpy.random.seed(0)\n"
        "from common.privacy.entropy import Entropy; print(Entropy().words(2).tobytes().hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=environment
        ).stdout
        for _ in range(2)
    )
    assert len(first) == 33  # 16 bytes in hexadecimal, and the end of the line
    assert first != second  # equal with probability 2^-128
