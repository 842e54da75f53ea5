"""Where a client's app is called: in this process, or elsewhere."""

from importlib import import_module
from typing import Protocol

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from common.messages import Refusal

RUN_ID = 1


def identify() -> None:
    """Tell Flower who this process is, without which it makes no message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 0, 0


class Executor(Protocol):
    """Where a client's app is called."""

    def wait(self) -> None:
        """Wait until it is ready."""

    def has_room(self) -> bool:
        """Whether another message can be submitted now."""

    def submit(self, message: Message, node_config: UserConfig, state: RecordDict) -> None:
        """Take a message to be answered."""

    def answers(self, timeout_s: float) -> list[Message]:
        """Return the answers that are there, after waiting for at most `timeout_s` for the first."""

    def close(self) -> None:
        """Stop, and free what is held."""


class Sequential:
    """Calls the app here, one message after the other."""

    def __init__(self, app: str, run_config: UserConfig) -> None:
        self._name, self._app, self._run_config = app, load_app(app), run_config
        self._task: tuple[Message, Context] | None = None

    def wait(self) -> None:
        """Prepare the app."""
        warm(self._name, self._run_config)

    def has_room(self) -> bool:
        """Whether another message can be submitted now."""
        return self._task is None

    def submit(self, message: Message, node_config: UserConfig, state: RecordDict) -> None:
        """Take a message to be answered."""
        context = Context(RUN_ID, message.metadata.dst_node_id, node_config, state, self._run_config)
        self._task = (message, context)

    def answers(self, timeout_s: float) -> list[Message]:
        """Answer the message that was submitted."""
        del timeout_s
        if self._task is None:
            return []
        message, context = self._task
        self._task = None
        return [call(self._app, message, context)]

    def close(self) -> None:
        """Nothing is held."""


def load_app(name: str) -> ClientApp:
    """Import an app by `module:attribute`."""
    module, _, attribute = name.partition(":")
    app = getattr(import_module(module), attribute)
    if not isinstance(app, ClientApp):
        raise TypeError(f"{name}: expected a ClientApp, got {type(app).__name__}")
    return app


def warm(name: str, run_config: UserConfig) -> None:
    """Let an app's module prepare itself, where it has a function `warm`."""
    prepare = getattr(import_module(name.partition(":")[0]), "warm", None)
    if prepare is not None:
        prepare(run_config)


def call(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the app's answer, or an error with a fixed word: the text of an exception stays here."""
    try:
        return app(message, context)
    except Exception:  # noqa: BLE001 - whatever a foreign app raises is an error reply, as in a deployment
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, Refusal.FAILED.value), reply_to=message)
