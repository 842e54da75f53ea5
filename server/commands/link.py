"""`discreet serve`: the link that organisations connect to."""

from pathlib import Path
from typing import Annotated

import typer

_ALL = "0.0.0.0"  # noqa: S104 - organisations come from outside


def mount(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(epilog="Example: discreet serve hospitals --port 9443")(serve)


def serve(
    consortium: Annotated[Path, typer.Argument(metavar="CONSORTIUM_DIR", help="The folder of `consortium init`.")],
    host: Annotated[str, typer.Option(help="Address of the public port.")] = _ALL,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The public port; 0: any that is free.")] = 9443,
    control_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The coordinator's own port on 127.0.0.1; 0: any that is free.")
    ] = 0,
    max_object_mib: Annotated[
        int, typer.Option(min=1, max=2047, help="The largest update that a node may send, in MiB.")
    ] = 64,
) -> None:
    """Run the link of a consortium: organisations connect to it, and runs go through it.

    Only what a node needs is reachable from outside, over TLS 1.3 and for members of the roster alone. It runs until
    SIGTERM or Ctrl-C; a second one on the same folder does not start. It prints `ready: ...` when nodes can come.
    """
    from server.link import serving
    from server.link.settings import MIB, Limits

    limits = Limits(max_object=max_object_mib * MIB)
    serving.serve(consortium, host=host, port=port, control_port=control_port, limits=limits)
