"""A coordinator and two sites as real processes over TLS with registered keys: the bytes of one process."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import pflsynth.deployment
from pflsynth.deployment.settings import COORDINATOR_VARIABLE, SITE_VARIABLE, CoordinatorSettings
from pflsynth.deployment.status import read_status
from pflsynth.errors import ModelError

from ..tiny import Tiny
from .grid import Hospitals
from .test_same_bytes import assert_same

APP = Path(pflsynth.deployment.__file__).parent / "app"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_certificate(folder: Path) -> None:
    """A server certificate for loopback that is its own authority: ``server.crt`` and ``server.key``."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA384())
    )
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))


def write_key(path: Path) -> None:
    """An OpenSSH key pair of a site."""
    key = ec.generate_private_key(ec.SECP384R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)


@dataclass
class Machines:
    """The processes of a federation, each with its log in the folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, **more: Any) -> dict[str, str]:
        flower = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_HOME": str(self.folder / "flower"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **flower, **{name: str(value) for name, value in more.items()}}

    def start(self, name: str, *words: object, **variables: Any) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                [str(word) for word in words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(**variables),
                start_new_session=True,
            )

    def run(self, *words: object) -> None:
        subprocess.run([str(word) for word in words], check=True, env=self.environment(), timeout=120)

    def wait(self, what: str, there: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not there():
            ended = [name for name, process in self.started.items() if process.poll() is not None]
            assert not ended, f"{ended} ended before {what}: {self.logs()}"
            assert time.monotonic() < until, f"no {what} within {seconds} seconds: {self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def machines(folder: Path) -> Iterator[Machines]:
    """Processes that are ended, each with its children, whatever happens."""
    made = Machines(folder)
    (folder / "flower").mkdir()
    try:
        yield made
    finally:
        for process in reversed(made.started.values()):
            for signal in (15, 9):
                if process.poll() is None:
                    os.killpg(process.pid, signal)
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        continue


@pytest.mark.slow
def test_real_processes_give_the_bytes_of_one(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "sites", tiny.config, tiny.prepared)  # only its folders and settings
    settings = tmp_path / "coordinator.json"
    CoordinatorSettings(hospitals.federation, hospitals.coordinator, gather_s=120.0).write(settings)
    write_certificate(tmp_path)
    tls = ("--ssl-ca-certfile", tmp_path / "server.crt", "--ssl-certfile", tmp_path / "server.crt")
    tls = (*tls, "--ssl-keyfile", tmp_path / "server.key")
    with machines(tmp_path) as made:
        made.start(
            "superlink",
            *("flower-superlink", *tls, "--enable-supernode-auth", "--database", tmp_path / "superlink.db"),
            *("--host", "127.0.0.1", "--port", made.port),
            **{COORDINATOR_VARIABLE: settings},
        )
        (tmp_path / "flower" / "config.toml").write_text(
            f'[superlink.here]\naddress = "127.0.0.1:{made.port}"\nroot-certificates = "{tmp_path / "server.crt"}"\n'
        )
        made.wait("superlink", made.listens, 60)
        for site in tiny.config.participants:
            write_key(tmp_path / f"{site}.key")
            made.run("flwr", "supernode", "register", tmp_path / f"{site}.pub", "here", "--name", site)
            made.start(
                site,
                *("flower-supernode", "--superlink", f"127.0.0.1:{made.port}", *tls, "--port", free_port()),
                *("--root-certificates", tmp_path / "server.crt"),
                *("--auth-supernode-private-key", tmp_path / f"{site}.key"),
                **{SITE_VARIABLE: hospitals.folder / f"{site}.json"},
            )
        made.run("flwr", "run", APP, "here")

        def finished() -> bool:
            try:
                status = read_status(hospitals.coordinator)
            except ModelError:
                return False
            assert status.phase != "stopped", status.problem
            return status.phase == "finished"

        made.wait("end of training", finished, 400)
    assert_same(hospitals, trained)
    sites = read_status(hospitals.coordinator).sites
    assert all(sites[site].finished for site in tiny.config.participants)
