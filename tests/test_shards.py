"""Data sets on disk: each client gets its own records, as a view of one file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import shards
from common.shards import Shard, open_shard, open_test, write_shards


def shard(count, start=0):
    """Records that can be told apart: record i has feature (i, i + 0.5) and label i."""
    numbers = np.arange(start, start + count)
    return Shard(features_ND=np.stack([numbers, numbers + 0.5], 1).astype(np.float32), labels_N=numbers)


def rows(*indices: int):
    """Rows of one client."""
    return np.array(indices, np.intp)


def write(folder, *indices: np.ndarray):
    """Write ten training records and three test records."""
    write_shards(folder, train=shard(10), test=shard(3, start=100), indices=indices)


def test_each_client_gets_its_own_records(tmp_path):
    """Client k opens the rows that were given to it, in their order, features and labels together."""
    write(tmp_path, rows(7, 0, 3), rows(9), rows(1, 2))
    for client, expected in enumerate(([7, 0, 3], [9], [1, 2])):
        opened = open_shard(tmp_path, client)
        assert opened.labels_N.tolist() == expected
        assert opened.features_ND.tolist() == [[i, i + 0.5] for i in expected]
        assert opened.features_ND.dtype == np.float32
        assert opened.labels_N.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(10)), cuts=st.lists(st.integers(0, 10), max_size=4).map(sorted))
def test_any_split_comes_back(tmp_path_factory, order, cuts):
    """However records are split, empty clients included, every client gets what it was given and nothing else."""
    folder = tmp_path_factory.mktemp("shards")
    parts = np.split(np.array(order), cuts)
    write(folder, *parts)
    assert [open_shard(folder, client).labels_N.tolist() for client in range(len(parts))] == [
        part.tolist() for part in parts
    ]


def test_a_client_without_records_has_an_empty_shard(tmp_path):
    """A client may have nothing; its neighbours are not disturbed."""
    write(tmp_path, rows(1), rows(), rows(2))
    assert len(open_shard(tmp_path, 1)) == 0
    assert open_shard(tmp_path, 1).features_ND.shape == (0, 2)
    assert open_shard(tmp_path, 2).labels_N.tolist() == [2]


def test_the_length_of_a_shard_is_its_number_of_records():
    """`len` counts records."""
    assert len(shard(7)) == 7


def test_a_large_shard_is_a_view_of_the_file(tmp_path, monkeypatch):
    """Nothing is copied: the features are a slice of a memory map of the one file."""
    monkeypatch.setattr(shards, "COPIED_BYTES", 0)
    write(tmp_path, rows(0, 1), rows(2))
    features = open_shard(tmp_path, 1).features_ND
    assert isinstance(features, np.memmap)
    assert not features.flags.owndata
    assert str(features.filename) == str(tmp_path / "features.npy")


@pytest.mark.parametrize("copied_bytes", [0, 1 << 20])
def test_records_are_the_same_read_or_mapped_and_cannot_be_written(tmp_path, monkeypatch, copied_bytes):
    """How they come to memory is a question of speed alone."""
    monkeypatch.setattr(shards, "COPIED_BYTES", copied_bytes)
    write(tmp_path, rows(7, 0, 3), rows(9))
    opened = open_shard(tmp_path, 0)
    np.testing.assert_array_equal(opened.features_ND, shard(10).features_ND[[7, 0, 3]])
    assert opened.labels_N.tolist() == [7, 0, 3]
    assert not opened.features_ND.flags.writeable


def test_a_shard_cannot_be_written_to(tmp_path):
    """Training data are read-only: no client can change another one's records, nor its own."""
    write(tmp_path, rows(0, 1), rows(2))
    opened = open_shard(tmp_path, 0)
    with pytest.raises(ValueError, match="read-only"):
        opened.features_ND[0, 0] = 5
    with pytest.raises(ValueError, match="read-only"):
        opened.labels_N[0] = 5


def test_the_test_set_comes_back(tmp_path):
    """The public test set is the one that was written, whole."""
    write(tmp_path, rows(0))
    opened = open_test(tmp_path)
    assert opened.labels_N.tolist() == [100, 101, 102]
    assert opened.features_ND.tolist() == [[100, 100.5], [101, 101.5], [102, 102.5]]


def test_records_of_any_shape_and_type_come_back(tmp_path):
    """Images keep their three dimensions, tokens their whole numbers."""
    images = Shard(
        features_ND=np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), labels_N=np.array([1, 0])
    )  # 2 x 3 x 2 x 2 = 24
    tokens = Shard(features_ND=np.array([[1, 5], [1, 0]]), labels_N=np.array([0, 1]))
    for name, train in (("images", images), ("tokens", tokens)):
        folder = tmp_path / name
        folder.mkdir()
        write_shards(folder, train=train, test=train, indices=[rows(1), rows(0)])
        opened = open_shard(folder, 0)
        np.testing.assert_array_equal(opened.features_ND, train.features_ND[1:])
        assert opened.features_ND.dtype == train.features_ND.dtype


def test_each_client_gets_the_persons_of_its_own_records(tmp_path):
    """Where records name their persons, a shard does too, row by row."""
    train = Shard(features_ND=shard(10).features_ND, labels_N=shard(10).labels_N, units_N=np.arange(10) // 3 - 7)
    write_shards(tmp_path, train=train, test=shard(3), indices=[rows(7, 0, 3), rows(9)])
    opened = open_shard(tmp_path, 0)
    assert opened.units_N is not None
    assert opened.units_N.tolist() == [7 // 3 - 7, -7, 1 - 7]
    assert open_shard(tmp_path, 1).units_N.tolist() == [3 - 7]
    assert open_test(tmp_path).units_N is None


def test_records_without_persons_have_none(tmp_path):
    """No file, no persons: each record is a unit of its own."""
    write(tmp_path, rows(0, 1), rows(2))
    assert open_shard(tmp_path, 0).units_N is None
    assert not (tmp_path / "units.npy").exists()


@pytest.mark.parametrize("client", [-1, 2, 10**9])
def test_a_client_that_is_not_there_is_refused(tmp_path, client):
    """A position outside the population raises IndexError with the range: no neighbour's records are served."""
    write(tmp_path, rows(0), rows(1))
    with pytest.raises(IndexError, match=rf"^client: expected 0 to 1, got {client}$"):
        open_shard(tmp_path, client)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """A missing data set raises OSError."""
    with pytest.raises(OSError, match="No such file"):
        open_shard(tmp_path / "nowhere", 0)
    with pytest.raises(OSError, match="No such file"):
        open_test(tmp_path / "nowhere")


def test_another_data_set_in_the_same_folder_is_seen(tmp_path):
    """What a process remembers of a file is forgotten when another one is put in its place."""
    write(tmp_path, rows(7, 0, 3), rows(9))
    assert open_shard(tmp_path, 0).labels_N.tolist() == [7, 0, 3]
    write(tmp_path, rows(1), rows(2), rows(4, 5))
    assert [open_shard(tmp_path, client).labels_N.tolist() for client in range(3)] == [[1], [2], [4, 5]]


def test_only_a_client_s_own_rows_are_mapped(tmp_path, monkeypatch):
    """The map of a shard is as long as the shard, whatever the population."""
    monkeypatch.setattr(shards, "COPIED_BYTES", 0)
    write(tmp_path, rows(0, 1), rows(2), rows(*range(3, 10)))
    features = open_shard(tmp_path, 1).features_ND
    assert isinstance(features, np.memmap)
    assert features._mmap is not None  # type: ignore[attr-defined]
    assert features.nbytes == 8  # one record of two float32


def test_a_file_that_is_shorter_than_its_offsets_is_refused(tmp_path):
    """Rows that are not there raise ValueError, and no neighbour's are served."""
    write(tmp_path, rows(0, 1), rows(2))
    np.save(tmp_path / "labels.npy", np.arange(2))
    with pytest.raises(ValueError, match="expected 3 records or more, got 2"):
        open_shard(tmp_path, 1)
