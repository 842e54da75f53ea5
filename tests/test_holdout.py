"""The public test set: the same rows as scikit-learn's, without importing it."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from simulations.holdout import stratified


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    share=st.sampled_from([0.1, 0.2, 0.25, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_that_of_scikit_learn(counts, share, seed):
    """Row for row and in the same order, also where classes tie for what is left over."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)) - 3, counts))
    rows = np.arange(len(labels))
    if min(int(np.ceil(share * len(rows))), len(rows) - int(np.ceil(share * len(rows)))) < len(counts):
        return  # scikit-learn wants a row of each class on both sides
    expected = train_test_split(rows, test_size=share, random_state=seed, stratify=labels)
    for ours, theirs in zip(stratified(labels, share=share, seed=seed), expected, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_each_row_is_on_one_side():
    """Nothing is lost, nothing is on both sides."""
    train, test = stratified(np.arange(50) % 7, share=0.2, seed=3)
    assert sorted([*train, *test]) == list(range(50))
    assert len(test) == 10


@pytest.mark.parametrize("seed", [0, 1])
def test_each_class_has_its_share(seed):
    """Of 40 and 10 records a fifth is 8 and 2."""
    labels = np.repeat([0, 1], [40, 10])
    _, test = stratified(labels, share=0.2, seed=seed)
    assert np.bincount(labels[test]).tolist() == [8, 2]


def test_digits_are_read_without_scikit_learn():
    """Its import takes longer than a first round; only its file is read."""
    code = """
import sys
from common.config import parse
from simulations import datasets
text = 'run = {name = "x", rounds = 1}\\ndata = {dataset = "digits", clients = 2}\\ntraining = {batch_size = 8}\\n'
dataset = datasets.load(parse(text + 'privacy = {unit = "none"}'))
print(len(dataset.train), len(dataset.test), [name for name in ("sklearn", "pandas", "torch") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "1437 360 []\n"  # 1,797 in all, 0.2 of them rounded up
