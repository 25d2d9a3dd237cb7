"""Servers for tests, all on loopback: processes that are ended, a TLS server that records, nginx, and Flower's own."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pflsynth.deployment.certificates import Credential, make_authority, make_server_certificate
from pflsynth.deployment.proxy import Limits, ProxySettings, check_config, nginx_program, proxy_command, write_config
from pflsynth.errors import UsageError

from ..missing import missing


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something on a busy machine; fails the test with its name."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.05)


def listens(host: str, port: int) -> bool:
    with socket.socket() as own:
        own.settimeout(1)
        return own.connect_ex((host, port)) == 0


@contextmanager
def running(command: Sequence[str | Path], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; at the end it and all that it started are killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass(frozen=True)
class Hosts:
    """An authority, and the files of a server certificate by it."""

    authority: Credential
    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def server(self, name: str, hosts: Sequence[str] = ("127.0.0.1",), **when: object) -> tuple[Path, Path]:
        """Write a new certificate and its key; returns their paths."""
        made = make_server_certificate(self.authority, "test", hosts, **{"days": 30, **when})  # type: ignore[arg-type]
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(made.certificate)
        key.write_bytes(made.key)
        return certificate, key


def new_hosts(folder: Path, **when: object) -> Hosts:
    folder.mkdir(parents=True, exist_ok=True)
    hosts = Hosts(make_authority("test", **when), folder)  # type: ignore[arg-type]
    hosts.ca.write_bytes(hosts.authority.certificate)
    return hosts


@dataclass
class Backend:
    """A server that answers every request, and what it was asked."""

    port: int
    asked: list[str] = field(default_factory=list)
    status: int = 200
    date: str | None = None


@contextmanager
def backend(certificate: tuple[Path, Path] | None, host: str = "127.0.0.1") -> Iterator[Backend]:
    """A server on loopback, over TLS unless ``certificate`` is ``None``, that records method and raw path."""
    own = Backend(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            own.asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response_only(own.status)
            self.send_header("Content-Length", "0")
            self.send_header("Date", own.date or self.date_time_string())
            self.end_headers()

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *words: object) -> None:
            """Nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Broken handshakes are what is tested."""

    server = Server((host, 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    own.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield own
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nginx_or_skip() -> None:
    """Without nginx the test is skipped, but fails where CI=true."""
    try:
        nginx_program()
    except UsageError as error:
        missing(str(error))


@contextmanager
def proxy(
    folder: Path,
    hosts: Hosts,
    server: tuple[Path, Path],
    superlink: int,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
) -> Iterator[int]:
    """nginx with our configuration in front of a port; yields its own. Skips without nginx, but fails where CI=true."""
    nginx_or_skip()
    port = free_port()
    settings = ProxySettings(
        f"{host}:{port}", f"127.0.0.1:{superlink}", *server, hosts.ca, limits or Limits.for_sites(4)
    )
    write_config(folder, settings)
    check_config(folder)
    with running(proxy_command(folder), folder / "stderr.log", dict(os.environ)):
        wait_until(lambda: listens(host, port), "nginx")
        yield port


def flower(name: str) -> Path:
    """A program that the package flwr installs beside the interpreter."""
    program = Path(sys.executable).with_name(name)
    if not program.exists() and shutil.which(name) is None:
        pytest.fail(f'{name} is not installed; pip install "pflsynth[flower]"')
    return program


def flower_environment(home: Path) -> dict[str, str]:
    """What Flower needs to stay silent and find its own programs."""
    home.mkdir(parents=True, exist_ok=True)
    own = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    return {**os.environ, **own}
