"""Which code is running: a digest of its source, and the versions of the libraries that privacy rests on."""

from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.transparency.entries import Provenance

LIBRARIES = ("cryptography", "dp-accounting", "flwr", "numpy", "opacus", "torch")
ROOMS = ("client", "common")  # what runs at a data owner
RNG = "AES-256-CTR under a key of the operating system"


@lru_cache(maxsize=1)
def provenance() -> Provenance:
    """Return the provenance of this process."""
    return Provenance(code=code_digest(Path(__file__).parents[2]), libraries=_versions(), rng=RNG)


def code_digest(root: Path) -> str:
    """Return the SHA-256, in hexadecimal, over names and contents of all source files of a data owner's rooms."""
    digest = sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
