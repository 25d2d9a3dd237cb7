"""Any process of a federation is killed in a round: the training ends all the same, with the same bytes.

And what a coordinator does without sites: it is told to stop, and its certificate is renewed.
"""

from __future__ import annotations

import os
import re
import signal
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pflsynth.config import FederationConfig
from pflsynth.deployment import coordinator_host
from pflsynth.deployment.certificates import certificate_facts
from pflsynth.deployment.coordinator_host import CoordinatorHost
from pflsynth.deployment.keyring import Keyring, renew_server
from pflsynth.deployment.processes import members
from pflsynth.deployment.refusals import knock
from pflsynth.deployment.settings import CoordinatorSettings, work_of
from pflsynth.errors import NetworkError

from ..tiny import Tiny
from .real import Machines, check_end, in_thread, machines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whose", "program"),
    [
        ("north", "flwr-clientapp"),
        pytest.param("serve", "flwr-serverapp", marks=pytest.mark.soak),
        pytest.param("north", "flower-supernode", marks=pytest.mark.soak),
        pytest.param("serve", "flower-superlink", marks=pytest.mark.soak),
        pytest.param("serve", "nginx", marks=pytest.mark.soak),
    ],
)
def test_a_killed_process_is_started_again(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes, whose: str, program: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: bool(made.processes("north", "flwr-clientapp")))
        made.kill(whose, program)
        check_end(made, expected)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["serve", pytest.param("north", marks=pytest.mark.soak)])
def test_a_killed_verb_goes_on_when_it_is_started_again(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes, verb: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: bool(made.processes("north", "flwr-clientapp")))
        made.kill_verb(verb)
        if verb == "serve":
            made.serve()
        else:
            made.join(verb)
        check_end(made, expected)


def answers(made: Machines) -> bool:
    """Whether proxy and SuperLink answer."""
    with suppress(NetworkError):
        knock(f"127.0.0.1:{made.port}", Keyring(made.folder / "keys").authority_certificate)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_coordinator_that_is_told_to_stop_leaves_nothing(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, number: signal.Signals
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.wait("the coordinator", lambda: answers(made))
        assert list(tmp_path.rglob("superlink.db")) != []
        made.started["serve"].send_signal(number)
        assert made.end("serve") == 130
        assert "stopped; go on with: pflsynth serve" in made.said("serve")
        assert members(tmp_path) == []
        assert list(tmp_path.rglob("superlink.db*")) == []


@pytest.mark.slow
def test_a_renewed_certificate_is_taken_up(config: FederationConfig, tiny: Tiny, tmp_path: Path) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.wait("the coordinator", lambda: answers(made))
        ring = Keyring(tmp_path / "keys")
        renew_server(config, ring, ["127.0.0.1", "renewed.example.org"], 90)
        nginx = (work_of(made.run) / "proxy" / "nginx.conf").read_text()
        superlink = re.search(r"server (127\.0\.0\.1):(\d+);", nginx)
        assert superlink is not None

        def shows(port: int) -> bool:
            with suppress(OSError):
                shown = certificate_facts(ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode())
                return "renewed.example.org" in shown.hosts
            return False

        made.wait("the proxy with the new certificate", lambda: shows(made.port))
        made.wait("the superlink with the new certificate", lambda: shows(int(superlink[2])))
        made.wait("the coordinator again", lambda: answers(made))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # within Flower, where it builds the app
def test_a_superlink_that_hangs_is_started_again(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_host, "HEALTH_SECONDS", 0.5)
    told: list[str] = []
    with machines(tmp_path, config, tiny.prepared) as made:
        settings = CoordinatorSettings(made.folder / "federation.toml", made.run)
        host = CoordinatorHost(settings, made.folder / "keys", f"127.0.0.1:{made.port}", told.append)
        with in_thread(host, host.serve) as thread:

            def wait(what: str, true: Callable[[], bool]) -> None:
                made.wait(what, lambda: true() or not thread.is_alive())
                assert thread.is_alive(), made.everything()

            wait("the coordinator", lambda: answers(made))
            (hanging,) = made.processes("serve", "flower-superlink")
            monkeypatch.setattr(coordinator_host, "START_SECONDS", 2.0)
            os.kill(hanging, signal.SIGSTOP)
            wait("its end", lambda: "superlink: does not answer, and is started again" in told)
            monkeypatch.setattr(coordinator_host, "START_SECONDS", 600.0)
            wait("the coordinator again", lambda: answers(made))
            assert hanging not in members(tmp_path)
            wait("the rounds' process", lambda: (made.run / "status.json").is_file())
        assert members(tmp_path) == []
