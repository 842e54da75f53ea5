"""Seeds that follow from a run's seed."""

import hashlib
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from common.seeds import derive

paths = st.lists(st.one_of(st.integers(0, 10**9), st.text("abcdefghij-", min_size=1)), max_size=3)


def test_a_derived_seed_is_the_first_63_bits_of_a_hash():
    """The seed is the beginning of SHA-256 of the path, so that any language can repeat it."""
    digest = hashlib.sha256(b"7/batches/3/12").hexdigest()
    assert derive(7, "batches", 3, 12) == int(digest[:16], 16) >> 1


@given(seed=st.integers(0, 2**63 - 1), path=paths)
def test_a_derived_seed_has_63_bits(seed, path):
    """Every seed fits NumPy's and torch's generators, and a signed 64-bit number."""
    assert 0 <= derive(seed, *path) < 2**63


@given(seed=st.integers(0, 2**63 - 1), one=paths, other=paths)
def test_distinct_purposes_have_distinct_seeds(seed, one, other):
    """Two paths agree in their seed only if they are the same (63 bits: chance below 1e-16 for hundreds of pairs)."""
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (derive(seed, *one) == derive(seed, *other)) == same


def test_runs_and_purposes_and_rounds_do_not_share_a_seed():
    """Another seed, purpose, round or client is another derived seed: 4 x 3 x 20 x 20 of them, all different."""
    seeds = {
        derive(seed, purpose, number, client)
        for seed in range(4)
        for purpose in ("batches", "dropout", "weights")
        for number in range(20)
        for client in range(20)
    }
    assert len(seeds) == 4 * 3 * 20 * 20


def test_a_round_and_a_client_do_not_change_places():
    """Round 1 of client 12 is not round 11 of client 2, nor round 12 of client 1."""
    assert len({derive(7, "batches", 1, 12), derive(7, "batches", 11, 2), derive(7, "batches", 12, 1)}) == 3


def test_a_seed_is_the_same_in_every_process():
    """Nothing of Python's randomised hashing is in it."""
    program = "from common.seeds import derive; print(derive(7, 'weights'))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert int(ended.stdout) == derive(7, "weights")
