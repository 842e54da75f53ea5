"""The verb of the witness."""

import os
from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add `witness`."""
    app.command(epilog="Example: discreet witness identity --listen 0.0.0.0:9445 --store witness.db")(witness)


def witness(
    identity: Annotated[Path, typer.Argument(metavar="DIR", help="The witness's identity, with its roster.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0: any.")] = "0.0.0.0:9445",
    store: Annotated[
        Path | None, typer.Option(help="Its memory, a SQLite file; default witness.db in DIR. Never begin it anew.")
    ] = None,
) -> None:
    """Cosign the owners' ledgers: each only if it extends what was cosigned before.

    Runs until SIGTERM. A witness learns sizes, roots and signatures, and nothing of what ledgers say.
    """
    os.environ["GRPC_VERBOSITY"] = "NONE"  # whom TLS turns away is no line of ours
    # gRPC names no least version of TLS: of 1.2 it may have a cipher alone that no certificate of a consortium fits.
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
    from server.witness.process import run

    run(identity, listen=listen, path=store or identity / "witness.db")
