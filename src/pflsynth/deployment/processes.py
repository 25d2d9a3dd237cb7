"""Processes of ours: started, watched, started again after a while, and ended with all that they started.

Flower's programs start others in sessions of their own, so neither a process group nor a list of identities reaches
all of them. Every process inherits the name of its folder in an environment variable instead, by which :func:`members`
finds it, also after whoever started it was killed. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

VARIABLE = "PFLSYNTH_PROCESS"
"""Environment variable that names the folder which a process was started for."""

LOG_BYTES = 16 * 2**20
"""A log that is longer is put aside, under the name of the log and ``.1``, at the next start."""

KILL_SECONDS = 10.0
"""How long :meth:`Child.stop` lets a process end by itself; Flower's programs take up to 5 s."""

CALM_SECONDS = 120.0
"""A process that lived as long is started again at once, as if for the first time."""


_NGINX_TITLE = b"nginx: "


def members(folder: Path) -> list[int]:
    """Identities of the processes that were started for a folder or a folder in it, and of all that they started."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_of(entry, folder)]


def program_of(process: int) -> str:
    """What a process runs: the name of its program, or of the script that its interpreter runs; empty if it is gone."""
    with suppress(OSError):
        line = (Path("/proc") / str(process) / "cmdline").read_bytes()
        if line.startswith(_NGINX_TITLE):
            return "nginx"
        words = line.split(b"\0")
        names = [Path(os.fsdecode(word)).name for word in words[:2]]
        return names[1] if names[0].startswith("python") and len(names) > 1 else names[0]
    return ""


def end_members(folder: Path, seconds: float = KILL_SECONDS) -> int:
    """Kill what :func:`members` finds, until nothing is left.

    Returns:
        How many there were at first.
    """
    first = found = members(folder)
    until = time.monotonic() + seconds
    while found and time.monotonic() < until:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
        found = members(folder)
    return len(first)


class Child:
    """A process that is started again and again, with a folder and a log of its own."""

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]):
        """Describe the process; nothing is started.

        Args:
            name: for people, and of its log, ``NAME.log`` in the folder.
            command: program and arguments.
            folder: it runs there; made at the start if it is absent. No other child may have it.
            environment: all of it.
        """
        self.name, self.folder = name, folder.absolute()
        self._command, self._environment = [str(word) for word in command], dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self.started = 0.0
        """When it was last started, by the monotonic clock."""

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.folder / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        """Whether the process itself runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; negative: by this signal. ``None`` while it runs, or if it never did."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, after the end of all that an earlier start left.

        When this process dies, however it does, the child gets SIGTERM.

        Raises:
            OSError: the program is not there, or the disk is full.
        """
        self._clear()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        tether = shutil.which("setpriv")
        if shutil.which(self._command[0], path=self._environment.get("PATH")) is None:
            raise FileNotFoundError(2, "there is no such program", self._command[0])
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*((tether, "--pdeathsig", "TERM", "--") if tether else ()), *self._command],
                cwd=self.folder,
                env={**self._environment, VARIABLE: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def said(self) -> str:
        """What it has written since its last start."""
        with suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")
        return ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    def runs(self, program: str) -> bool:
        """Whether any of the processes that it started runs this program."""
        return any(program_of(process) == program for process in members(self.folder))

    def kill(self, program: str) -> None:
        """Kill those of the processes that it started which run this program, without a warning."""
        for process in members(self.folder):
            if program_of(process) == program:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def stop(self, seconds: float = KILL_SECONDS) -> None:
        """End it and all that it started: asked first (SIGTERM), killed after ``seconds``."""
        if self._process is not None:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._clear()

    def _clear(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its session, where the name of the folder was wiped out
            self._process.wait()
        end_members(self.folder)


Reading = Callable[[Child], tuple[str, float]]
"""Says why a child ended, and how many seconds to wait at least before its next start."""


def plain_reading(child: Child) -> tuple[str, float]:
    """The signal or code by which a child ended; it may be started again at once."""
    code = child.exit_code or 0
    return (f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended by itself (code {code})"), 0.0


class Keeper:
    """Starts a child again whenever it ended: after 1, 2, 4, ... seconds."""

    def __init__(
        self,
        child: Child,
        tell: Callable[[str], None],
        read: Reading = plain_reading,
        *,
        first_s: float = 1.0,
        most_s: float = 60.0,
    ):
        """Describe the keeper; nothing is started.

        Args:
            child: to keep alive.
            tell: called with a sentence whenever it ended.
            read: why it ended.
            first_s: delay after the first end; each further one doubles it, until the child lived for a while.
            most_s: the longest delay of its own; ``read`` may ask for more.
        """
        self.child, self._tell, self._read = child, tell, read
        self._first_s, self._most_s = first_s, most_s
        self._delay, self._due = first_s, -1.0

    def keep(self) -> bool:
        """Look after the child; to be called again and again.

        Returns:
            Whether it was started just now.
        """
        if self.child.alive:
            return False
        now = time.monotonic()
        if self.child.exit_code is not None and self._due < self.child.started:
            self._schedule(now)
        if now < self._due:
            return False
        self.child.start()
        return True

    def _schedule(self, now: float) -> None:
        if now - self.child.started > CALM_SECONDS:
            self._delay = self._first_s
        why, least = self._read(self.child)
        wait = max(self._delay, least)
        self._due, self._delay = now + wait, min(2 * self._delay, self._most_s)
        self._tell(f"{self.child.name}: {why}; starts again in {wait:g} s")


def _is_of(entry: Path, folder: Path) -> bool:
    """Whether a process, given by its entry of ``/proc``, was started for a folder, and is not ended already."""
    mark = os.fsencode(f"{VARIABLE}={folder.absolute()}")
    try:
        variables = (entry / "environ").read_bytes().split(b"\0")
        if any(own == mark or own.startswith(mark + b"/") for own in variables):
            return True
        if (entry / "cmdline").read_bytes().startswith(_NGINX_TITLE):  # it writes its title over its environment
            return (entry / "cwd").readlink().is_relative_to(folder.absolute())
    except OSError:  # it has ended, or is another user's
        pass
    return False
