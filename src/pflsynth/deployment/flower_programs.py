"""Flower's programs as we start them: silent, in folders of ours, found beside our interpreter."""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from pflsynth.errors import UsageError

SERVER_APP = "flwr-serverapp"
"""The program that runs our half at the coordinator."""

EXECUTOR = "flower-superexec"
"""The program by which SuperLink and SuperNode start the apps; neither starts it again if it dies."""

LOOPBACK = "127.0.0.1"


def need_flower() -> None:
    """Raise UsageError if Flower is not installed."""
    try:
        import flwr  # noqa: F401
    except ImportError:
        raise UsageError('this needs the package flwr: pip install "pflsynth[flower]"') from None


def flower_environment(home: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Environment of every process of Flower.

    It sends no telemetry, asks for no update, installs nothing, keeps its files in ``home``, finds its programs beside
    our interpreter, and reaches loopback directly where the machine has a proxy to the outside.

    Args:
        home: folder of its own.
        own: further variables, for our half of the apps.
    """
    direct = [*os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(","), LOOPBACK, "localhost"]
    no_proxy = ",".join(filter(None, direct))
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(home.absolute()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        **own,
    }


def flower_program(name: str) -> Path:
    """A program of Flower, beside our interpreter.

    Raises:
        UsageError: it is not there.
    """
    program = Path(sys.executable).with_name(name)
    if not program.is_file():
        raise UsageError(f'{program}: is missing; install Flower beside pflsynth: pip install "pflsynth[flower]"')
    return program


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as own:
        own.bind((LOOPBACK, 0))
        return int(own.getsockname()[1])


def answers(port: int, timeout: float = 5.0) -> bool:
    """Whether a program of Flower on this machine answers at its own interface, without TLS."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
