"""nginx with our configuration: whatever is asked of it, the SuperLink sees the fleet's paths alone.

Here a recording server stands in the SuperLink's place; :mod:`tests.deployment.test_proxy_flower` has Flower's own.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pflsynth.deployment import proxy as module
from pflsynth.deployment.proxy import FLEET_PATHS, Limits, ProxySettings, nginx_program, write_config
from pflsynth.deployment.refusals import knock
from pflsynth.errors import NetworkError, UsageError

from .network import Backend, Hosts, backend, free_port, new_hosts, nginx_or_skip, proxy

WELCOME = {f"POST {path}" for path in FLEET_PATHS} | {"GET /health", "HEAD /health"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    return new_hosts(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def served(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Backend]]:
    """The port of a proxy, and the server behind it."""
    server = hosts.server("server")
    limits = Limits(requests_a_second=5000, burst=5000)
    with backend(server) as behind, proxy(tmp_path_factory.mktemp("p"), hosts, server, behind.port, limits) as port:
        yield port, behind


def asked(port: int, ca: Path, raw: bytes) -> int:
    """Send bytes over TLS; returns the status that is answered, 0 if the connection is broken off."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as own,
    ):
        own.sendall(raw)
        first = own.recv(4096).split(b"\r\n")[0].split()
    return int(first[1]) if len(first) > 1 else 0


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def test_paths_are_those_of_a_supernode_with_a_key() -> None:
    """Another Flower with other paths must be noticed here."""
    from flwr.superlink.routers.fleet.router import router

    routes = {route.path for route in router.routes}
    assert routes == {*FLEET_PATHS, "/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_one_object_of_flower_fits_a_request() -> None:
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE == 5 * 1024 * 1024
    assert Limits().body_bytes > FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 1024 * 1024


def test_the_fleets_paths_are_passed_on(hosts: Hosts, served: tuple[int, Backend]) -> None:
    port, behind = served
    behind.asked.clear()
    for path in FLEET_PATHS:
        assert asked(port, hosts.ca, request("POST", path, b"x" * 100)) == 200
    assert behind.asked == [f"POST {path}" for path in FLEET_PATHS]
    knock(f"127.0.0.1:{port}", hosts.ca)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/list-runs"),
        ("POST", "/v1/runtime/push-messages"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("PUT", "/v1/fleet/push-object"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("POST", "/health"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1/fleet/..%2fcontrol/start-run"),
        ("POST", "/v1/fleet%2f..%2f..%2fv1%2fcontrol%2fstart-run"),
        ("POST", "//v1/control/start-run"),
        ("POST", "http://c/v1/control/start-run"),
    ],
)
def test_other_paths_are_refused(method: str, path: str, hosts: Hosts, served: tuple[int, Backend]) -> None:
    port, behind = served
    behind.asked.clear()
    assert asked(port, hosts.ca, request(method, path)) in (403, 404)
    assert behind.asked == []


@pytest.mark.parametrize(
    "path",
    ["/v1/control/start-run/../../fleet/get-run", "/v1/control/start-run;/../../fleet/get-run", "/v1//fleet/get%2Drun"],
)
def test_other_spellings_of_a_fleets_path_arrive_in_one_spelling(
    path: str, hosts: Hosts, served: tuple[int, Backend]
) -> None:
    port, behind = served
    behind.asked.clear()
    assert asked(port, hosts.ca, request("POST", path)) == 200
    assert behind.asked == ["POST /v1/fleet/get-run"]


PARTS = st.sampled_from(
    [
        *("v1", "fleet", "control", "runtime", "start-run", "get-run", "health", "..", ".", "", ";", "..;", "#", "\\"),
        *("%2e%2e", "%2f", "%2F..", "%252e%252e", "a%00", "control%2fstart-run", "\x01", "é"),
    ]
)


@pytest.mark.slow
@given(
    method=st.sampled_from(["POST", "GET"]),
    parts=st.lists(PARTS, max_size=8),
    query=st.sampled_from(["", "?", "?/../../control/start-run", "?a=1#b"]),
)
def test_no_spelling_reaches_anything_else(
    method: str, parts: list[str], query: str, hosts: Hosts, served: tuple[int, Backend]
) -> None:
    port, behind = served
    behind.asked.clear()
    asked(port, hosts.ca, request(method, "/" + "/".join(parts) + query))
    assert {line.partition("?")[0] for line in behind.asked} <= WELCOME


def test_a_second_request_hidden_in_the_first(hosts: Hosts, served: tuple[int, Backend]) -> None:
    port, behind = served
    behind.asked.clear()
    hidden = request("POST", "/v1/control/start-run")
    for lengths in ("Content-Length: 0\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked, identity"):
        head = f"POST /v1/fleet/get-run HTTP/1.1\r\nHost: c\r\n{lengths}\r\n\r\n0\r\n\r\n"
        asked(port, hosts.ca, head.encode() + hidden)
    assert {line.partition("?")[0] for line in behind.asked} <= WELCOME


def test_plain_http_is_told_to_speak_tls(served: tuple[int, Backend]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=20)
    connection.request("POST", "/v1/fleet/get-run")
    answer = connection.getresponse()
    assert (answer.status, answer.read().decode().strip()) == (400, module.PLAIN_TEXT)
    connection.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_from_1_2_on(version: ssl.TLSVersion, hosts: Hosts, served: tuple[int, Backend]) -> None:
    context = ssl.create_default_context(cafile=str(hosts.ca))
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", served[0]), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as own,
    ):
        assert own.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]


def test_ten_gigabytes_are_refused_before_they_are_sent(hosts: Hosts, served: tuple[int, Backend]) -> None:
    port, behind = served
    behind.asked.clear()
    head = "POST /v1/fleet/push-object HTTP/1.1\r\nHost: c\r\nContent-Length: 10000000000\r\n\r\n"
    assert asked(port, hosts.ca, head.encode()) == 413
    assert behind.asked == []


@pytest.mark.slow
def test_too_many_requests_of_one_address_are_put_off(hosts: Hosts, tmp_path: Path) -> None:
    server = hosts.server("few")
    with (
        backend(server) as behind,
        proxy(tmp_path, hosts, server, behind.port, Limits(requests_a_second=1, burst=1)) as port,
        ThreadPoolExecutor(4) as together,
    ):
        sent = request("POST", "/v1/fleet/get-run")
        answers = sorted(together.map(lambda _: asked(port, hosts.ca, sent), range(4)))
    assert answers == [200, 200, 503, 503], "one at once, one put off, and 503 is what a SuperNode tries again after"
    assert len(behind.asked) == 2
    told = (tmp_path / "refused.log").read_text().splitlines()
    assert len(told) == 2
    assert all('503 "POST /v1/fleet/get-run' in line for line in told)


def test_a_superlink_that_is_not_there(hosts: Hosts, tmp_path: Path) -> None:
    server = hosts.server("alone")
    with (
        proxy(tmp_path, hosts, server, free_port()) as port,
        pytest.raises(NetworkError, match="its proxy answers, but the SuperLink behind it does not"),
    ):
        knock(f"127.0.0.1:{port}", hosts.ca)


def test_a_superlink_of_another_authority_is_not_spoken_to(hosts: Hosts, tmp_path: Path) -> None:
    stranger = new_hosts(tmp_path / "stranger").server("stranger")
    with (
        backend(stranger) as behind,
        proxy(tmp_path / "proxy", hosts, hosts.server("ours"), behind.port) as port,
    ):
        assert asked(port, hosts.ca, request("POST", "/v1/fleet/get-run")) == 502
    assert behind.asked == []


# ----------------------------------------------------------------------------------------------------- configuration


def settings(hosts: Hosts, **changes: object) -> ProxySettings:
    own = {
        "listen": "127.0.0.1:1",
        "superlink": "127.0.0.1:2",
        "certificate": Path("a"),
        "key": Path("b"),
        "authority": hosts.ca,
        "limits": Limits(),
    }
    return ProxySettings(**{**own, **changes})  # type: ignore[arg-type]


def test_limits_grow_with_the_sites_behind_one_address() -> None:
    one, many = Limits.for_sites(1), Limits.for_sites(64)
    assert (many.requests_a_second, many.burst, many.connections) == (
        64 * one.requests_a_second,
        64 * one.burst,
        64 * one.connections,
    )
    assert many.body_bytes == one.body_bytes


@pytest.mark.parametrize("name", ['a"b', "a;b", "a$b", "a{b", "a\nb", "a\\b"])
def test_paths_that_nginx_would_misread(name: str, hosts: Hosts, tmp_path: Path) -> None:
    for change in ({"certificate": tmp_path / name}, {"key": tmp_path / name}, {"authority": tmp_path / name}):
        with pytest.raises(UsageError, match="nginx cannot take this path"):
            write_config(tmp_path / "proxy", settings(hosts, **change))
    with pytest.raises(UsageError, match="nginx cannot take this path"):
        write_config(tmp_path / name, settings(hosts))


def test_spaces_in_paths(hosts: Hosts, tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    own = Hosts(hosts.authority, folder)
    folder.mkdir()
    own.ca.write_bytes(hosts.authority.certificate)
    server = own.server("server")
    with backend(server) as behind, proxy(folder / "the proxy", own, server, behind.port) as port:
        knock(f"127.0.0.1:{port}", own.ca)


@pytest.mark.parametrize("address", ["9092", "c.example", "c.example:0", "c.example:70000", "a b:1", "a:1; user root"])
def test_what_is_no_address(address: str, hosts: Hosts, tmp_path: Path) -> None:
    for change in ({"listen": address}, {"superlink": address}):
        with pytest.raises(UsageError, match="is no address"):
            write_config(tmp_path / "proxy", settings(hosts, **change))


def test_a_certificate_that_is_not_there(hosts: Hosts, tmp_path: Path) -> None:
    nginx_or_skip()
    write_config(tmp_path, settings(hosts, certificate=tmp_path / "server.pem"))
    with pytest.raises(UsageError, match=r"nginx refuses it: .*server.pem.*No such file"):
        module.check_config(tmp_path)


def test_without_nginx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda *words, **more: None)
    with pytest.raises(UsageError, match=r"nginx is not installed, and only it faces the network.*apt install nginx"):
        nginx_program()
