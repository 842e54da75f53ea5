"""Ray, started on this machine or joined: an extra, of which nothing is imported before it is asked for.

A Ray that is started here listens on loopback alone.
"""

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from common.errors import BadInputError, RunFailedError

LOCAL = "local"


def refuse_missing() -> None:
    """Raise BadInputError where Ray is not installed."""
    try:
        metadata.distribution("ray")
    except metadata.PackageNotFoundError as error:
        raise BadInputError(
            "engine.kind: expected 'auto', 'sequential' or 'parallel', as Ray is not installed, got 'ray'. Install Ray "
            "with, in Discreet's checkout: pip install -e '.[ray]' -c constraints.txt"
        ) from error


def joined(address: str, *, count: int) -> Any:
    """Ray, started or joined; RunFailedError where there is none to join."""
    refuse_missing()
    init: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": False}
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # an actor without a share of a GPU sees none
    }
    if address == LOCAL:
        init |= {"num_cpus": count or os.cpu_count() or 1, "include_dashboard": False}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # actors import what this process can
    else:
        _refuse_deaf(address)
        environment["RAY_NUM_REDIS_GET_RETRIES"] = "3"  # of some twenty seconds each, not twenty
    if _is_loopback(address):  # by this switch Ray listens on loopback alone, and finds what does
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with _environment(environment), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)  # about what is set above
        import ray

        if ray.is_initialized():
            raise RunFailedError("Ray is in use in this process. Disconnect from it first, with ray.shutdown().")
        try:
            ray.init(**init)
        except (OSError, ValueError, RuntimeError) as error:
            ray.shutdown()
            raise _unreachable(address, error) from error
    return ray


def _is_loopback(address: str) -> bool:
    """Whether an address is one of this machine alone; `auto` is what RAY_ADDRESS says."""
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    return named == LOCAL or named.rpartition(":")[0] in {"127.0.0.1", "localhost", "[::1]"}


def _refuse_deaf(address: str) -> None:
    """Raise RunFailedError where nobody listens at an address: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> RunFailedError:
    return RunFailedError(
        f"engine.ray_address: expected a Ray cluster that this machine belongs to at '{address}', got: {error}. "
        f"`ray status` says whether there is one."
    )


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Let Ray start with these settings; what that writes into this process's environment is undone."""
    before = dict(os.environ)
    os.environ |= settings
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before
