"""Flower's SuperLink as one ASGI app, and its table of nodes: the only place that knows its insides.

Flower changes its internals often. What is imported here is pinned by tests, and where it has moved the link does not
start and says so in one line.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.types import ASGIApp

from common.errors import LinkError
from server.link.settings import LinkFolder

FLOWER = "1.41.0"
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_LOUD = (  # would open ports of their own, ask another login, or log what is sent
    "FLWR_INTERNAL_GRPC_CONTROL_API",
    "FLWR_INTERNAL_GRPC_FLEET_API",
    "FLWR_OIDC_ENABLED",
    "FLWR_ENABLE_EVENT_LOG",
    "FLWR_LOG_LEVEL",
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A row of Flower's table: a key that is, or was, registered."""

    identifier: int
    pem: bytes
    name: str
    is_registered: bool


class FlowerApp:
    """The app and the nodes in its database.

    Guarantees:
        A node that is withdrawn and admitted again keeps its identifier.
    """

    def __init__(self, app: ASGIApp, state: Any) -> None:
        self.app = app
        self._state = state

    def nodes(self) -> list[Node]:
        """Return all rows, those that were withdrawn too."""
        from flwr.supercore.constant import NodeStatus

        return [
            Node(
                identifier=row.node_id,
                pem=row.public_key,
                name=row.name or "",
                is_registered=row.status != NodeStatus.UNREGISTERED,
            )
            for row in self._state.get_node_info()
        ]

    def admit(self, pem: bytes, *, name: str, known: Iterable[Node]) -> None:
        """Register a key under a name; one that was withdrawn comes back as the node that it was."""
        from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

        former = next((node for node in known if node.pem == pem), None)
        if former is None:
            self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, 0, name=name)
        else:
            self._restore(former, name)

    def withdraw(self, node: Node) -> None:
        """Unregister a node: no run counts on it, and Flower itself does not answer it any more."""
        from flwr.common.constant import NOOP_FLWR_AID

        self._state.delete_node(NOOP_FLWR_AID, node.identifier)

    def _restore(self, node: Node, name: str) -> None:
        """Undo a withdrawal, which Flower has no call for: it refuses a key that it has seen before."""
        from flwr.supercore.constant import NodeStatus
        from flwr.supercore.state.schema.linkstate_models import Node as Row
        from sqlalchemy import case, update

        status = case((Row.status == NodeStatus.UNREGISTERED, NodeStatus.REGISTERED), else_=Row.status)
        statement = update(Row).where(Row.public_key == node.pem)
        with self._state.session() as session:
            session.execute(statement.values(status=status, unregistered_at=None, name=name))


def load(folder: LinkFolder, *, secret: bytes) -> FlowerApp:
    """Make Flower's app on the folder's database, as it is to be behind two gates.

    Raises:
        LinkError: Flower is missing, has moved what is used here, or cannot open the database.
    """
    prepare_environment()
    try:
        from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
        from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
        from flwr.superlink.main import create_app

        config = SuperLinkLifespanConfig(
            control_address="127.0.0.1:0",
            health_server_address=None,
            host="127.0.0.1",
            port=0,
            insecure=True,  # TLS is the listener's
            certificates=None,
            superexec_auth_secret=secret,
            authn_plugin=load_control_authn_plugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type="grpc-rere",
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=str(folder.database.resolve()),
            isolation="process",
            runtime_dependency_install=False,
        )
    except (ImportError, AttributeError, TypeError) as error:
        raise LinkError(
            f"Flower: expected the insides of {FLOWER}, got {_installed()} ({error}). "
            f"Install the one that Discreet is made for: pip install flwr=={FLOWER}"
        ) from error
    try:
        app = create_app(config, SuperLinkLifespan)
        return FlowerApp(app, app.state.linkstate_factory.state())
    except Exception as error:  # whatever stands in the way, the link does not start
        raise LinkError(
            f"{folder.database}: expected a database of Flower {FLOWER}, got {type(error).__name__}. "
            f"Was it written by another version? Move it away to begin anew; runs under way are lost."
        ) from error


def prepare_environment() -> None:
    """Keep Flower from calling home, and from all that a variable could open beside the two gates."""
    os.environ.update(_QUIET)
    for name in _LOUD:
        os.environ.pop(name, None)


def _installed() -> str:
    try:
        return version("flwr")
    except PackageNotFoundError:
        return "none"
