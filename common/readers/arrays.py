"""Arrays of NumPy in one file, without pickled objects.

Shapes: N records, D a record's own shape.

Floating-point numbers are records as a model takes them; bytes are pixels, which the scenario's public constants
scale. What an array claims of itself is compared with the file before anything of it is unpacked.
"""

import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data_table import Data
from common.errors import DataMissingError
from common.layouts import ArrayLayout, ImageLayout
from common.readers.tables import LARGEST_BYTES, refuse_absent
from common.shards import Shard
from common.sources import NpzFormat
from common.tasks import task_of

MOST_TOKENS = 4096
_BROKEN = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
_KINDS = {"iu": "whole numbers", "f": "floating-point numbers", "fu": "floating-point numbers or bytes"}
_KINDS["iuUS"] = "whole numbers or texts"


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What an array of a file says of itself."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def refuse(self, expected: str) -> DataMissingError:
        """Say that it is not what it should be."""
        return DataMissingError(f"{self.path}: array '{self.name}': expected {expected}, got {self}.")

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"

    def of(self, kinds: str) -> "_Claim":
        """Itself, DataMissingError where its type is of another kind."""
        if self.dtype.kind not in kinds or (self.dtype.kind == "u" and kinds == "fu" and self.dtype.itemsize != 1):
            raise self.refuse(_KINDS[kinds])
        return self

    def read(self) -> npt.NDArray[Any]:
        """Its numbers."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                array: npt.NDArray[Any] = file[self.name]
        except (*_BROKEN, MemoryError):
            raise self.refuse("an array that reads") from None
        if array.shape != self.shape or array.dtype != self.dtype:
            raise self.refuse("the array that its head describes")
        return array


def read_npz(
    path: Path, named: NpzFormat, *, data: Data, unit_column: str | None, refuse_count: Callable[[int], None]
) -> Shard:
    """Return the records of a file, or raise DataMissingError; `refuse_count` is asked before they are unpacked."""
    refuse_absent(path)
    layout, task = data.layout, task_of(data)
    has_bytes = isinstance(layout, ArrayLayout | ImageLayout)
    features = _claim(path, named.features).of("iu" if task.is_text else "fu" if has_bytes else "f")
    labels = _claim(path, named.labels).of("iu")
    if len(labels.shape) != 1 or features.shape[:1] != labels.shape:
        raise features.refuse(f"as many records as labels, {labels.shape}")
    if labels.shape[0] == 0:
        raise labels.refuse("records")
    shape = task.image_shape if task.width is None else (task.width,)
    declared = layout.shape if isinstance(layout, ArrayLayout) else shape
    if task.is_text and (len(features.shape) != 2 or features.shape[1] > MOST_TOKENS):  # noqa: PLR2004 - N and tokens
        raise features.refuse(f"at most {MOST_TOKENS} token numbers a record")
    if not task.is_text and features.shape[1:] not in {shape, declared}:
        raise features.refuse(f"records of shape {declared}")
    refuse_count(labels.shape[0])
    units = None if unit_column is None else _claim(path, named.units).of("iuUS")
    if units is not None and units.shape != labels.shape:
        raise units.refuse(f"a person for each label, {labels.shape}")
    return Shard(
        features_ND=_features(features, layout, shape),
        labels_N=_labels(labels, task.classes),
        units_N=None if units is None else np.unique(units.read(), return_inverse=True)[1].astype(np.int64),
    )


def _features(claim: _Claim, layout: object, shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Records as the model takes them."""
    array_ND = claim.read()
    if shape is None:
        return array_ND.astype(np.int64)
    with np.errstate(over="ignore"):
        numbers_ND = array_ND.astype(np.float32).reshape(-1, *shape)
    if claim.dtype.kind == "u" and isinstance(layout, ArrayLayout | ImageLayout):
        return scaled(numbers_ND, layout)
    bad_N = ~np.isfinite(numbers_ND).reshape(len(numbers_ND), -1).all(axis=1)
    if bad_N.any():
        raise DataMissingError(
            f"{claim.path}: array '{claim.name}', record {int(bad_N.argmax()) + 1}: expected finite numbers of single "
            f"precision, got one that is not."
        )
    return numbers_ND


def scaled(bytes_ND: npt.NDArray[np.float32], layout: ArrayLayout | ImageLayout) -> npt.NDArray[np.float32]:
    """Scale pixels of 0 to 255 in place, with the scenario's public constants."""
    bytes_ND /= 255 * layout.scale
    bytes_ND -= layout.center / layout.scale
    return bytes_ND


def _labels(claim: _Claim, classes: int) -> npt.NDArray[np.int64]:
    labels_N = claim.read()
    bad_N = (labels_N < 0) | (labels_N >= classes)
    if bad_N.any():
        raise DataMissingError(
            f"{claim.path}: array '{claim.name}', record {int(bad_N.argmax()) + 1}: expected a class from 0 to "
            f"{classes - 1}, got another."
        )
    return labels_N.astype(np.int64)


def _claim(path: Path, name: str) -> _Claim:
    """Read an array's head; DataMissingError where it claims more than the file has, or than is bounded."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                start = file.tell()
    except KeyError:
        raise DataMissingError(
            f"{path}: expected an array '{name}', got none. Say in the source what the file calls it."
        ) from None
    except _BROKEN:
        raise DataMissingError(f"{path}: expected arrays as numpy.savez writes them, got none that read.") from None
    claim = _Claim(path=path, name=name, shape=shape, dtype=dtype)
    size_bytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise claim.refuse("numbers")
    if size_bytes > LARGEST_BYTES:
        raise claim.refuse(f"at most {LARGEST_BYTES >> 30} GiB")
    if start + size_bytes != member.file_size:
        raise claim.refuse(f"{size_bytes} bytes of numbers, as its head says")
    return claim
