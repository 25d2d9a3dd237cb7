"""Serving: what is refused before anything is started, and when the rounds' process is started again or given up."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pflsynth.config_files import toml_bytes
from pflsynth.deployment import rounds_process
from pflsynth.deployment.certificates import Credential, make_server_certificate
from pflsynth.deployment.keyring import Keyring, make_keyring
from pflsynth.deployment.rounds_process import RoundsProcess
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.status import StatusFile, mark_stopped, read_status
from pflsynth.errors import ModelError
from pflsynth.runs import RunDirectory, RunState

from ..tiny import Ended, Tiny, changed, pflsynth
from .network import free_port


@dataclass
class Clock:
    """Time that passes when the test says so."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class FakeChild:
    """A process that is killed by the names of the programs that it started."""

    log: Path = Path("superlink.log")
    killed: list[str] = field(default_factory=list)

    def kill(self, program: str) -> None:
        self.killed.append(program)


@dataclass
class FakeSuperLink:
    """Counts runs."""

    submitted: int = 0
    stopped: list[int] = field(default_factory=list)
    child: FakeChild = field(default_factory=FakeChild)

    def submit(self) -> int:
        self.submitted += 1
        return self.submitted

    def stop_run(self, run: int) -> None:
        self.stopped.append(run)


@dataclass
class Rounds:
    """The watch over the process that runs the rounds, and what it would find."""

    settings: CoordinatorSettings
    clock: Clock
    told: list[str]
    superlink: FakeSuperLink
    app: RoundsProcess
    starts: int = 0

    def begins(self) -> None:
        """The process appears and writes its status."""
        assert not self.app.look(True)
        self.starts += 1
        self.file = StatusFile(self.settings.run, ["north", "south"], rounds=3, quorum=2)
        self.file.now.started = f"start {self.starts}"
        self.file.write(phase="waiting")

    def ends(self, **told: Any) -> bool:
        """The process is gone, after it told this."""
        if told:
            self.file.write(**told)
        return self.app.look(False)

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds


@pytest.fixture
def rounds(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    clock, told, superlink = Clock(), list[str](), FakeSuperLink()
    monkeypatch.setattr(rounds_process.time, "monotonic", clock.monotonic)
    settings = CoordinatorSettings(tiny.path, tmp_path / "run")
    RunDirectory.create(settings.run, tiny.config, None, {}, ["north", "south"], ())
    app = RoundsProcess(superlink, settings, told.append)  # type: ignore[arg-type]
    return Rounds(settings, clock, told, superlink, app)


def test_a_finished_training_is_finished(rounds: Rounds) -> None:
    assert not rounds.app.look(False)
    rounds.begins()
    assert rounds.ends(phase="finished")
    assert rounds.superlink.submitted == 1


def test_the_status_of_an_earlier_start_counts_for_nothing(rounds: Rounds) -> None:
    StatusFile(rounds.settings.run, ["north"], rounds=3, quorum=1).write(phase="finished")
    assert not rounds.app.look(False)
    assert not rounds.app.look(True)
    assert not rounds.app.look(False), "killed before it wrote a status of its own"
    assert rounds.superlink.stopped == [1]


def test_a_killed_process_is_submitted_again_and_its_run_dropped(rounds: Rounds) -> None:
    rounds.app.look(False)
    rounds.begins()
    assert not rounds.ends(phase="training")
    assert rounds.superlink.stopped == [1]
    assert rounds.told == [
        "the process that runs the rounds was killed, or could not begin; goes on after round 0 in 1 s"
    ]
    assert not rounds.app.look(False)
    assert rounds.superlink.submitted == 1
    rounds.passes(1.0)
    rounds.app.look(False)
    assert rounds.superlink.submitted == 2
    rounds.begins()
    assert rounds.ends(phase="finished")


def test_a_process_that_does_not_appear_is_submitted_again(rounds: Rounds) -> None:
    rounds.app.look(False)
    rounds.passes(rounds_process.APPEAR_SECONDS - 1)
    assert not rounds.app.look(False)
    assert rounds.told == []
    rounds.passes(2)
    assert not rounds.app.look(False)
    assert len(rounds.told) == 1


def test_a_process_that_hangs_is_killed_and_submitted_again(rounds: Rounds) -> None:
    rounds.app.look(False)
    rounds.begins()
    for _ in range(3):
        rounds.passes(rounds_process.HANG_SECONDS)
        rounds.file.write(phase="training")
        os.utime(rounds.settings.run / "status.json", (rounds.clock.now, rounds.clock.now))
        assert not rounds.app.look(True)
    rounds.passes(rounds_process.HANG_SECONDS + rounds.settings.retry_s)
    assert not rounds.app.look(True)
    assert rounds.superlink.child.killed == []
    rounds.passes(1)
    assert not rounds.app.look(True)
    assert rounds.superlink.child.killed == ["flwr-serverapp"]
    assert rounds.told == ["the process that runs the rounds has hung for 361 s, and is killed"]
    assert not rounds.ends()
    assert rounds.superlink.stopped == [1]


def test_an_error_that_would_come_again_is_raised(rounds: Rounds) -> None:
    rounds.app.look(False)
    rounds.begins()
    with pytest.raises(ModelError, match=r"^no quorum within 5 seconds$"):
        rounds.ends(phase="stopped", problem="no quorum within 5 seconds", lasting=True)


def test_an_error_that_may_pass_is_tried_again_after_longer_and_longer(rounds: Rounds) -> None:
    problem = "No space left on device"
    for _ in range(10):
        rounds.passes(60)
        rounds.app.look(False)
        rounds.begins()
        assert not rounds.ends(phase="stopped", problem=problem)
    rounds.passes(60)
    rounds.app.look(False)
    rounds.begins()
    with pytest.raises(ModelError, match=rf"^{problem}; gave up after 10 attempts .* after round 0$"):
        rounds.ends(phase="stopped", problem=problem)
    waits = [line.rpartition(" in ")[2] for line in rounds.told]
    assert waits == ["1 s", "2 s", "4 s", "8 s", "16 s", "32 s", "60 s", "60 s", "60 s", "60 s"]


def test_a_whole_round_counts_as_progress(rounds: Rounds) -> None:
    for number in range(1, 15):
        rounds.passes(60)
        rounds.app.look(False)
        rounds.begins()
        RunDirectory(rounds.settings.run).save_state(RunState(round=number, bases={"north": 0, "south": 0}))
        assert not rounds.ends(phase="training")
    assert rounds.told[-1].endswith("goes on after round 14 in 1 s")


def test_a_lost_superlink_has_no_run(rounds: Rounds) -> None:
    rounds.app.look(False)
    rounds.begins()
    rounds.app.lost()
    assert not rounds.app.look(False)
    assert rounds.superlink.submitted == 2
    assert rounds.superlink.stopped == rounds.told == []


def test_a_stop_is_marked_unless_the_training_is_finished(tmp_path: Path) -> None:
    mark_stopped(tmp_path, "no status, nothing to mark")
    assert not any(tmp_path.iterdir())
    file = StatusFile(tmp_path, ["north"], rounds=3, quorum=1)
    file.write(phase="training")
    mark_stopped(tmp_path, "told to stop")
    assert (read_status(tmp_path).phase, read_status(tmp_path).problem) == ("stopped", "told to stop")
    file.write(phase="finished")
    mark_stopped(tmp_path, "told to stop")
    assert (read_status(tmp_path).phase, read_status(tmp_path).problem) == ("finished", None)


@pytest.fixture(scope="module")
def keys(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "keys"
    make_keyring(tiny.config, folder, ["127.0.0.1"], 9092, 90)
    return folder


Serve = Callable[..., Ended]


@pytest.fixture
def serve(tiny: Tiny, keys: Path, tmp_path: Path) -> Serve:
    """The verb, in this process; every call must be refused before anything is started."""

    def call(*words: object, federation: Path = tiny.path, keys: Path = keys) -> Ended:
        listen = ("--listen", f"127.0.0.1:{free_port()}") if "--listen" not in words else ()
        return pflsynth("serve", federation, "--run", tmp_path / "run", "--keys", keys, *listen, *words)

    return call


def test_a_site_toml_is_refused(serve: Serve, tiny: Tiny, tmp_path: Path) -> None:
    site_toml = tmp_path / "site.toml"
    site_toml.write_text(f'site = "north"\nfederation = "{tiny.path}"\ndata = "data"\n')
    ended = serve(federation=site_toml)
    assert (ended.code, "the coordinator serves federation.toml" in ended.err) == (2, True)


def test_missing_keys_are_named(serve: Serve, tmp_path: Path) -> None:
    ended = serve(keys=tmp_path / "none")
    assert ended.code == 2
    assert "make keys with: pflsynth keys" in ended.err


def test_a_site_without_a_key_is_named(serve: Serve, tiny: Tiny, keys: Path, tmp_path: Path) -> None:
    sites = {**tiny.config.model_dump(mode="json")["sites"], "west": {"tasks": ["T1w->T2w"]}}
    federation = tmp_path / "more.toml"
    federation.write_bytes(toml_bytes({**tiny.config.agreement(), "sites": sites}))
    ended = serve(federation=federation)
    assert ended.code == 2
    assert f"has no key of west; make it with: pflsynth keys {federation} --out {keys} --site west" in ended.err


def test_an_expired_certificate_is_refused(serve: Serve, tiny: Tiny, tmp_path: Path) -> None:
    make_keyring(tiny.config, tmp_path / "keys", ["127.0.0.1"], 9092, 90)
    ring = Keyring(tmp_path / "keys")
    authority = Credential(ring.authority_certificate.read_bytes(), ring.authority_key.read_bytes())
    start = datetime.now(UTC) - timedelta(days=10)
    old = make_server_certificate(authority, "tiny", ["127.0.0.1"], 5, start)
    ring.server_certificate.write_bytes(old.certificate)
    ended = serve(keys=ring.folder)
    assert ended.code == 2
    assert "expired on" in ended.err
    assert "--renew-server" in ended.err


def test_an_address_that_is_taken_is_refused(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = serve("--listen", address)
    assert ended.code == 2
    assert f"--listen {address}: cannot listen there (Address already in use)" in ended.err
    assert "is no address" in serve("--listen", "9092").err


def test_a_run_of_another_agreement_is_refused(serve: Serve, tiny: Tiny, tmp_path: Path) -> None:
    other = changed(tiny.config, seed=4)
    RunDirectory.create(tmp_path / "run", other, None, {}, ["north", "south"], ())
    ended = serve()
    assert ended.code == 4
    assert "seed is 4 in the run, 3 now" in ended.err


def test_a_method_that_pools_data_is_refused(serve: Serve, tiny: Tiny, tmp_path: Path) -> None:
    federation = tmp_path / "central.toml"
    federation.write_bytes(toml_bytes({**tiny.config.agreement(), "method": "pix2pix"}))
    ended = serve(federation=federation)
    assert ended.code == 2
    assert "cannot be trained across machines" in ended.err


def test_nginx_that_is_missing_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pflsynth.deployment.proxy.shutil.which", lambda *_, **__: None)
    ended = serve()
    assert ended.code == 2
    assert "nginx is not installed" in ended.err


def test_settings_that_are_not_possible_are_refused(serve: Serve) -> None:
    assert serve("--wave", 0).code == 2
    assert serve("--deadline", -1).code == 2


def test_the_settings_reach_the_rounds(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(CoordinatorSettings(tiny.path, tmp_path / "run"), wave=3, patience_s=9.0)
    settings.write(tmp_path / "coordinator.json")
    monkeypatch.setenv("PFLSYNTH_COORDINATOR", str(tmp_path / "coordinator.json"))
    assert CoordinatorSettings.from_environment() == settings
