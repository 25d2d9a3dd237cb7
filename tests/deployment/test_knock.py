"""Whatever keeps a site from its coordinator is named, as real sockets and real TLS handshakes show it."""

from __future__ import annotations

import datetime
import email.utils
import socket
from pathlib import Path

import pytest

from pflsynth.deployment import refusals
from pflsynth.deployment.refusals import knock, why_refused
from pflsynth.errors import NetworkError, UsageError

from .network import Hosts, backend, free_port, new_hosts

NOW = datetime.datetime.now(datetime.UTC)
YEAR = datetime.timedelta(days=365)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    return new_hosts(tmp_path_factory.mktemp("hosts"), start=NOW - 2 * YEAR)


def knocked(port: int, ca: Path, host: str = "127.0.0.1") -> str:
    with pytest.raises(NetworkError) as refusal:
        knock(f"{host}:{port}", ca, timeout=10)
    assert refusal.value.exit_code == 5
    assert str(refusal.value).startswith(f"coordinator {host}:{port}: ")
    return str(refusal.value)


def test_the_right_one_is_let_pass(hosts: Hosts) -> None:
    with backend(hosts.server("right")) as server:
        knock(f"127.0.0.1:{server.port}", hosts.ca)
        knock(f"localhost:{server.port}", hosts.ca)
    assert server.asked == ["GET /health"] * 2


def test_an_expired_certificate(hosts: Hosts) -> None:
    with backend(hosts.server("old", start=NOW - YEAR)) as server:
        sentence = knocked(server.port, hosts.ca)
    assert "its certificate has expired; the coordinator renews it with: pflsynth keys" in sentence
    assert f"valid {NOW - YEAR - datetime.timedelta(hours=1):%Y-%m-%d} to" in sentence
    assert server.asked == []


def test_a_certificate_of_tomorrow(hosts: Hosts) -> None:
    with backend(hosts.server("early", start=NOW + datetime.timedelta(days=2))) as server:
        assert "is not yet valid; set the clock of this machine" in knocked(server.port, hosts.ca)


def test_another_host_name(hosts: Hosts) -> None:
    with backend(hosts.server("other", ["coordinator.example.org"]), "127.0.0.2") as server:
        sentence = knocked(server.port, hosts.ca, "127.0.0.2")
    assert "its certificate is for other hosts" in sentence
    assert "it shows one for coordinator.example.org, localhost, 127.0.0.1" in sentence


def test_another_authority(hosts: Hosts, tmp_path: Path) -> None:
    others = new_hosts(tmp_path)
    with backend(hosts.server("ours")) as server:
        sentence = knocked(server.port, others.ca)
    assert "its certificate is not by the federation's authority" in sentence


def test_plain_http_where_tls_is_wanted(hosts: Hosts) -> None:
    with backend(None) as server:
        assert "what answers there does not speak TLS" in knocked(server.port, hosts.ca)


def test_nothing_listens(hosts: Hosts) -> None:
    assert "nothing listens there" in knocked(free_port(), hosts.ca)


def test_a_server_that_says_nothing(hosts: Hosts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(NetworkError, match="it does not answer"):
        knock(f"127.0.0.1:{silent.getsockname()[1]}", hosts.ca, timeout=0.2)


def test_a_host_that_is_unknown(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*words: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert "its host name is unknown; check coordinator in site.toml" in knocked(9092, hosts.ca, "nowhere.invalid")


@pytest.mark.parametrize(
    ("status", "cause"),
    [(502, "its proxy answers, but the SuperLink behind it does not"), (404, r"cannot be reached (HTTP 404)")],
)
def test_other_answers(hosts: Hosts, status: int, cause: str) -> None:
    with backend(hosts.server("answers")) as server:
        server.status = status
        assert cause in knocked(server.port, hosts.ca)


@pytest.mark.parametrize(
    ("seconds", "cause"),
    [(-720, "12 minutes ahead of"), (720, "12 minutes behind"), (-180, "3 minutes ahead of"), (240, None), (-2, None)],
)
def test_clocks(hosts: Hosts, seconds: int, cause: str | None) -> None:
    with backend(hosts.server("clock")) as server:
        there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds + 1)
        server.date = email.utils.format_datetime(there, usegmt=True)
        if cause is None:
            knock(f"127.0.0.1:{server.port}", hosts.ca)
        else:
            assert f"the clock of this machine is {cause} the coordinator's" in knocked(server.port, hosts.ca)


def test_the_limits_of_clocks_are_flowers() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert refusals.AHEAD_SECONDS == SYSTEM_TIME_TOLERANCE
    assert refusals.BEHIND_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_certificate_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ca\.crt: there is no such file"):
        knock("127.0.0.1:1", tmp_path / "ca.crt")
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(UsageError, match=r"ca\.crt: holds no certificate"):
        knock("127.0.0.1:1", tmp_path / "ca.crt")


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "does not speak TLS"),
        ("SSL/TLS handshake error detected.\ncertificate has expired (_ssl.c:1006)", "has expired"),
        ("Client error '413 Request Entity Too Large' for url", "larger than it takes"),
        ("SuperNode ID: 14130500\nStarted server process [413]\nsomething new", r"cannot be reached (something new)"),
        ("", "nothing was said"),
    ],
)
def test_what_logs_say(said: str, cause: str) -> None:
    assert cause in why_refused(said, "c.example:9092")
