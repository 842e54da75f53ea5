"""The bundle: only what holds no code is let in, whatever its hash."""

import contextlib
import struct
import warnings
import zipfile
from hashlib import sha256
from io import BytesIO

import pytest

from common import bundle
from common.errors import RefusedError
from common.messages import Refusal


@pytest.fixture(scope="module")
def fab() -> bytes:
    """Return the bundle that Flower makes of the shim."""
    from flwr.cli.build import build_fab_from_files

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return build_fab_from_files({"pyproject.toml": bundle.PYPROJECT.encode()})[0]


def _archive(*, compression: int = zipfile.ZIP_STORED, comment: bytes = b"", **files: bytes) -> bytes:
    """Return an archive of these files; `__` stands for a dot in the names."""
    target = BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in {"pyproject.toml": bundle.PYPROJECT.encode(), **files}.items():
            archive.writestr(name.replace("__", "."), content)
        archive.comment = comment
    return target.getvalue()


def _refusal(content: bytes) -> str:
    """Allow the content's hash, and return why it is refused all the same."""
    with pytest.raises(RefusedError) as refused:
        bundle.refuse_unfit(content, allowed=[sha256(content).hexdigest()])
    assert refused.value.word is Refusal.BUNDLE_REFUSED
    return str(refused.value)


def test_hash_is_that_of_what_flower_makes(fab):
    """The constant is the hash of the archive that this Flower builds: a node and a coordinator mean the same."""
    assert sha256(fab).hexdigest() == bundle.SHA256
    assert bundle.shim() == fab


def test_own_bundle_is_allowed_without_a_list(fab):
    """An owner who names no hash allows this version's bundle."""
    bundle.refuse_unfit(fab, allowed=[])


def test_own_bundle_is_refused_by_a_list_without_it(fab):
    """An owner who names hashes allows those only."""
    with pytest.raises(RefusedError, match="not allowed"):
        bundle.refuse_unfit(fab, allowed=["0" * 64])


def test_other_bundle_without_code_is_let_in_when_its_hash_is_allowed():
    """Another shim is fine when the owner names it."""
    content = _archive(__info_CONTENT=b"").replace(b".info_CONTENT", b".info/CONTENT")
    bundle.refuse_unfit(content, allowed=[sha256(content).hexdigest()])


def test_code_is_refused_though_its_hash_is_allowed():
    """A bundle with code in it is refused, whoever allowed it."""
    assert "client.py" in _refusal(_archive(client__py=b"print('hello')"))


@pytest.mark.parametrize("name", ["../pyproject__toml", "/pyproject__toml", "torch/__init__", "pyproject__toml\\x"])
def test_names_that_only_look_harmless_are_refused(name):
    """Names are compared whole: no folder, no path tricks."""
    assert "expected nothing in it but" in _refusal(_archive(**{name: b""}))


def test_same_name_twice_is_refused():
    """Two entries of one name: which one counts is up to the reader, so neither does."""
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("pyproject.toml", b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("pyproject.toml", b"b")
    assert "expected nothing" in _refusal(target.getvalue())


def test_name_with_a_zero_byte_is_refused():
    """Python cuts a name at a zero byte; the name that is there counts."""
    content = _archive().replace(b"pyproject.toml", b"pyproject.tom\x00")
    assert "expected nothing" in _refusal(content)


def test_empty_archive_is_refused():
    """No pyproject.toml, no bundle."""
    target = BytesIO()
    with zipfile.ZipFile(target, "w"):
        pass
    assert "expected nothing" in _refusal(target.getvalue())


def test_entry_that_the_table_does_not_name_is_refused():
    """An entry hidden before, between or behind the others is seen."""
    hidden = _archive(evil__py=b"1")
    assert _refusal(hidden[: hidden.index(b"PK\x01\x02")] + _archive())
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 1, 1, 7, 0) + b"evil.py1"
    content = _archive()
    table = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    moved = struct.pack("<I", table + len(local))
    assert _refusal(content[:table] + local + content[table : end + 16] + moved + content[end + 20 :])


def test_local_header_that_lies_about_its_name_is_refused():
    """The table says pyproject.toml and the entry says otherwise: a reader of entries would see code."""
    content = _archive()
    assert "header of pyproject.toml" in _refusal(content.replace(b"pyproject.toml", b"sitecustom.py1", 1))


def test_comment_and_trailing_bytes_are_refused():
    """Nothing may stand behind the table."""
    assert _refusal(_archive(comment=b"x" * 40))
    assert _refusal(_archive() + b"PK")


def test_packed_entries_are_refused_unread():
    """A zip bomb is never opened: what is packed is refused, and so is what is large."""
    assert "packed" in _refusal(_archive(compression=zipfile.ZIP_DEFLATED))
    assert "at most" in _refusal(b"\0" * (bundle.MAX_BYTES + 1))


def test_lies_about_sizes_are_refused():
    """A size that leads past the end, or that hides bytes, is found by adding up."""
    content = bytearray(_archive())
    row = content.index(b"PK\x01\x02")
    content[row + 20 : row + 28] = struct.pack("<II", 4_000_000_000, 4_000_000_000)
    assert "behind" in _refusal(bytes(content))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\xff" * 18, b"not an archive" * 10])
def test_what_is_no_archive_is_refused(content):
    """Bytes from outside raise the refusal and nothing else."""
    assert "expected" in _refusal(content)


def test_no_flipped_byte_raises_anything_but_the_refusal(fab):
    """A damaged archive is refused or, where only what is stored in it differs, still bare."""
    let_in = []
    for position in range(len(fab)):
        damaged = bytes([*fab[:position], fab[position] ^ 0xFF, *fab[position + 1 :]])
        with contextlib.suppress(RefusedError):
            bundle.refuse_unfit(damaged, allowed=[sha256(damaged).hexdigest()])
            let_in.append(damaged)
    assert all(damaged.count(b"PK\x03\x04") == 2 for damaged in let_in)
