"""Data sets: as declared, scaled with public constants, and refused where they are missing or something else.

The files are looked for where DISCREET_DATA says, or in shared/data beside the repository.
"""

import gzip
import os
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.config import Scenario, parse
from common.errors import DataMissingError
from common.tasks import TASKS
from common.text import tokenize
from simulations.datasets import MNIST_FILES, MNIST_MEAN, MNIST_STD, WRITERS_FILE, Dataset, folder, load

DATA = Path(os.environ.get("DISCREET_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data")
SMS = DATA / "sms-spam" / "SMSSpamCollection"
BLACK, WHITE = (0 - MNIST_MEAN) / MNIST_STD, (1 - MNIST_MEAN) / MNIST_STD

needs_mnist = pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no MNIST in {DATA}")
needs_writers = pytest.mark.skipif(
    not (DATA / "mnist").is_dir() or not (DATA / "mnist-writers").is_dir(), reason=f"no MNIST writers in {DATA}"
)
needs_sms = pytest.mark.skipif(not SMS.is_file(), reason=f"no SMS collection in {DATA}")


def scenario(dataset: str, *, path: Path = DATA, partition: str = "iid", privacy: str = 'unit = "none"') -> Scenario:
    model = 'model = {name = "transformer", tokens = 24, vocabulary = 512}\n' if dataset == "sms-spam" else ""
    return parse(
        f'run = {{name = "x", rounds = 1}}\n{model}'
        f'data = {{dataset = "{dataset}", path = "{path}", partition = "{partition}", clients = 2}}\n'
        f"training = {{batch_size = 8}}\nprivacy = {{{privacy}}}"
    )


PERSONS = 'epsilon = 1.0, unit_column = "writer"'


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Look for data sets in an empty folder, whatever the machine's environment says."""
    monkeypatch.delenv("DISCREET_DATA", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load(scenario("mnist"))


@pytest.fixture(scope="module")
def sms() -> Dataset:
    return load(scenario("sms-spam"))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(scenario("digits"))


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_have_the_declared_shapes(digits):
    """1,797 images: 1,437 to share out and 360, a fifth, as public test set."""
    assert digits.train.features_ND.shape == (1437, 1, 8, 8)
    assert digits.test.features_ND.shape == (360, 1, 8, 8)
    assert (digits.train.labels_N.shape, digits.test.labels_N.shape) == ((1437,), (360,))
    assert TASKS["digits"].train_records == 1437
    assert digits.owner_N is None


def test_digits_are_scaled_by_their_largest_grey(digits):
    """Grey 0 to 16 becomes 0 to 3, in single precision; labels are whole numbers."""
    assert digits.train.features_ND.dtype == np.float32
    assert digits.train.labels_N.dtype == np.int64
    assert set(np.unique(digits.train.features_ND)) == {np.float32(grey * 3 / 16) for grey in range(17)}
    assert set(digits.train.labels_N) == set(range(10))


def test_each_digit_is_in_one_part_and_once(digits):
    """Training and test images are together the 1,797 of scikit-learn."""
    from sklearn.datasets import load_digits

    parts = np.concatenate((digits.train.features_ND, digits.test.features_ND))
    assert Counter(image.tobytes() for image in parts) == Counter(
        (image * 3 / 16).astype(np.float32).tobytes() for image in load_digits().images
    )


def test_test_set_holds_a_fifth_of_each_class(digits):
    """Stratified: of n images of a class n/5 are in the test set, up to one."""
    for label in range(10):
        train, test = (int((part.labels_N == label).sum()) for part in (digits.train, digits.test))
        assert abs(test - (train + test) / 5) <= 1


def test_public_test_set_is_the_same_in_every_run(digits):
    """Whatever the run's seed."""
    other = load(scenario("digits").model_copy(update={"run": scenario("digits").run.model_copy(update={"seed": 99})}))
    assert other.test.features_ND.tobytes() == digits.test.features_ND.tobytes()
    assert other.train.labels_N.tobytes() == digits.train.labels_N.tobytes()


# --- MNIST ------------------------------------------------------------------------------------------------------------


@needs_mnist
def test_mnist_has_the_declared_shapes(mnist):
    """60,000 and 10,000 images of 28x28 in one channel."""
    assert mnist.train.features_ND.shape == (60_000, 1, 28, 28)
    assert mnist.test.features_ND.shape == (10_000, 1, 28, 28)
    assert (len(mnist.train), len(mnist.test)) == (TASKS["mnist"].train_records, 10_000)
    assert mnist.train.features_ND.dtype == np.float32
    assert mnist.train.labels_N.dtype == np.int64
    assert mnist.owner_N is None


@needs_mnist
def test_mnist_is_scaled_with_the_public_constants(mnist):
    """Black is (0 - 0.1307) / 0.3081 and white (1 - 0.1307) / 0.3081; nothing is learnt from the records."""
    for part in (mnist.train, mnist.test):
        assert part.features_ND.min() == pytest.approx(-0.4242130, abs=1e-6)
        assert part.features_ND.max() == pytest.approx(2.8214866, abs=1e-6)
    # ... of which the constants are mean and deviation, to their four digits
    assert mnist.train.features_ND.mean(dtype=np.float64) == pytest.approx(0, abs=2e-4)
    assert mnist.train.features_ND.std(dtype=np.float64) == pytest.approx(1, abs=2e-4)


@needs_mnist
def test_mnist_images_and_labels_belong_together(mnist):
    """The first ten labels of both parts, as everybody knows them, and a zero that is empty in the middle."""
    assert mnist.train.labels_N[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test.labels_N[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.train.features_ND[1, 0, 14, 14] == pytest.approx(BLACK, abs=1e-6)


@needs_writers
def test_mnist_writers_are_539_persons():
    """QMNIST names the writer of each training image."""
    owners = load(scenario("mnist", partition="natural")).owner_N
    assert owners is not None
    assert owners.shape == (60_000,)
    assert len(np.unique(owners)) == 539


@needs_writers
def test_mnist_names_the_writer_of_each_training_record_where_writers_are_the_unit(mnist):
    """539 persons, as declared; the test set names nobody, nor does a run whose unit is a record."""
    named = load(scenario("mnist", privacy=PERSONS))
    assert named.train.units_N is not None
    assert named.train.units_N.shape == (60_000,)
    assert len(np.unique(named.train.units_N)) == TASKS["mnist"].unit_columns["writer"] == 539
    np.testing.assert_array_equal(named.train.units_N, load(scenario("mnist", partition="natural")).owner_N)
    assert named.test.units_N is None
    assert mnist.train.units_N is None


# --- SMS --------------------------------------------------------------------------------------------------------------


def distinct() -> dict[str, str]:
    """Read the collection by other means: each text once, with its label."""
    texts = {}
    for line in SMS.read_bytes().decode("utf-8").split("\n"):
        label, tab, text = line.partition("\t")
        if tab:
            texts.setdefault(text, label)
    return texts


@needs_sms
def test_sms_has_the_declared_shapes(sms):
    """5,171 distinct messages, a fifth of them, 1,035, as public test set; the rest is what the plan counts on."""
    assert len(distinct()) == 5171
    assert sms.train.features_ND.shape == (4136, 24)
    assert sms.test.features_ND.shape == (1035, 24)
    assert TASKS["sms-spam"].train_records == 4136
    assert sms.train.features_ND.dtype == np.int64
    assert sms.train.labels_N.dtype == np.int64


@needs_sms
def test_no_text_is_in_both_parts(sms):
    """Each distinct text is in one part and once, with its own label: duplicates went before the split."""
    parts = np.concatenate((sms.train.features_ND, sms.test.features_ND))
    labels = np.concatenate((sms.train.labels_N, sms.test.labels_N))
    texts = distinct()
    expected = tokenize(list(texts), length=24, vocabulary=512)
    assert Counter(zip(map(bytes, parts), labels.tolist(), strict=True)) == Counter(
        zip(map(bytes, expected), [int(label == "spam") for label in texts.values()], strict=True)
    )


@needs_sms
def test_sms_tokens_are_in_the_scenario_s_vocabulary(sms):
    """Numbers of 0 to 511, and each text begins with the start token."""
    for part in (sms.train, sms.test):
        assert part.features_ND.min() >= 0
        assert part.features_ND.max() < 512
        assert (part.features_ND[:, 0] == 1).all()


@needs_sms
def test_spam_is_as_frequent_in_the_test_set(sms):
    """Stratified: the positive class is 1, and its share is that of all messages, up to one message."""
    spam = sum(label == "spam" for label in distinct().values())
    assert abs(int(sms.test.labels_N.sum()) - spam / 5) <= 1
    assert int(sms.train.labels_N.sum() + sms.test.labels_N.sum()) == spam


# --- what is missing, or something else -------------------------------------------------------------------------------


def idx(array: np.ndarray, *, kind: int = 8) -> bytes:
    """Return an array as a gzipped idx file."""
    sizes = struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(bytes((0, 0, kind, array.ndim)) + sizes + array.tobytes(), compresslevel=1)


def write_mnist(root: Path, *, images: int = 60_000, labels: int = 60_000, side: int = 28, tests: int = 1) -> None:
    """Write a small MNIST of empty images."""
    (root / "mnist").mkdir(parents=True)
    for name, array in {
        "train_images": np.zeros((images, side, side), np.uint8),
        "train_labels": np.zeros(labels, np.uint8),
        "test_images": np.zeros((tests, side, side), np.uint8),
        "test_labels": np.zeros(tests, np.uint8),
    }.items():
        (root / "mnist" / MNIST_FILES[name]).write_bytes(idx(array))


def test_folder_is_the_scenario_s_unless_the_environment_names_one(here, monkeypatch):
    """DISCREET_DATA overrides `data.path`; empty, it says nothing."""
    assert folder(scenario("mnist", path=here / "a")) == here / "a"
    monkeypatch.setenv("DISCREET_DATA", str(here / "b"))
    assert folder(scenario("mnist", path=here / "a")) == here / "b"
    monkeypatch.setenv("DISCREET_DATA", "")
    assert folder(scenario("mnist", path=here / "a")) == here / "a"


@pytest.mark.parametrize(
    ("dataset", "missing"),
    [("sms-spam", "sms-spam/SMSSpamCollection")] + [("mnist", f"mnist/{name}") for name in MNIST_FILES.values()],
)
def test_missing_file_is_named(here, dataset, missing):
    """The error says which file was expected where, and how to say where it is."""
    write_mnist(here, images=1, labels=1)
    (here / missing).unlink(missing_ok=True)
    with pytest.raises(DataMissingError) as error:
        load(scenario(dataset, path=here))
    assert f"expected the file {here / missing}, got none" in str(error.value)
    assert "DISCREET_DATA" in str(error.value)


def test_missing_writers_are_named(here):
    """The natural partition needs one file more."""
    write_mnist(here, images=1, labels=1)
    with pytest.raises(DataMissingError, match="expected the file") as error:
        load(scenario("mnist", path=here, partition="natural"))
    assert str(here / "mnist-writers" / WRITERS_FILE) in str(error.value)


IMAGES = idx(np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
CORRUPT = {
    "empty": b"",
    "not gzipped": b"these are no images",
    "cut off": IMAGES[:-10],
    "a wrong check sum": IMAGES[:-8] + bytes(4) + IMAGES[-4:],
    "a broken stream": IMAGES[:10] + b"\xff" * 20 + IMAGES[30:],
    "gzipped, and no idx": gzip.compress(b"no"),
    "gzipped nothing": gzip.compress(b""),
    "fewer numbers than it says": gzip.compress(gzip.decompress(IMAGES)[:-1]),
    "more numbers than it says": gzip.compress(gzip.decompress(IMAGES) + b"\0"),
    "fewer dimensions than it says": gzip.compress(b"\0\0\x08\x03\0\0"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_file_that_does_not_read_is_named(here, name):
    """Whatever its bytes are: our error, which names the file."""
    write_mnist(here, images=1, labels=1)
    path = here / "mnist" / MNIST_FILES["train_images"]
    path.write_bytes(CORRUPT[name])
    with pytest.raises(DataMissingError, match="expected a gzipped idx file, got one that does not read") as error:
        load(scenario("mnist", path=here))
    assert str(path) in str(error.value)


def test_number_of_records_must_be_the_declared_one(here):
    """The plan counts on 60,000 records: a data set of another size is refused."""
    write_mnist(here, images=59_999, labels=59_999, side=1)
    with pytest.raises(DataMissingError, match=r"expected 60000 training records.*got 59999"):
        load(scenario("mnist", path=here))


@pytest.mark.parametrize(("records", "persons"), [(60_000, 538), (60_000, 540), (59_999, 539)])
def test_persons_must_be_as_declared(here, records, persons):
    """The plan counts on 539 writers, one named for each record: another number of them is refused."""
    write_mnist(here)
    table = np.zeros((records, 8), ">i4")
    table[:, 2] = np.arange(records) % persons
    (here / "mnist-writers").mkdir()
    (here / "mnist-writers" / WRITERS_FILE).write_bytes(idx(table, kind=12))
    with pytest.raises(DataMissingError, match=rf"expected 539 persons in column 'writer', .* got {persons}\."):
        load(scenario("mnist", path=here, privacy=PERSONS))


@pytest.mark.parametrize(("images", "side"), [(59_999, 28), (60_000, 14)])
def test_images_must_be_as_declared(here, images, side):
    """An image for each label, of the declared shape: another data set is refused before anything is trained."""
    write_mnist(here, images=images, side=side)
    with pytest.raises(DataMissingError):
        load(scenario("mnist", path=here))


@pytest.mark.parametrize("content", [b"", b"ham\tone\nspam\ttwo\n", b"ham\tna\xefve\nspam\tcaf\xe9\n"])
def test_messages_must_be_as_declared(here, content):
    """An empty file, one of a few messages, or one in another encoding: our error, not a stray one."""
    (here / "sms-spam").mkdir()
    (here / "sms-spam" / "SMSSpamCollection").write_bytes(content)
    with pytest.raises(DataMissingError):
        load(scenario("sms-spam", path=here))
