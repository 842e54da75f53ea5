"""Verbs about who is in the consortium: `consortium init`, `add`, `revoke`, `sign`, `merge`, `show` and `renew`."""

import json
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Option("--consortium", help="The consortium's folder.")]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--address", metavar="HOST[:PORT]", help="Where others reach the link; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")]
CONSORTIUM = Path("consortium")


def mount(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    verbs = typer.Typer(help="Who is in the consortium: certificates and the signed roster.", no_args_is_help=True)
    verbs.command(epilog="Example: discreet consortium init study --address coordinator.example:9443")(init)
    verbs.command(epilog="Example: discreet consortium add north/request.json")(add)
    verbs.command(epilog="Example: discreet consortium revoke north")(revoke)
    verbs.command(epilog="Example: discreet consortium sign roster-draft.json --identity identity")(sign)
    verbs.command(epilog="Example: discreet consortium merge back/*.json --out consortium/roster.json")(merge)
    verbs.command(epilog="Example: discreet consortium show --json")(show)
    verbs.command(epilog="Example: discreet consortium renew --address coordinator.example:9443")(renew)
    app.add_typer(verbs, name="consortium")


def init(
    name: Annotated[str, typer.Argument(help="The consortium's name.")],
    out: Annotated[Path, typer.Option(help="The consortium's folder; it is made.")] = CONSORTIUM,
    addresses: Addresses = None,
    coordinator: Annotated[str, typer.Option(help="The coordinator's name as a member.")] = "coordinator",
) -> None:
    """Make a consortium: its authority, the link's certificate, the coordinator's identity and the first roster.

    The first --address goes into the roster; localhost and 127.0.0.1 are always in the certificate.
    """
    from server import consortium_folder

    made = consortium_folder.init(out, name, addresses=addresses or (), coordinator=coordinator)
    typer.echo(f"Wrote {made.path}: keep {made.authority_key} and {made.identity} secret, and put a copy away.")
    typer.echo("Each organisation runs `discreet identity new NAME` and sends its request.json, for:")
    typer.echo(f"  discreet consortium add request.json --consortium {made.path}")


def add(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="The request.json of who is to take part.")],
    consortium: Folder = CONSORTIUM,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give a name to new keys that its former key did not sign.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=3650, help="For how long the certificate is valid.")] = 365,
) -> None:
    """Certify who asks, and draft the next roster with it; a name that is there gets new keys or a new certificate."""
    from common.consortium import requests
    from server import consortium_folder, enrolment

    folder = consortium_folder.opened(consortium)
    draft = enrolment.add(folder, request, replace=replace, days=days)
    member = draft.roster.member(requests.load(request).name)
    typer.echo(f"{member.name} ({member.role}) signs with {member.signing}: compare it with what it reads out to you.")
    typer.echo(f"Send {folder.issued(member.name)}/tls.crt and ca.crt to {member.name}, to lie beside its keys.")
    _tell_who_signs(draft.path, draft.missing, folder.roster)


def revoke(
    name: Annotated[str, typer.Argument(help="Who may not take part any more.")], consortium: Folder = CONSORTIUM
) -> None:
    """Shut a member out at once, and draft the next roster without it."""
    from server import consortium_folder, enrolment

    folder = consortium_folder.opened(consortium)
    draft = enrolment.revoke(folder, name)
    typer.echo(f"{name} is refused from now on: {folder.denied} says so.")
    _tell_who_signs(draft.path, draft.missing, folder.roster)


def sign(
    roster: Annotated[Path, typer.Argument(metavar="ROSTER", help="The roster's file, which gets the signature.")],
    identity: Annotated[Path, typer.Option(help="The folder with the keys of who signs.")],
    *,
    look: Annotated[bool, typer.Option("--look", help="Only say what would be signed.")] = False,
) -> None:
    """Say what a roster says and what is new in it, check that one's own keys stand in it, and sign it."""
    from common.consortium import identity as identities
    from common.consortium import roster as rosters
    from common.consortium import roster_words

    own, shown = identities.load(identity), rosters.unsigned(roster)
    for sentence in roster_words.in_words(shown):
        typer.echo(sentence)
    if own.roster.exists():
        before = rosters.unsigned(own.roster)
        typer.echo(f"Since roster {before.serial}:")
        for sentence in roster_words.changes(before, shown) or ["Nothing is different."]:
            typer.echo(f"  {sentence}")
    if look:
        identities.own_member(own, shown)
        return
    identities.sign_roster(own, roster)
    typer.echo(f"Signed by {own.name}. Send {roster} back to the coordinator.")


def merge(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="Copies of one roster that members signed.")],
    out: Annotated[Path, typer.Option(help="The file that gets all signatures.")],
) -> None:
    """Gather the signatures of copies of one roster; it is in force when nobody's is missing."""
    from server import enrolment

    missing = enrolment.merge(files, out)
    if missing:
        typer.echo(f"Wrote {out}. Not signed yet by {', '.join(missing)}: it is not in force.")
    else:
        typer.echo(f"Wrote {out}: all have signed. Send it to every member, to lie beside its keys as roster.json.")


def show(consortium: Folder = CONSORTIUM, *, as_json: AsJson = False) -> None:
    """Show the members, for how long their certificates are valid, and who has signed."""
    from server import consortium_table

    table = consortium_table.table(consortium)
    if as_json:
        typer.echo(json.dumps(table))
    else:
        consortium_table.show(table)


def renew(consortium: Folder = CONSORTIUM, addresses: Addresses = None) -> None:
    """Make a new certificate for the link; members need nothing new."""
    from server import consortium_folder

    folder = consortium_folder.opened(consortium)
    days = consortium_folder.days_until(consortium_folder.renew(folder, addresses=addresses or ()))
    typer.echo(f"Wrote {folder.server_certificate}, valid for {days} days. Restart `discreet serve`.")


def _tell_who_signs(draft: Path, missing: tuple[str, ...], roster: Path) -> None:
    if missing:
        typer.echo(f"Send {draft} to {', '.join(missing)}. Each signs it and sends it back:")
        typer.echo("  discreet consortium sign roster-draft.json --identity DIR")
    typer.echo("When all have signed, it comes into force with:")
    typer.echo(f"  discreet consortium merge {draft} FILES... --out {roster}")
