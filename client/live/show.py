"""What a person sees of an audited run."""

from rich.console import Console

from client.live.audited import Audited
from common.audit.findings import in_words
from common.audit.tables import bounds, checks


def show(made: Audited) -> None:
    """Print an audit."""
    console = Console(highlight=False)
    console.print(bounds(made.findings))
    console.print(checks(made.findings))
    for sentence in in_words(made.findings):
        console.print(sentence, markup=False)
    missing = made.charged - made.rounds
    lost = f", {missing} more were charged and not seen" if missing else ""
    console.print(f"Run {made.run}: the pad was seen in {made.rounds} rounds{lost}.", markup=False)
    console.print(f"{made.folder}/audit.json, and an AUDIT entry in the ledger.", markup=False, soft_wrap=True)
