"""The supervisor: children that die, hang, ignore SIGTERM or start others; nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pflsynth.deployment.processes import Child, Keeper, end_members, members, program_of

LONG = 60.0
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
OBEDIENT = STUBBORN.replace("signal.SIG_IGN", "lambda *_: exit(7)")
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def wait(true: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    end_members(tmp_path)


def child(folder: Path, code: str) -> Child:
    return Child("child", [sys.executable, "-c", code], folder / "child", dict(os.environ))


def ready(own: Child) -> Child:
    own.start()
    wait(lambda: "ready" in own.said())
    return own


def test_it_runs_in_its_folder_and_writes_its_log(folder: Path) -> None:
    own = child(folder, "import os; print(os.getcwd())")
    assert not own.alive
    assert own.exit_code is None
    own.start()
    wait(lambda: not own.alive)
    assert own.exit_code == 0
    assert own.log.read_text().strip() == str(folder / "child")
    assert (folder / "child").stat().st_mode & 0o777 == 0o700


def test_what_it_said_is_of_its_last_start(folder: Path) -> None:
    own = child(folder, "print('once')")
    for _ in range(2):
        own.start()
        wait(lambda: not own.alive)
    assert own.said() == "once\n"
    assert own.log.read_text() == "once\nonce\n"


def test_a_long_log_is_put_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pflsynth.deployment.processes.LOG_BYTES", 3)
    own = child(folder, "print('once')")
    for _ in range(2):
        own.start()
        wait(lambda: not own.alive)
    assert own.log.read_text() == own.log.with_name("child.log.1").read_text() == "once\n"


def test_a_program_that_is_not_there_is_named(folder: Path) -> None:
    own = Child("child", ["no-such-program"], folder / "child", dict(os.environ))
    with pytest.raises(FileNotFoundError) as caught:
        own.start()
    assert caught.value.filename == "no-such-program"


def test_one_that_ignores_sigterm_is_killed(folder: Path) -> None:
    own = ready(child(folder, STUBBORN))
    own.stop(seconds=0.2)
    assert own.exit_code == -signal.SIGKILL
    assert members(folder) == []


def test_one_that_obeys_is_not_killed(folder: Path) -> None:
    own = ready(child(folder, OBEDIENT))
    own.stop()
    assert own.exit_code == 7


def test_what_it_started_in_another_session_is_ended_with_it(folder: Path) -> None:
    (folder / "starter.py").write_text(PARENT)
    own = ready(Child("child", [sys.executable, folder / "starter.py"], folder / "child", dict(os.environ)))
    assert len(members(folder)) == 2
    assert own.runs("starter.py")
    own.stop()
    assert not own.runs("starter.py")
    assert members(folder) == []


def test_a_program_that_it_started_is_killed_alone(folder: Path) -> None:
    (folder / "started.py").write_text(STUBBORN)
    own = child(folder, PARENT.replace('"-c", "import time; time.sleep(600)"', f'"{folder}/started.py"'))
    ready(own)
    wait(lambda: own.runs("started.py"))
    own.kill("started.py")
    wait(lambda: not own.runs("started.py"))
    assert own.alive
    own.stop()


def test_what_a_killed_one_had_started_is_ended_before_the_next_start(folder: Path) -> None:
    own = ready(child(folder, PARENT))
    before = set(members(folder))
    own.signal(signal.SIGKILL)
    wait(lambda: not own.alive)
    assert len(members(folder)) == 1
    ready(own)
    assert len(members(folder)) == 2
    assert not before & set(members(folder))
    own.stop()


def test_members_are_of_their_own_folder(folder: Path) -> None:
    own = Child("child", [sys.executable, "-c", PARENT], folder / "run", dict(os.environ))
    other = Child("child", [sys.executable, "-c", PARENT], folder / "run-2", dict(os.environ))
    ready(own)
    ready(other)
    assert len(members(folder / "run")) == 2
    assert len(members(folder)) == 4
    end_members(folder / "run")
    assert members(folder / "run") == []
    assert len(members(folder)) == 2
    other.stop()
    own.stop()


def test_a_child_ends_when_its_supervisor_is_killed(folder: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from pflsynth.deployment.processes import Child
Child("child", [sys.executable, "-c", {PARENT!r}], Path({str(folder)!r}) / "child", dict(os.environ)).start()
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait(lambda: len(members(folder)) == 2)
        leader = next(process for process in members(folder) if os.getsid(process) == process and _starts(process))
    finally:
        supervisor.kill()
        supervisor.wait()
    wait(lambda: leader not in members(folder))
    assert end_members(folder) == 1, "what it had started in another session is found by the next start"
    assert members(folder) == []


def _starts(process: int) -> bool:
    """Whether a process is the one that starts others."""
    return b"subprocess" in (Path("/proc") / str(process) / "cmdline").read_bytes()


def test_programs_are_known_by_their_script(tmp_path: Path) -> None:
    script = tmp_path / "a-script"
    script.write_text("import time; time.sleep(600)")
    for command, name in (([sys.executable, str(script)], "a-script"), (["sleep", "600"], "sleep")):
        with subprocess.Popen(command) as process:
            try:
                wait(lambda process=process, name=name: program_of(process.pid) == name)
            finally:
                process.kill()
    assert program_of(2**22 + 1) == "", "beyond the largest identity of a process"


def test_a_keeper_waits_longer_each_time(folder: Path) -> None:
    told: list[str] = []
    keeper = Keeper(child(folder, "raise SystemExit(3)"), told.append, first_s=0.02, most_s=0.05)
    starts = 0

    def keep() -> bool:
        nonlocal starts
        starts += keeper.keep()
        return starts == 4

    wait(keep)
    keeper.child.stop()
    waits = [line.rpartition("starts again in ")[2] for line in told]
    assert waits[:3] == ["0.02 s", "0.04 s", "0.05 s"]
    assert told[0] == "child: ended by itself (code 3); starts again in 0.02 s"


def test_a_keeper_waits_as_long_as_the_reason_asks_for(folder: Path) -> None:
    told: list[str] = []
    keeper = Keeper(
        child(folder, "print('refused')"), told.append, lambda own: (own.said().strip(), 300.0), first_s=0.01
    )
    assert keeper.keep()
    wait(lambda: not keeper.child.alive)
    assert not keeper.keep()
    assert not keeper.keep()
    assert told == ["child: refused; starts again in 300 s"]


def test_a_keeper_begins_anew_with_one_that_lived_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pflsynth.deployment.processes.CALM_SECONDS", -1.0)
    told: list[str] = []
    keeper = Keeper(child(folder, ""), told.append, first_s=0.01)
    wait(lambda: keeper.keep() is False and len(told) == 3)
    keeper.child.stop()
    assert {line.rpartition(" in ")[2] for line in told} == {"0.01 s"}


def test_a_killed_child_is_told_of_by_its_signal(folder: Path) -> None:
    told: list[str] = []
    keeper = Keeper(child(folder, STUBBORN), told.append)
    assert keeper.keep()
    assert not keeper.keep()
    keeper.child.signal(signal.SIGKILL)
    wait(lambda: not keeper.child.alive)
    assert not keeper.keep()
    assert told == ["child: was killed (SIGKILL); starts again in 1 s"]
