"""What an auditor asks a witness of a ledger, and what it says of the copy in hand."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.witness import Witness
from common.consortium import identity as identities
from common.errors import BadInputError, LedgerError
from common.transparency.cosignatures import CosignerKey, verify_cosigned
from common.transparency.export import read
from common.transparency.verification import refuse_unless_continues


def witnessed(path: Path, *, identity: Path, witness: str) -> dict[str, Any]:
    """Compare a ledger, or an export, with what a witness cosigned last; return plain values.

    Args:
        path: a ledger's file or an export of it.
        identity: the folder of the member who asks.
        witness: its name in the roster; "" for the only one.

    Raises:
        LedgerError: it is not whole, no member's, an older copy or forked; or the witness has cosigned nothing of it.
        WitnessError: the witness does not answer, or not rightly.
        ConsortiumError: the identity or its roster is not valid.
    """
    statement = read(path)
    own = identities.load(identity)
    roster = identities.trusted_roster(own)
    names = [member.name for member in roster.members if member.role == "witness" and not member.revoked]
    if not witness and len(names) != 1:
        raise BadInputError(f"--witness: expected one of {', '.join(names) or 'none'}, got none. Name one.")
    owner = next((member.name for member in roster.members if member.ledger == str(statement.key)), None)
    if owner is None:
        raise LedgerError(
            f"{path}: it is signed by {statement.key}, which is no member's ledger in {roster.consortium}."
        )
    with closing(Witness.listed(witness or names[0], roster=roster, identity=own)) as asked:
        newest = asked.latest(statement.key)
    if not newest.note:
        raise LedgerError(f"{path}: witness {asked.name} has cosigned nothing of this ledger.")
    refuse_unless_continues(statement, newest.note)
    cosigned = verify_cosigned(newest.note, CosignerKey(key=roster.witness(asked.name).key))
    return {
        "owner": owner,
        "witness": asked.name,
        "size": statement.checkpoint.size,
        "cosigned_size": cosigned.checkpoint.size,
        "cosigned_at": datetime.fromtimestamp(cosigned.time_s, UTC).isoformat(),
        "note": newest.note,
        "forks": list(newest.forks),
    }


def in_words(table: dict[str, Any]) -> list[str]:
    """Say what was found, in sentences for people."""
    more = table["size"] - table["cosigned_size"]
    beyond = f", which {more} entries follow that it has not seen" if more else ""
    forks = table["forks"]
    seen = (
        f"Witness {table['witness']} cosigned {table['cosigned_size']} entries of {table['owner']}'s ledger at "
        f"{table['cosigned_at']}, and this copy begins with them{beyond}."
    )
    if forks:
        return [seen, f"It was shown {len(forks)} other pasts of this ledger: ask {table['owner']} why."]
    return [seen, "It was never shown another past of this ledger."]
