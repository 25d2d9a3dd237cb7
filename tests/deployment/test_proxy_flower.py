"""Flower's own SuperLink behind the proxy, with keys and kits of ``pflsynth keys``: a site's SuperNode works through
it, the control interface does not, and why a SuperNode is refused is named."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pflsynth.config import FederationConfig
from pflsynth.deployment.certificates import Credential
from pflsynth.deployment.keyring import Keyring, make_keyring
from pflsynth.deployment.kits import open_kit, unpack
from pflsynth.deployment.refusals import knock, why_refused
from pflsynth.deployment.site_keys import make_site_key
from pflsynth.errors import NetworkError

from .network import Hosts, flower, flower_environment, free_port, new_hosts, proxy, running, wait_until

pytestmark = pytest.mark.slow

CONFIG = FederationConfig.model_validate(
    {
        "name": "real",
        "contrasts": ["T1w", "T2w"],
        "sites": {"north": {"tasks": ["T1w->T2w"]}, "south": {"tasks": ["T1w->T2w"]}},
    }
)
APP = {
    "LICENSE": "none",
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "echo"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "pflsynth"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "echo.server_app:app"
clientapp = "echo.client_app:app"
""",
    "echo/__init__.py": "",
    "echo/client_app.py": """
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    (array,) = message.content["sent"].to_numpy_ndarrays()
    return Message(RecordDict({"back": ArrayRecord([array + 1])}), reply_to=message)
""",
    "echo/server_app.py": """
import numpy
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    sent = numpy.random.default_rng(0).standard_normal(3_000_000).astype(numpy.float32)  # 12 MB, three objects
    (node,) = list(grid.get_node_ids())
    message = Message(RecordDict({"sent": ArrayRecord([sent])}), dst_node_id=node, message_type="train")
    (reply,) = grid.send_and_receive([message], timeout=120)
    (back,) = reply.content["back"].to_numpy_ndarrays()
    assert numpy.array_equal(back, sent + 1)
    print("echo: all came back")
""",
}


@dataclass(frozen=True)
class Deployed:
    """A SuperLink on loopback, a proxy before it, and one registered site, ``north``, whose kit is opened."""

    folder: Path
    hosts: Hosts
    superlink: int
    proxy: int

    @property
    def north(self) -> Path:
        return self.folder / "north"

    def connection(self, name: str, port: int) -> dict[str, str]:
        """Environment of a ``flwr`` that knows one SuperLink, ``c``, at a port."""
        environment = flower_environment(self.folder / f"home-{name}")
        text = f'[superlink]\ndefault = "c"\n[superlink.c]\naddress = "127.0.0.1:{port}"\n'
        (self.folder / f"home-{name}" / "config.toml").write_text(text + f'root-certificates = "{self.hosts.ca}"\n')
        return environment

    def flwr(self, *words: object, through_proxy: bool = False) -> subprocess.CompletedProcess[str]:
        """Run ``flwr`` against the SuperLink itself, as only the coordinator can, or through the proxy."""
        name, port = ("outside", self.proxy) if through_proxy else ("inside", self.superlink)
        return subprocess.run(
            [flower("flwr"), *map(str, words)],
            env=self.connection(name, port),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def node(self, name: str, address: str, *words: object) -> tuple[list[str | Path], Path, dict[str, str]]:
        """What :func:`running` needs for a SuperNode: command, log and environment."""
        command = [flower("flower-supernode"), "--superlink", address, "--port", str(free_port()), *map(str, words)]
        return command, self.folder / f"{name}.log", flower_environment(self.folder / f"home-{name}")

    def keyed(self, key: Path) -> tuple[object, ...]:
        return ("--root-certificates", self.north / "ca.crt", "--auth-supernode-private-key", key)

    def refused(self, name: str, address: str, *words: object) -> str:
        """Start a SuperNode that must end by itself; returns why, as :func:`why_refused` reads its log."""
        command, log, environment = self.node(name, address, *words)
        with running(command, log, environment) as process:
            wait_until(lambda: process.poll() is not None, f"the end of SuperNode {name}: {log}", 90)
        return why_refused(log.read_text(), address)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    ring = Keyring(folder / "keys")
    north = next(kit for kit in make_keyring(CONFIG, ring.folder, ["127.0.0.1"], 9092, 30) if kit.site == "north")
    unpack(open_kit(north.path, north.passphrase), folder / "north")
    hosts = Hosts(Credential(ring.authority_certificate.read_bytes(), ring.authority_key.read_bytes()), folder)
    hosts.ca.write_bytes(ring.authority_certificate.read_bytes())
    port = free_port()
    tls = ("--ssl-ca-certfile", ring.authority_certificate, "--ssl-certfile", ring.server_certificate)
    command = [
        *(flower("flower-superlink"), "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth"),
        *(*tls, "--ssl-keyfile", ring.server_key, "--database", folder / "superlink.db"),
    ]
    with ExitStack() as stack:
        superlink = running(command, folder / "superlink.log", flower_environment(folder / "home-superlink"))
        stack.enter_context(superlink)
        server = (ring.server_certificate, ring.server_key)
        front = stack.enter_context(proxy(folder / "proxy", hosts, server, port))
        wait_until(lambda: _open(front, hosts.ca), "the SuperLink behind the proxy", 120)
        own = Deployed(folder, hosts, port, front)
        made = own.flwr("supernode", "register", ring.public_key("north"), "c", "--name", "north")
        assert made.returncode == 0, made
        yield own


def _open(port: int, ca: Path) -> bool:
    try:
        knock(f"127.0.0.1:{port}", ca)
    except NetworkError:
        return False
    return True


def test_a_site_works_through_the_proxy_and_none_else_does(deployed: Deployed) -> None:
    """One registered SuperNode does a run with 12 MB in either direction; a run through the proxy is refused."""
    app = deployed.folder / "app"
    for name, text in APP.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    address = f"127.0.0.1:{deployed.proxy}"
    command, log, environment = deployed.node("north", address, *deployed.keyed(deployed.north / "site.key"))
    with running(command, log, environment) as process:
        wait_until(lambda: "SuperNode ID" in log.read_text(), f"SuperNode north: {log}", 90)
        outside = deployed.flwr("run", app, "c", "--stream", through_proxy=True)
        assert outside.returncode != 0
        assert "echo" not in outside.stdout
        assert deployed.flwr("supernode", "list", "c", through_proxy=True).returncode != 0
        inside = deployed.flwr("run", app, "c", "--stream")
        assert "echo: all came back" in inside.stdout + inside.stderr, (inside, log.read_text())
        second = deployed.refused("second", address, *deployed.keyed(deployed.north / "site.key"))
        assert "it has no site with this key, or still counts the site as connected" in second
        assert process.poll() is None
    told = (deployed.folder / "proxy" / "refused.log").read_text()
    assert re.search(r' 404 "POST /v1/control/\S+ HTTP/1.1"', told)
    assert "/v1/control" not in re.sub(r'.* 404 "POST /v1/control.*\n', "", told), "none but the refused ones"


def test_a_key_that_is_not_registered(deployed: Deployed) -> None:
    key = deployed.folder / "unknown.key"
    key.write_bytes(make_site_key("north").private)
    sentence = deployed.refused("unknown", f"127.0.0.1:{deployed.proxy}", *deployed.keyed(key))
    assert "it has no site with this key" in sentence


def test_a_key_that_is_taken_out(deployed: Deployed) -> None:
    made = make_site_key("south")
    key, public = deployed.folder / "south.key", deployed.folder / "south.pub"
    key.write_bytes(made.private)
    public.write_bytes(made.public)
    registered = deployed.flwr("supernode", "register", public, "c", "--name", "south", "--format", "json")
    number = json.loads(registered.stdout)["node-id"]
    address = f"127.0.0.1:{deployed.proxy}"
    command, log, environment = deployed.node("south", address, *deployed.keyed(key))
    with running(command, log, environment) as process:
        wait_until(lambda: "SuperNode ID" in log.read_text(), f"SuperNode south: {log}", 90)
        assert deployed.flwr("supernode", "unregister", number, "c").returncode == 0
        wait_until(lambda: process.poll() is not None, f"the end of SuperNode south: {log}", 90)
    assert "it does not accept this site's key any more" in why_refused(log.read_text(), address)


def test_a_node_without_a_key_and_one_without_tls(deployed: Deployed) -> None:
    address = f"127.0.0.1:{deployed.proxy}"
    keyless = deployed.refused("keyless", address, "--root-certificates", deployed.hosts.ca)
    assert "it serves a site's requests alone, signed with its key" in keyless
    plain = deployed.refused("plain", address, "--insecure")
    assert "it was asked in plain HTTP, but it speaks TLS alone" in plain


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("expired", "its certificate has expired"),
        ("elsewhere", "its certificate is for other hosts"),
        ("stranger", "its certificate is not by the federation's authority"),
    ],
)
def test_certificates_that_a_site_refuses(deployed: Deployed, name: str, cause: str, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    long_ago = new_hosts(tmp_path / "hosts", start=now - datetime.timedelta(days=400))
    host = "127.0.0.2" if name == "elsewhere" else "127.0.0.1"
    when = {"start": now - datetime.timedelta(days=40)} if name == "expired" else {}
    server = long_ago.server(name, ["coordinator.example.org"], **when)
    trusted = deployed.hosts.ca if name == "stranger" else long_ago.ca
    with proxy(tmp_path / "proxy", long_ago, server, deployed.superlink, host=host) as port:
        key = deployed.north / "site.key"
        words = ("--root-certificates", trusted, "--auth-supernode-private-key", key)
        assert cause in deployed.refused(name, f"{host}:{port}", *words)
