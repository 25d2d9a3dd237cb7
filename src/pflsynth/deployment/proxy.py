"""The TLS proxy in front of Flower's SuperLink: nginx, with a configuration that passes on the fleet's requests alone.

Flower 1.41 serves its control, runtime and fleet interfaces on one port, and who reaches the control interface can run
code at every site. So the SuperLink listens on loopback, and what faces the network is this proxy. Each path that it
passes on is matched whole and written anew, so no spelling of another path reaches the SuperLink.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pflsynth.errors import UsageError
from pflsynth.files import write_atomic
from pflsynth.site_file import parse_address

FLEET_PATHS = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    )
)
"""What a SuperNode with a registered key asks for. Flower's other two, ``register-node`` and ``unregister-node``, are
for nodes without keys."""

CONFIG_NAME = "nginx.conf"
REFUSAL_TEXT = "pflsynth: this path is not served to the network"
PLAIN_TEXT = "pflsynth: this port speaks TLS; use https, and the ca.crt of the federation"

_UNSAFE = '"\\$;{}\n'  # what means something in nginx's configuration, also within quotes


@dataclass(frozen=True)
class Limits:
    """What one address on the network may ask for; all of it is enforced by nginx.

    Attributes:
        body_bytes: largest request. Flower cuts every tensor into objects of 5 MiB, one a request, so it does not
            depend on the size of an update.
        header_seconds: for a request's head, and a TLS handshake.
        stall_seconds: between two pieces of a request or of an answer.
        answer_seconds: for the SuperLink to answer.
        idle_seconds: a connection is kept without a request.
        requests_a_second: more are delayed, up to ``burst`` of them; beyond that they are answered 503.
        burst: requests that wait.
        connections: at the same time.
    """

    body_bytes: int = 8 * 1024 * 1024
    header_seconds: int = 10
    stall_seconds: int = 30
    answer_seconds: int = 60
    idle_seconds: int = 60
    requests_a_second: int = 20
    burst: int = 100
    connections: int = 20

    @classmethod
    def for_sites(cls, sites: int) -> Limits:
        """The limits for so many sites, all of which may stand behind one address."""
        return cls(requests_a_second=20 * sites, burst=100 * sites, connections=20 * sites)


@dataclass(frozen=True)
class ProxySettings:
    """Where a proxy listens, what it shows, and where it passes requests on to.

    Attributes:
        listen: address that faces the network, such as ``0.0.0.0:9092``.
        superlink: address of the SuperLink, such as ``127.0.0.1:18000``; it speaks TLS, with a certificate for
            ``localhost`` of the same authority.
        certificate, key: what the proxy shows to the sites, PEM.
        authority: certificate that signed the SuperLink's.
        limits: on requests.
    """

    listen: str
    superlink: str
    certificate: Path
    key: Path
    authority: Path
    limits: Limits


def nginx_program() -> Path:
    """The installed nginx, also where only root's PATH leads (``/usr/sbin``).

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        raise UsageError(
            "nginx is not installed, and only it faces the network; on Debian or Ubuntu: apt install nginx"
        )
    return Path(found)


def write_config(folder: Path, settings: ProxySettings) -> Path:
    """Write nginx's configuration into a folder of the proxy's own, which will hold its logs and temporary files too.

    Args:
        folder: made if it is absent; only its owner may read it.
        settings: see :class:`ProxySettings`.

    Returns:
        The configuration file.

    Raises:
        UsageError: an address that is none, or a path with signs that nginx takes for its own.
    """
    folder = folder.absolute()
    paths = {
        "folder": folder,
        "certificate": settings.certificate.absolute(),
        "key": settings.key.absolute(),
        "authority": settings.authority.absolute(),
    }
    for path in paths.values():
        if any(sign in str(path) for sign in _UNSAFE):
            raise UsageError(
                f'{path}: nginx cannot take this path; use a folder without any of the signs " \\ $ ; {{ }}'
            )
    for address in (settings.listen, settings.superlink):
        try:
            parse_address(address)
        except ValueError as error:
            raise UsageError(str(error)) from None
    environment = Environment(
        loader=PackageLoader("pflsynth.deployment", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = environment.get_template(CONFIG_NAME).render(
        **{name: str(path) for name, path in paths.items()},
        root=os.geteuid() == 0,  # else its worker, another user, could not enter the folder
        listen=settings.listen,
        superlink=settings.superlink,
        limits=settings.limits,
        paths=FLEET_PATHS,
        plain_text=PLAIN_TEXT,
        refusal_text=REFUSAL_TEXT,
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "temporary").mkdir(mode=0o700, exist_ok=True)
    write_atomic(folder / CONFIG_NAME, text.encode(), mode=0o600)
    return folder / CONFIG_NAME


def proxy_command(folder: Path) -> list[str]:
    """Command of the proxy, which stays in the foreground; SIGTERM ends it, SIGHUP reads a renewed certificate."""
    folder = folder.absolute()
    return [
        str(nginx_program()),
        "-p",
        str(folder),
        "-c",
        str(folder / CONFIG_NAME),
        "-e",
        str(folder / "error.log"),
    ]


def check_config(folder: Path) -> None:
    """Let nginx read its configuration, keys and certificates, without serving.

    Raises:
        UsageError: with what it says.
    """
    ended = subprocess.run([*proxy_command(folder), "-t"], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        said = "; ".join(line.partition("] ")[2] or line for line in ended.stderr.splitlines())
        raise UsageError(f"{folder / CONFIG_NAME}: nginx refuses it: {said}")
