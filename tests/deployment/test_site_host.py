"""Joining: what is checked first, what a SuperNode's log comes to, when a site gives up, leaves or stays."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pflsynth.config_files import load_config, toml_bytes
from pflsynth.deployment import site_host
from pflsynth.deployment.flower_programs import LOOPBACK
from pflsynth.deployment.keyring import make_keyring
from pflsynth.deployment.kits import open_kit, unpack
from pflsynth.deployment.processes import members
from pflsynth.deployment.settings import log_of, work_of
from pflsynth.deployment.site_host import SiteHost, site_settings
from pflsynth.errors import NetworkError, UsageError

from ..tiny import Tiny, pflsynth
from .network import Backend, backend, free_port

REFUSED = """
print("Exit Code: 305")
print("[code: 2004] Failed to activate")
raise SystemExit(1)
"""

FORGOTTEN = """
import time
print("SuperNode ID: 7", flush=True)
time.sleep(0.3)
print("SuperNode terminated gracefully.")
"""

REFUSED_ONCE = """
import pathlib, time
if not pathlib.Path("refused").exists():
    pathlib.Path("refused").touch()
    print("Exit Code: 305")
    print("[code: 2004] Failed to activate")
    raise SystemExit(1)
time.sleep(600)
"""

SERVED = """
import json, os, sys, time
from pathlib import Path
log = Path(json.loads(Path(os.environ["PFLSYNTH_SITE"]).read_text())["run"] + ".log.jsonl")
def say(text):
    print("INFO :      " + text, flush=True)
say("SuperNode ID: 7")
time.sleep(0.3)
for kind, outcome in (("train", "answered: trained, 0.1 MB"), ("finish", "answered: finished, 0.0 MB")):
    say("Receiving: train message (ID: 1)")
    with log.open("a") as file:
        file.write(json.dumps({"message": kind, "outcome": outcome}) + "\\n")
    time.sleep(0.3)
    say("Sent successfully")
time.sleep(600)
"""


@dataclass
class Hospital:
    """A site's folder from its kit, a coordinator that answers to ``/health``, and what was told."""

    site_toml: Path
    server: Backend
    told: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.site_toml.parent / "run"

    def host(self) -> SiteHost:
        return SiteHost(*site_settings(load_config(self.site_toml)), self.told.append)

    def lose_and_find(self, word: str) -> SiteHost:
        """Join; the coordinator goes away when ``word`` is told, and is there again when that was told."""

        class Found(Exception):  # noqa: N818
            """Ends the verb in the test."""

        def tell(text: str) -> None:
            self.told.append(text)
            if word in text:
                self.server.status = 502
            if "goes on trying" in text:
                self.server.status = 200
            if "is there again" in text:
                raise Found

        host = self.host()
        host._tell = host._keeper._tell = tell
        with pytest.raises(Found):
            host.join()
        return host

    def change(self, before: str, after: str) -> None:
        text = self.site_toml.read_text()
        assert before in text
        self.site_toml.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def keys(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the tiny federation, and north's opened kit."""
    folder = tmp_path_factory.mktemp("keys")
    kit = make_keyring(tiny.config, folder / "keys", ["127.0.0.1"], 9092, 90)[0]
    unpack(open_kit(kit.path, kit.passphrase), folder / "north")
    return folder


@pytest.fixture
def hospital(tiny: Tiny, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    quick = {"LOOK_SECONDS": 0.01, "AGAIN_SECONDS": 0.0, "WAIT_SECONDS": 0.05, "LINGER_KNOCK_SECONDS": 0.05}
    for name, seconds in quick.items():
        monkeypatch.setattr(site_host, name, seconds)
    folder = tmp_path / "north"
    shutil.copytree(keys / "north", folder)
    (folder / "prepared").symlink_to(tiny.prepared)
    coordinator = keys / "keys" / "coordinator"
    with backend((coordinator / "server.pem", coordinator / "server.key")) as server:
        made = Hospital(folder / "site.toml", server)
        made.change(":9092", f":{server.port}")
        yield made


@pytest.fixture
def supernode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of Flower's program."""

    def put(code: str) -> None:
        script = tmp_path / "supernode.py"
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(site_host, "flower_program", lambda _: script)

    return put


def test_a_key_that_is_never_accepted_ends_the_verb(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "REFUSED_SECONDS", 0.3)
    supernode(REFUSED)
    with pytest.raises(NetworkError, match="it has no site with this key, or still counts the site as connected"):
        hospital.host().join()
    assert "supernode: coordinator 127.0.0.1" in hospital.told[0]
    assert "starts again in 1 s" in hospital.told[0]
    assert members(work_of(hospital.run)) == []


def test_a_site_shows_its_rounds_and_leaves_when_its_answer_was_fetched(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "LINGER_SECONDS", 0.5)
    supernode(SERVED)
    hospital.host().join()
    assert hospital.told == [
        f"connected to 127.0.0.1:{hospital.server.port} as north",
        "train: answered: trained, 0.1 MB",
        "finish: answered: finished, 0.0 MB",
        "stays connected until the coordinator has fetched the last answer",
    ]
    assert members(work_of(hospital.run)) == []


def test_a_site_leaves_at_once_when_the_coordinator_is_gone(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "LINGER_SECONDS", 1e9)
    supernode(SERVED)
    hospital.server.status = 502
    hospital.host().join()
    assert "goes on trying" not in " ".join(hospital.told)


def test_a_lost_and_found_coordinator_is_told_of_once(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "KNOCK_SECONDS", 0.02)
    supernode("import time\nprint('SuperNode ID: 7', flush=True)\ntime.sleep(600)")
    hospital.lose_and_find("connected")
    assert len(hospital.told) == 3
    assert "its proxy answers, but the SuperLink behind it does not" in hospital.told[1]
    assert members(work_of(hospital.run)) == []


def test_a_supernode_that_hangs_is_stopped(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "HANG_SECONDS", 0.3)
    supernode("import time\ntime.sleep(600)")
    host = hospital.host()
    host._node.start()
    try:
        host._check_answers(host._node.started)
        assert host._node.alive
        host._check_answers(host._node.started + 1)
        assert not host._node.alive
    finally:
        host._node.stop()
    assert hospital.told == ["supernode: does not answer, and is started again"]


def test_a_supernode_that_answers_is_left_alone(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "HANG_SECONDS", -1.0)
    supernode("import time\ntime.sleep(600)")
    host = hospital.host()
    with backend(None, LOOPBACK) as own:
        host._port = own.port
        host._node.start()
        try:
            host._check_answers(time.monotonic())
            assert host._node.alive
            own.status = 503
            host._check_answers(time.monotonic())
            assert not host._node.alive
        finally:
            host._node.stop()
    assert own.asked == ["GET /health"] * 2


def test_a_refused_site_whose_coordinator_goes_away_is_not_refused(
    hospital: Hospital, supernode: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "REFUSED_SECONDS", 0.3)
    monkeypatch.setattr(site_host, "KNOCK_SECONDS", 0.05)
    supernode(REFUSED_ONCE)
    host = hospital.lose_and_find("it has no site with this key")
    assert host._refused_since is None
    assert len(hospital.told) == 3


def test_a_coordinator_that_was_started_again_is_connected_to_anew(
    hospital: Hospital, supernode: Callable[[str], None]
) -> None:
    supernode(FORGOTTEN)
    host = hospital.host()
    told = hospital.told

    class Twice(Exception):  # noqa: N818
        """Ends the verb in the test."""

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise Twice

    host._tell = host._keeper._tell = tell
    with pytest.raises(Twice):
        host.join()
    assert "does not know this connection any more, as after a start of its own; starts again in 1 s" in told[1]
    assert told[0] == told[2] == f"connected to 127.0.0.1:{hospital.server.port} as north"


def test_two_of_one_site_are_refused(hospital: Hospital, supernode: Callable[[str], None]) -> None:
    supernode("import time\nprint('SuperNode ID: 7', flush=True)\ntime.sleep(600)")
    first, second = hospital.host(), hospital.host()
    connected, stop = threading.Event(), threading.Event()

    class Stopped(Exception):  # noqa: N818
        """Ends the verb in the test."""

    def look() -> bool:
        if stop.is_set():
            raise Stopped
        done = SiteHost._look(first)
        connected.set()
        return done

    first._look = look  # type: ignore[method-assign]

    def join() -> None:
        with pytest.raises(Stopped):
            first.join()

    thread = threading.Thread(target=join)
    thread.start()
    try:
        assert connected.wait(60)
        with pytest.raises(UsageError, match="another pflsynth join of this site is running"):
            second.join()
    finally:
        stop.set()
        thread.join()


def test_a_coordinator_that_comes_later_is_waited_for(hospital: Hospital) -> None:
    hospital.server.status = 503
    host = hospital.host()

    def tell(text: str) -> None:
        hospital.told.append(text)
        hospital.server.status = 200

    host._tell = tell
    host.reach(wait=True)
    assert len(hospital.told) == 1
    assert hospital.told[0].endswith("it is starting, or has stopped; waits for it")


def test_what_does_not_pass_is_not_waited_for(hospital: Hospital) -> None:
    hospital.server.date = "Mon, 01 Jan 2024 00:00:00 GMT"
    with pytest.raises(NetworkError, match="the clock of this machine is"):
        hospital.host().reach(wait=True)


def test_the_verb_says_that_nothing_listens_there(hospital: Hospital) -> None:
    port = free_port()
    hospital.change(f":{hospital.server.port}", f":{port}")
    ended = pflsynth("join", hospital.site_toml, "--no-wait")
    assert ended.code == 5
    assert f"error: coordinator 127.0.0.1:{port}: nothing listens there" in ended.err
    assert f"✓ {hospital.site_toml}: agreement" in ended.out


def test_the_verb_refuses_a_federation(tiny: Tiny) -> None:
    ended = pflsynth("join", tiny.path)
    assert ended.code == 2
    assert "a hospital joins with its own site.toml" in ended.err


@pytest.mark.parametrize("key", ["coordinator", "certificate", "key", "prepared", "run"])
def test_the_verb_names_what_site_toml_lacks(hospital: Hospital, key: str) -> None:
    hospital.change(f"\n{key} = ", f"\n# {key} = ")
    ended = pflsynth("join", hospital.site_toml)
    assert ended.code == 2
    assert f"joining needs the key(s) {key};" in ended.err


def test_the_verb_names_a_file_of_the_kit_that_is_gone(hospital: Hospital) -> None:
    (hospital.site_toml.parent / "site.key").unlink()
    ended = pflsynth("join", hospital.site_toml)
    assert ended.code == 2
    assert "site.key: there is no such file; it is in the site's kit" in ended.err


def test_the_verb_refuses_data_that_is_not_prepared(hospital: Hospital) -> None:
    (hospital.site_toml.parent / "prepared").unlink()
    ended = pflsynth("join", hospital.site_toml)
    assert ended.code == 3
    assert "prepared" in ended.err


def test_the_verb_refuses_a_run_of_another_agreement(hospital: Hospital) -> None:
    hospital.host()
    federation = hospital.site_toml.parent / "federation.toml"
    agreement = load_config(federation).federation.agreement()
    federation.write_bytes(toml_bytes({**agreement, "seed": 4}))
    ended = pflsynth("join", hospital.site_toml)
    assert ended.code == 4
    assert "seed is 3 in the run, 4 now" in ended.err


def test_settings_are_written_for_the_app(hospital: Hospital, supernode: Callable[[str], None]) -> None:
    supernode(SERVED)
    hospital.server.status = 502
    hospital.host().join()
    settings = json.loads((work_of(hospital.run) / "site.json").read_text())
    assert settings["site"] == "north"
    assert Path(settings["federation"]) == hospital.site_toml
    assert Path(settings["run"]) == hospital.run
    assert log_of(hospital.run).is_file()
