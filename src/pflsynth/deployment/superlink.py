"""The SuperLink, Flower's server: started on loopback alone, and asked over its control interface.

That interface is reached by no one but this machine's own processes: see :mod:`pflsynth.deployment.proxy`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from pflsynth.deployment.flower_programs import LOOPBACK, flower_environment, flower_program, free_port
from pflsynth.deployment.keyring import Keyring
from pflsynth.deployment.processes import Child
from pflsynth.deployment.refusals import knock
from pflsynth.errors import NetworkError

Answer = TypeVar("Answer")

ALLOCATION = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Variables for glibc: blocks of 1 MiB or more go back to the system when they are freed. By default it keeps and
scatters what messages took, and the peak of SuperLink and ServerApp creeps up with the number of messages. Each such
block costs fresh pages, so sites, which train, do without. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""


class SuperLink:
    """Flower's server, over TLS on loopback, and what a coordinator asks of its control interface."""

    def __init__(self, folder: Path, ring: Keyring, own: Mapping[str, str]):
        """Describe the server; nothing is started.

        Args:
            folder: of its database and log.
            ring: certificate, key and authority.
            own: environment variables of the ServerApp, which it starts.
        """
        self._ring, self._folder = ring, folder.absolute()
        self.address = f"{LOOPBACK}:{free_port()}"
        command: list[str | Path] = [
            flower_program("flower-superlink"),
            "--host",
            LOOPBACK,
            "--port",
            self.address.rpartition(":")[2],
            "--database",
            self._folder / "superlink.db",
            "--enable-supernode-auth",
            "--ssl-ca-certfile",
            ring.authority_certificate.absolute(),
            "--ssl-certfile",
            ring.server_certificate.absolute(),
            "--ssl-keyfile",
            ring.server_key.absolute(),
        ]
        environment = flower_environment(self._folder / "home", {**ALLOCATION, **own})
        self.child = Child("superlink", command, self._folder, environment)
        os.environ |= {name: environment[name] for name in ("NO_PROXY", "no_proxy")}  # our own requests to it, too

    def remove_database(self) -> None:
        """Remove the database: the bytes of models stay in its free pages."""
        for path in self._folder.glob("superlink.db*"):
            path.unlink(missing_ok=True)

    @property
    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            knock(self.address, self._ring.authority_certificate, timeout=5.0)
        except NetworkError:
            return False
        return True

    def register(self, sites: Sequence[str]) -> None:
        """Let sites connect, each with its own key and under its own name.

        Raises:
            NetworkError: it does not answer, or refuses a key.
        """
        with self._client() as client:
            for site in sites:
                key = serialization.load_ssh_public_key(self._ring.public_key(site).read_bytes())
                form = serialization.PublicFormat.SubjectPublicKeyInfo
                public = key.public_bytes(serialization.Encoding.PEM, form)
                request = RegisterNodeRequest(public_key=public, name=site)
                _asked(f"the key of {site}", partial(client.RegisterNode, request))

    def submit(self) -> int:
        """Have it start our ServerApp.

        Returns:
            Flower's number of the run.

        Raises:
            NetworkError: it does not answer, or refuses.
        """
        with resources.as_file(resources.files("pflsynth.deployment") / "app") as app:
            content = build_fab_from_disk(app)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        with self._client() as client:
            return int(_asked("the app", partial(client.StartRun, StartRunRequest(fab=fab))).run_id)

    def stop_run(self, run: int) -> None:
        """Drop a run whose ServerApp is gone, and its messages; one that has ended already is left alone."""
        with suppress(NetworkError), self._client() as client:
            _asked("the end of a run", partial(client.StopRun, StopRunRequest(run_id=run)))

    def _client(self) -> ControlHttpClient:
        certificate = self._ring.authority_certificate.read_bytes()
        return ControlHttpClient.from_server_address(
            self.address, False, certificate, [RuntimeVersionHttpInterceptor("pflsynth")]
        )


def _asked(what: str, request: Callable[[], Answer]) -> Answer:
    try:
        return request()
    except httpx.HTTPStatusError as refused:
        raise NetworkError(f"Flower's server refuses {what}: {refused.response.text[:300]}") from None
    except httpx.HTTPError as failure:
        raise NetworkError(f"Flower's server does not answer ({type(failure).__name__}: {failure})") from None
