"""A folder of images: one class a folder, or a sheet that gives each file its label.

Shapes: N images, C channels, H height, W width.

An image is looked at before it is unpacked: one of another size, or of another kind, is refused unread. Nothing is
cropped, resized or converted: that is for the organisation to do, in the same way as the others.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from common.errors import DataMissingError, SettingsError
from common.layouts import ImageLayout
from common.readers.arrays import scaled
from common.readers.tables import LARGEST_BYTES, read_csv
from common.shards import Shard
from common.sources import CsvFormat, ImagesSource

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_FORMATS = ("PNG", "JPEG", "BMP")
_MODES = {1: "L", 3: "RGB"}
FILE, LABEL = "file", "label"  # columns of a sheet


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """Files in order, with the class and perhaps the person of each."""

    files: Sequence[Path]
    labels_N: npt.NDArray[np.int64]
    units_N: npt.NDArray[np.int64] | None = None


def read_images(
    source: ImagesSource, layout: ImageLayout, *, unit_column: str | None, refuse_count: Callable[[int], None]
) -> Shard:
    """Return a folder's images; `refuse_count` is asked before any is unpacked.

    Edge cases:
        no sheet      folders in the order of the classes, files in the order of their names
        a sheet       the order of its rows
        hidden files  passed over; other files that are no images are refused

    Raises:
        DataMissingError: a file that is no image, or not one of the declared size and channels.
        SettingsError: Pillow is not installed, or persons are wanted where there is no sheet.
    """
    if find_spec("PIL") is None:
        raise SettingsError("kind: 'images' needs the library Pillow, which is not installed: pip install pillow.")
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataMissingError(f"{folder}: expected a folder of images, got none. Put it there, or correct the path.")
    if source.sheet is None and unit_column is not None:
        raise SettingsError(f"{folder}: expected a `sheet` that names the person of each image, got none.")
    listed = _foldered(source, layout) if source.sheet is None else _sheeted(source, layout, unit_column)
    if not listed.files:
        raise DataMissingError(f"{folder}: expected images, got none.")
    refuse_count(len(listed.files))
    if len(listed.files) * 4 * int(np.prod(layout.shape)) > LARGEST_BYTES:
        raise DataMissingError(f"{folder}: expected at most {LARGEST_BYTES >> 30} GiB of pixels, got more.")
    pixels_NCHW = np.empty((len(listed.files), *layout.shape), np.float32)
    for position, file in enumerate(listed.files):
        pixels_NCHW[position] = _pixels(file, layout)
    return Shard(features_ND=scaled(pixels_NCHW, layout), labels_N=listed.labels_N, units_N=listed.units_N)


def _foldered(source: ImagesSource, layout: ImageLayout) -> _Listed:
    folder, called = Path(source.path), dict(source.rename)
    _refuse_unknown(source, layout.classes)
    names = [called.get(name, name) for name in layout.classes]
    found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    for name in [*(set(names) - found), *(found - set(names))][:1]:
        got = "no such folder" if name in names else "something else, which would be left out"
        raise DataMissingError(f"{folder / name}: expected a folder for each class and nothing else, got {got}.")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        entries = sorted(entry for entry in (folder / name).iterdir() if not entry.name.startswith("."))
        files += entries
        labels += [label] * len(entries)
    return _Listed(files=files, labels_N=np.array(labels, np.int64))


def _sheeted(source: ImagesSource, layout: ImageLayout, unit_column: str | None) -> _Listed:
    folder, called = Path(source.path), dict(source.rename)
    names = [FILE, LABEL, *([] if unit_column is None else [unit_column])]
    _refuse_unknown(source, (*names, *layout.classes))
    path = folder / str(source.sheet)
    columns = {name: called[name] for name in names if name in called}
    rows = read_csv(path, CsvFormat(rename=tuple(columns.items())), names=names).map(str.strip)
    position = {called.get(name, name): label for label, name in enumerate(layout.classes)}
    files, labels = [], []
    for row, (name, label) in enumerate(zip(rows[FILE], rows[LABEL], strict=True), 1):
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in inside.parts:
            raise DataMissingError(f"{path}: column '{FILE}', row {row}: expected a file in the folder, got another.")
        if label not in position:
            raise DataMissingError(f"{path}: column '{LABEL}', row {row}: expected a declared class, got another.")
        files.append(folder / inside)
        labels.append(position[label])
    units_N = None
    if unit_column is not None:
        if (rows[unit_column] == "").any():
            row = int((rows[unit_column] == "").argmax()) + 1
            raise DataMissingError(f"{path}: column '{unit_column}', row {row}: expected a person, got none.")
        units_N = np.unique(rows[unit_column].to_numpy(dtype=object), return_inverse=True)[1].astype(np.int64)
    return _Listed(files=files, labels_N=np.array(labels, np.int64), units_N=units_N)


def _refuse_unknown(source: ImagesSource, known: Sequence[str]) -> None:
    unknown = sorted(dict(source.rename).keys() - set(known))
    if unknown:
        raise SettingsError(f"{source.path}: rename: expected names of the scenario, got '{unknown[0]}'. Remove it.")


def _pixels(file: Path, layout: ImageLayout) -> npt.NDArray[np.uint8]:
    """One image, (C, H, W), looked at before it is unpacked."""
    from PIL import Image

    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        raise DataMissingError(f"{file}: expected an image ({', '.join(SUFFIXES)}), got something else.")
    height, width = layout.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is compared below
            with Image.open(file, formats=_FORMATS) as image:
                if image.size != (width, height) or image.mode != _MODES[layout.channels]:
                    raise DataMissingError(
                        f"{file}: expected {height} x {width} pixels of mode {_MODES[layout.channels]}, got "
                        f"{image.size[1]} x {image.size[0]} of mode {image.mode}. Resize or convert it."
                    )
                pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError: a broken PNG
        raise DataMissingError(f"{file}: expected an image that reads, got one that does not.") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # noqa: PLR2004 - grey
