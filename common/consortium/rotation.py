"""New keys for a member, without a day on which it has none.

They are made in the folder `next`, an identity of its own that the present key vouches for. The member goes on with its
present keys until the roster that names the new ones is signed by all.
"""

import shutil
from pathlib import Path

from common.consortium.documents import write_text
from common.consortium.identity import PRIVATE, SIGNED, Identity, load, new, trusted_roster
from common.errors import ConsortiumError

NEXT = "next"
_FILES = (*PRIVATE, "request.json", "tls.crt", "ca.crt", "roster.json", SIGNED)


def rotate(folder: Path) -> Identity:
    """Make new keys in `folder`/next, vouched for by the present ones, which stay in use; ConsortiumError if begun."""
    present = load(folder)
    asked = present.request
    made = new(
        folder / NEXT,
        present.name,
        role=present.role,
        ledger=asked.ledger,
        address=asked.address,
        former=present.signer,
    )
    if (folder / SIGNED).exists():
        write_text(folder / NEXT / SIGNED, (folder / SIGNED).read_text())
    return made


def finish(folder: Path) -> Identity:
    """Put the keys of `folder`/next into use, once the roster beside them is signed by all; the former ones are kept.

    Run again after a crash it goes on where it was.
    """
    waiting = folder / NEXT
    if not waiting.exists():
        raise ConsortiumError(
            f"{waiting}: expected new keys, got none. Begin with `discreet identity rotate {folder}`."
        )
    roster = trusted_roster(load(waiting))
    former = folder / f"former-{roster.serial}"
    try:
        if not former.exists():  # else a former try came this far: what lies in the folder may be new already
            _link_files(folder, former.with_name(f".{former.name}"))
            former.with_name(f".{former.name}").rename(former)
        _link_files(waiting, folder)
        shutil.rmtree(waiting)
    except OSError as error:
        raise ConsortiumError(
            f"{folder}: expected to put the new keys into use, got {error}. Nothing is lost: run it again."
        ) from error
    return load(folder)


def _link_files(source: Path, target: Path) -> None:
    """Let each file of a folder stand in another one too, whole or not at all."""
    target.mkdir(mode=0o700, exist_ok=True)
    for name in _FILES:
        temporary = target / f".{name}"
        if (source / name).exists():
            temporary.unlink(missing_ok=True)
            temporary.hardlink_to(source / name)
            temporary.replace(target / name)
            temporary.unlink(missing_ok=True)  # where both were the same file already, the rename did nothing
