"""The process that runs the rounds: submitted to the SuperLink, and again whenever it is gone too early or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from pflsynth.deployment.flower_programs import SERVER_APP
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.status import NAME as STATUS
from pflsynth.deployment.status import Status, read_status
from pflsynth.deployment.superlink import SuperLink
from pflsynth.errors import ModelError
from pflsynth.runs import RunDirectory

APPEAR_SECONDS = 180.0
"""How long it may take to appear before it is submitted again."""

HANG_SECONDS = 300.0
"""How long it may write no status before it is killed, and submitted again."""

MOST_ATTEMPTS = 10
"""Processes in a row that end without a whole round before the coordinator gives up."""


class RoundsProcess:
    """The watch over the ServerApp of a coordinator."""

    def __init__(self, superlink: SuperLink, settings: CoordinatorSettings, tell: Callable[[str], None]):
        """Begin without a process.

        Args:
            superlink: it starts the process.
            settings: of the rounds.
            tell: called with a sentence for every event.
        """
        self._superlink, self._settings, self._tell = superlink, settings, tell
        self._run: int | None = None
        self._seen = False
        self._submitted = self._due = self._moved = 0.0
        self._stamp = 0
        self._before = self._started()
        self._attempts, self._round = 0, self._whole_round()

    def lost(self) -> None:
        """The SuperLink was started again: it has no run of ours any more."""
        self._run, self._due = None, 0.0

    def look(self, alive: bool) -> bool:
        """Look after it; whether the training is finished.

        Raises:
            ModelError: it ended by an error that would come again, or too often.
            NetworkError: the SuperLink refuses it.
        """
        now = time.monotonic()
        if self._run is None:
            if now >= self._due:
                self._before = self._started()
                self._run, self._seen, self._submitted = self._superlink.submit(), False, now
        elif alive:
            if not self._seen:
                self._seen, self._moved = True, now
            self._check_moves(now)
        elif self._seen or now - self._submitted > APPEAR_SECONDS:
            return self._ended(now)
        return False

    def _check_moves(self, now: float) -> None:
        """Kill a process that hangs: it writes its status at least every few seconds, but for the time of a retry."""
        stamp = self._status_stamp()
        if stamp != self._stamp:
            self._stamp, self._moved = stamp, now
        elif now - self._moved > HANG_SECONDS + self._settings.retry_s:
            self._tell(f"the process that runs the rounds has hung for {now - self._moved:.0f} s, and is killed")
            self._superlink.child.kill(SERVER_APP)
            self._moved = now

    def _status_stamp(self) -> int:
        with suppress(FileNotFoundError):
            return (self._settings.run / STATUS).stat().st_mtime_ns
        return 0

    def _ended(self, now: float) -> bool:
        status = self._status()
        problem = "the process that runs the rounds was killed, or could not begin"
        if status is not None and status.started != self._before:
            if status.phase == "finished":
                return True
            if status.phase == "stopped":
                problem = status.problem or problem
                if status.lasting:
                    raise ModelError(problem)
        if self._run is not None:
            self._superlink.stop_run(self._run)
        self._run, whole = None, self._whole_round()
        self._attempts, self._round = (1 if whole > self._round else self._attempts + 1), whole
        if self._attempts > MOST_ATTEMPTS:
            raise ModelError(
                f"{problem}; gave up after {MOST_ATTEMPTS} attempts without a whole round, see "
                f"{self._superlink.child.log}; mend it and start the coordinator again: it goes on after round {whole}"
            )
        wait = min(2.0 ** (self._attempts - 1), 60.0)
        self._due = now + wait
        self._tell(f"{problem}; goes on after round {whole} in {wait:g} s")
        return False

    def _status(self) -> Status | None:
        with suppress(ModelError):
            return read_status(self._settings.run)
        return None

    def _started(self) -> str:
        status = self._status()
        return "" if status is None else status.started

    def _whole_round(self) -> int:
        return RunDirectory(self._settings.run).state().round
