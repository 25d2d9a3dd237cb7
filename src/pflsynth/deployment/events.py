"""Logs of lines: written by several processes, followed by another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pflsynth.deployment.status import moment
from pflsynth.runs import RunDirectory


class EventLog:
    """Appends what people should hear of to a file of JSON lines: ``{"time": ISO 8601, "text": sentence}``."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, text: str) -> None:
        """Append one event; where that cannot be, such as on a full disk, print it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            RunDirectory(self.path.parent).append(self.path.name, {"time": moment(), "text": text})
        except OSError as failure:
            print(f"{text} ({failure})", flush=True)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last ``count`` events; empty if there are none."""
        return list(Follower(self.path, from_start=True).records())[-count:]


class Follower:
    """Reads the lines that are added to a file; one that is put aside or cut short is read from its start."""

    def __init__(self, path: Path, *, from_start: bool = False):
        """Begin at the end of the file as it is now, or at its start."""
        self._path = path
        self._position = 0 if from_start or not path.exists() else path.stat().st_size

    def lines(self) -> Iterator[str]:
        """Whole lines that were added since the last call, without their ends."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._position:
                self._position = 0
            file.seek(self._position)
            while (line := file.readline()).endswith(b"\n"):
                self._position = file.tell()
                yield line[:-1].decode(errors="replace")

    def records(self) -> Iterator[dict[str, Any]]:
        """The same, of a file of JSON lines; what is none is left out."""
        for line in self.lines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
