"""A node's settings: where its identity, ledger, state and data lie.

    identity = "identity"        # folder of `discreet identity new`; all paths are relative to this file
    ledger_seen = "/mnt/other/ledger.seen"
    [data]
    kind = "npz"
    path = "data.npz"

`node.toml` is about this machine; what may be done with the data stands in the policy alone.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from common import sources
from common.consortium.names import Address
from common.errors import SettingsError
from common.model_tables import PositiveFloat, Table
from common.sources import Source
from common.validation_errors import explain

FILE = "node.toml"
Place = Annotated[str, Field(min_length=1, max_length=4096)]


class _File(Table):
    """The file, as it stands there."""

    identity: Place = "identity"
    link: Address = ""
    ledger: Place = "ledger.db"
    ledger_seen: Place = "ledger.seen"
    state: Place = "state"
    train_timeout_s: PositiveFloat = 600.0
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A node's settings, every path in full.

    Args:
        identity: the folder with its keys and the roster.
        link: host:port, or nothing for the coordinator's address in the roster.
        ledger: the owner's ledger.
        ledger_seen: a file that keeps the ledger's newest checkpoint, best on another disk.
        state: a folder for what it must remember: the journal, approvals, its number at the link.
        train_timeout_s: how long the training of one order may take.
        data: where the records lie.
    """

    identity: Path
    link: str
    ledger: Path
    ledger_seen: Path
    state: Path
    train_timeout_s: float
    data: Source


def read(path: Path) -> Settings:
    """Read a node's settings, or raise SettingsError with file, key, expected, got and what to do."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: expected a node's settings, got a file that cannot be read ({error}). Write one with a table "
            f'[data], for example kind = "npz" and path = "data.npz", or name another with --node.'
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: expected a TOML file, got another text: {error}. Correct it.") from error
    try:
        given = _File.model_validate(tables)
    except ValidationError as error:
        known: dict[str, tuple[type[Table], ...]] = dict.fromkeys(_File.model_fields, ())
        raise SettingsError(f"{path}: {explain(error, known)} Correct it there.") from error
    folder = path.resolve().parent
    data = sources.parse(given.data, folder=folder, name=str(path))
    if not Path(data.path).exists():
        raise SettingsError(f"{path}: data.path: expected a file or folder, got {data.path}, where none is. Name it.")
    return Settings(
        identity=folder / given.identity,
        link=given.link,
        ledger=folder / given.ledger,
        ledger_seen=folder / given.ledger_seen,
        state=folder / given.state,
        train_timeout_s=given.train_timeout_s,
        data=data,
    )


def make_private(folder: Path) -> None:
    """Make a folder that only its owner looks into, or raise SettingsError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"{folder}: expected a folder for the node's state, got {error.strerror}. May you write there?"
        ) from error
