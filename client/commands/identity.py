"""Verbs about a member's own keys: `identity new`, `rotate` and `show`."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the keys.")]
IDENTITY = Path("identity")


class AskedRole(Enum):
    """What a member can ask to be; the coordinator's identity is made with the consortium."""

    OWNER = "owner"
    WITNESS = "witness"


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    verbs = typer.Typer(help="A member's own keys, which never leave its folder.", no_args_is_help=True)
    verbs.command(epilog="Example: discreet identity new north --ledger ledger.db")(new)
    verbs.command(epilog="Example: discreet identity rotate identity")(rotate)
    verbs.command(epilog="Example: discreet identity show identity --json")(show)
    app.add_typer(verbs, name="identity")


def new(
    name: Annotated[str, typer.Argument(help="Under which name to take part.")],
    role: Annotated[AskedRole, typer.Option(help="What to be.")] = AskedRole.OWNER,
    out: Annotated[Path, typer.Option(help="The folder for the keys; it is made.")] = IDENTITY,
    ledger: Annotated[
        Path | None, typer.Option(help="An owner's ledger; its public key goes into the request.")
    ] = None,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where others reach a witness.")] = "",
) -> None:
    """Make keys, and the request that the coordinator needs; the private keys stay here."""
    from client import identity_folder

    made = identity_folder.new(out, name, role=role.value, ledger=ledger, address=address)
    typer.echo(f"Wrote {out}. Its files .key are private: they never leave, and a copy is put away.")
    typer.echo(f"Send {out / 'request.json'} to the coordinator, and read it this line:")
    typer.echo(f"  {made.request.signing}")
    if role is AskedRole.OWNER and ledger is None:
        typer.echo("Without --ledger no witness can cosign for this owner.")


def rotate(
    folder: Folder = IDENTITY,
    *,
    finish: Annotated[bool, typer.Option("--finish", help="Put the new keys into use, when all have signed.")] = False,
) -> None:
    """Make new keys that the present ones vouch for; with --finish put them into use."""
    from common.consortium import rotation

    if finish:
        changed = rotation.finish(folder)
        typer.echo(f"{changed.name} uses its new keys. The former ones lie in a folder former-SERIAL beside them.")
        return
    made = rotation.rotate(folder)
    typer.echo(f"Wrote {made.folder}. The present keys stay in use until the roster with the new ones is in force:")
    typer.echo(f"  1. Send {made.folder / 'request.json'} to the coordinator.")
    typer.echo(f"  2. Sign the roster it sends back with --identity {made.folder}.")
    typer.echo(f"  3. Put tls.crt, ca.crt and the finished roster.json into {made.folder}.")
    typer.echo(f"  4. Stop the node, run: discreet identity rotate {folder} --finish, and start it.")


def show(
    folder: Folder = IDENTITY,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")] = False,
) -> None:
    """Show who a folder is, for how long its certificate is valid, and what is still missing."""
    from client import identity_folder

    shown = identity_folder.described(folder)
    typer.echo(json.dumps(shown) if as_json else "\n".join(identity_folder.in_words(shown)))
