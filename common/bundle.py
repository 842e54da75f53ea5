"""What the coordinator may ship: a bundle without code, known by its hash.

Flower sends each node a bundle (a zip archive) with a run. Discreet's holds nothing but a pyproject.toml that names
the apps which each organisation has installed itself. A node never unpacks it: it compares the hash, and reads the
archive's table of names to say that there is no code in it, whatever the hash is.

    bundle.refuse_unfit(content, allowed=policy.bundles)     # raises, or the bundle is harmless

Two readers of one archive can see different names in it. So the whole of it must be what Flower writes: each entry
stored as it is, one behind the other from the first byte on, then the table, then the end, and nothing between.
"""

import struct
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO

from common.errors import RefusedError
from common.messages import Refusal

PYPROJECT = """\
[project]
name = "discreet"
version = "1"
description = "No code: each organisation runs the Discreet that it has installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "discreet"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
scenario = ""
"""
SHA256 = "e4c515cca62a07795d71d77a052e6eb4b3c0bc175b04186b3e7cfacab4d38ce2"  # of the archive Flower makes of PYPROJECT
MANIFEST = ".info/CONTENT"  # Flower's list of names and hashes
NAMES = frozenset({"pyproject.toml", MANIFEST})
MAX_BYTES = 64 * 1024

_DATE = (2024, 10, 1, 0, 0, 0)  # Flower's: the same bundle has the same hash on every day
_LOCAL, _LOCAL_BYTES = b"PK\x03\x04", 30
_NAME_LENGTHS = struct.Struct("<HH")  # of the name and of the extra field, at byte 26 of a local header
_END_BYTES = 22  # of the record that ends an archive without a comment
_TABLE_ROW_BYTES = 46  # without the name


def shim() -> bytes:
    """Return the bundle that a coordinator ships: byte for byte what Flower makes of `PYPROJECT`.

    >>> sha256(shim()).hexdigest() == SHA256
    True
    """
    pyproject = PYPROJECT.encode()
    manifest = f"pyproject.toml,{sha256(pyproject).hexdigest()},{len(pyproject) * 8}"
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml", _DATE), pyproject)
        archive.writestr(zipfile.ZipInfo(MANIFEST, _DATE), manifest)
    return target.getvalue()


def refuse_unfit(content: bytes, *, allowed: Sequence[str]) -> None:
    """Raise unless the bundle is one that this owner allows and holds no code.

    Guarantees:
        Nothing is unpacked, and no more than `MAX_BYTES` are looked at.
        A bundle with any other name in it than `NAMES` is refused even when its hash is allowed.

    Args:
        content: the archive's bytes as they came.
        allowed: SHA-256 hashes in hex; empty for that of this version's own bundle.

    Raises:
        RefusedError: with the word `bundle-refused`; the text says why and stays with the owner.
    """
    if len(content) > MAX_BYTES:
        _refuse(f"expected at most {MAX_BYTES} bytes, got {len(content)}")
    digest = sha256(content).hexdigest()
    if digest not in (allowed or (SHA256,)):
        _refuse(f"its SHA-256 {digest} is not allowed; ask the coordinator what it is, or add it to the policy")
    _refuse_unless_bare(content)


def _refuse_unless_bare(content: bytes) -> None:
    """Raise unless the archive is laid out as Flower does it and holds `NAMES` only."""
    entries = _table(content)
    names = [entry.orig_filename for entry in entries]
    if "pyproject.toml" not in names or not NAMES.issuperset(names) or len(set(names)) != len(names):
        _refuse(f"expected nothing in it but {' and '.join(sorted(NAMES))}, got {sorted(names)!r:.200}")
    position = 0
    for entry in entries:
        if entry.header_offset != position:
            _refuse("expected its entries to follow each other; bytes that the table does not name are in it")
        position = _end_of(content, entry)
    table_bytes = sum(_TABLE_ROW_BYTES + len(name) for name in names)
    if position + table_bytes + _END_BYTES != len(content):
        _refuse("expected the table right behind the entries, and nothing behind the table")


def _table(content: bytes) -> list[zipfile.ZipInfo]:
    """Read the archive's table of names, in the order of the entries."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error) as error:
        raise RefusedError(Refusal.BUNDLE_REFUSED, f"expected a zip archive, got {error!r:.200}") from None


def _end_of(content: bytes, entry: zipfile.ZipInfo) -> int:
    """Return where the entry ends, whose own header must say what the table says."""
    start, name = entry.header_offset, entry.orig_filename.encode()
    header = content[start : start + _LOCAL_BYTES + len(name)]
    if len(header) < _LOCAL_BYTES + len(name) or not header.startswith(_LOCAL) or not header.endswith(name):
        _refuse(f"expected the header of {entry.orig_filename} where the table says, got other bytes")
    if _NAME_LENGTHS.unpack_from(header, 26) != (len(name), 0) or entry.flag_bits:
        _refuse(f"expected a plain header of {entry.orig_filename}, got extra fields or flags")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        _refuse(f"expected {entry.orig_filename} stored as it is, got it packed")
    return start + len(header) + entry.file_size


def _refuse(why: str) -> None:
    """Raise the one refusal that leaves a node for all of these."""
    raise RefusedError(Refusal.BUNDLE_REFUSED, f"the coordinator's bundle: {why}")
