"""The disk of a run: watched, so that what runs on it ends before it is full, and goes on when it has room again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

LEAST_FREE = 100e6
"""Bytes: with less, nothing runs."""


class Disk:
    """The disk of a run folder, and whether people have been told that it is full."""

    def __init__(self, run: Path, tell: Callable[[str], None], full: Callable[[str], None]):
        """Describe the watch; nothing is looked at.

        Args:
            run: the run folder.
            tell: called with a sentence when the disk becomes full, and when it has room again.
            full: called with the first of these before: ends what runs.
        """
        self._run, self._tell, self._make_room = run, tell, full
        self._full = False

    def has_room(self) -> bool:
        """Look at the disk; whether there is room to go on."""
        free = shutil.disk_usage(self._run).free
        if free < LEAST_FREE and not self._full:
            self._full = True
            problem = (
                f"{self._run}: its disk has {free / 1e6:.0f} MB left, and {LEAST_FREE / 1e6:.0f} are needed: make room "
                "for it; until then nothing runs, and then it goes on by itself"
            )
            self._make_room(problem)
            self._tell(problem)
        elif free >= LEAST_FREE and self._full:
            self._full = False
            self._tell(f"{self._run}: its disk has room again; goes on after the last whole round")
        return not self._full
