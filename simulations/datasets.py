"""Data sets: what is trained on, and the public test set.

Shapes: N records, C channels, H height, W width, T tokens.

Images are scaled with public constants, texts are hashed; nothing is learnt from the records.
"""

import gzip
import zlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Scenario
from common.errors import DataMissingError
from common.model_tables import Transformer
from common.readers.records import data_folder
from common.shards import Shard
from common.tasks import TEST_SHARE, task_of
from common.text import tokenize
from simulations.holdout import stratified

SPLIT_SEED = 0  # the public test set is the same in every run

MNIST_FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
WRITERS_FILE = "qmnist-train-labels-idx2-int.gz"
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081  # public constants of the example programs of PyTorch and Opacus
DIGITS_RANGE = 3  # grey levels 0 to 16 become 0 to 3, about the spread of standardised pixels
WRITER_COLUMN = 2
MIN_TEXTS = 100


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Records to split, the public test set, and who each record belongs to by nature, if that is known."""

    train: Shard
    test: Shard
    owner_N: npt.NDArray[np.int64] | None = None


def load(scenario: Scenario) -> Dataset:
    """Read a scenario's data set; DataMissingError names the file that is not there, or what is not as declared."""
    name = scenario.data.dataset
    if name == "digits":
        dataset = _digits()
    elif name == "mnist":
        dataset = _mnist(scenario)
    elif name == "sms-spam":
        dataset = _sms_spam(scenario)
    else:
        from simulations.own_datasets import load_own

        return load_own(scenario)
    _refuse_undeclared(scenario, dataset.train)
    return dataset


def public_test(scenario: Scenario) -> Shard:
    """Return the public test set alone, which is all that a coordinator has of organisations' own data.

    Where a scenario declares `data.records`, its files hold the records of a simulation too: then it is their fifth.
    """
    if scenario.data.layout is None or scenario.data.records is not None or scenario.data.persons is not None:
        return load(scenario).test
    from common.readers.records import public_test as read

    return read(scenario.data)


def _refuse_undeclared(scenario: Scenario, train: Shard) -> None:
    """Raise DataMissingError for a data set that is not what its task declares."""
    name, column = scenario.data.dataset, scenario.privacy.unit_column
    task, found = task_of(scenario.data), len(train)
    if task.train_records != found:
        raise DataMissingError(
            f"{name}: expected {task.train_records} training records, the declared number that the plan counts on, got "
            f"{found}. Is this another version of the data set?"
        )
    if task.image_shape is not None and train.features_ND.shape != (found, *task.image_shape):
        raise DataMissingError(
            f"{name}: expected {found} images of {task.image_shape}, as many as labels, got an array of "
            f"{train.features_ND.shape}. Is this another version of the data set?"
        )
    if column is None:
        return
    persons = 0 if train.units_N is None else len(np.unique(train.units_N))
    if train.units_N is None or len(train.units_N) != found or persons != task.unit_columns[column]:
        raise DataMissingError(
            f"{name}: expected {task.unit_columns[column]} persons in column '{column}', one named for each record, "
            f"got {persons}. Is this another version of the data set?"
        )


def folder(scenario: Scenario) -> Path:
    """Return where data sets that are files are expected: DISCREET_DATA, or the scenario's `data.path`."""
    return data_folder(scenario.data)


def _file(scenario: Scenario, *parts: str) -> Path:
    path = folder(scenario).joinpath(*parts)
    if not path.is_file():
        raise DataMissingError(
            f"{scenario.data.dataset}: expected the file {path}, got none. Put it there, set data.path, or name the "
            f"folder of your data sets in the environment variable DISCREET_DATA."
        )
    return path


def _digits() -> Dataset:
    """8x8 grey digits, 1,797, which come with scikit-learn (Alpaydin and Kaynak 1998); it is not imported."""
    found = find_spec("sklearn")
    path = Path(found.origin if found and found.origin else "sklearn").parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataMissingError(f"digits: expected {path}, which comes with scikit-learn, got: {error}.") from error
    features = (table[:, :-1].reshape(-1, 1, 8, 8) * (DIGITS_RANGE / 16)).astype(np.float32)
    return _split(features, table[:, -1].astype(np.int64))


def _mnist(scenario: Scenario) -> Dataset:
    """28x28 grey digits, 60,000 and 10,000 (LeCun et al. 1998); writers from QMNIST (Yadav and Bottou 2019)."""
    paths = {name: _file(scenario, "mnist", file) for name, file in MNIST_FILES.items()}
    owners = None
    if scenario.data.partition == "natural" or scenario.privacy.unit_column is not None:
        table = _idx(_file(scenario, "mnist-writers", WRITERS_FILE), dtype=">i4")
        owners = table[:, WRITER_COLUMN].astype(np.int64)
    arrays = {name: _idx(path, dtype="u1") for name, path in paths.items()}
    train, test = (
        Shard(features_ND=_scaled(arrays[f"{part}_images"]), labels_N=arrays[f"{part}_labels"].astype(np.int64))
        for part in ("train", "test")
    )
    if scenario.privacy.unit_column is not None:
        train = replace(train, units_N=owners)
    return Dataset(train=train, test=test, owner_N=owners)


def _scaled(images_NHW: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = images_NHW[:, None].astype(np.float32)
    scaled /= 255 * MNIST_STD
    scaled -= MNIST_MEAN / MNIST_STD
    return scaled


def _sms_spam(scenario: Scenario) -> Dataset:
    """5,574 short messages, 5,171 distinct (Almeida et al. 2011); duplicates are dropped before the split."""
    if not isinstance(scenario.model, Transformer):
        raise TypeError("the scenario was checked")  # config._fits_together
    path = _file(scenario, "sms-spam", "SMSSpamCollection")
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataMissingError(f"{path}: expected a text in UTF-8, got one that does not read: {error}.") from error
    pairs = {text: label for label, _, text in (row.partition("\t") for row in rows)}
    if len(pairs) < MIN_TEXTS:
        raise DataMissingError(f"{path}: expected lines of label, tabulator and text, got {len(pairs)} distinct texts.")
    tokens = tokenize(list(pairs), length=scenario.model.tokens, vocabulary=scenario.model.vocabulary)
    labels = np.array([label == "spam" for label in pairs.values()], dtype=np.int64)
    return _split(tokens, labels)


def _split(features: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Dataset:
    """Set a fifth aside as public test set, the same share of each class."""
    train, test = stratified(labels, share=TEST_SHARE, seed=SPLIT_SEED)
    return Dataset(
        train=Shard(features_ND=features[train], labels_N=labels[train]),
        test=Shard(features_ND=features[test], labels_N=labels[test]),
    )


def _idx(path: Path, *, dtype: str) -> npt.NDArray[Any]:
    """Read an idx file: two zero bytes, type, number of dimensions, dimensions as big-endian int32, then the data."""
    try:
        data = gzip.decompress(path.read_bytes())
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, dtype, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataMissingError(f"{path}: expected a gzipped idx file, got one that does not read: {error}.") from error
