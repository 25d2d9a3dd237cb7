"""The unfinished work of ``prepare`` for one site: it outlives a kill, and becomes the output in one step."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pflsynth.data.manifest import SubjectRecord
from pflsynth.data.normalizers import Statistics
from pflsynth.errors import DataError
from pflsynth.files import exclusive, read_json, replace_folder, restore_folder, sync_folder, write_atomic, write_json

KEY_NAME = "settings.sha256"


class StoredSlices(BaseModel, frozen=True):
    """A file of slices that was written whole."""

    references: dict[str, Statistics]
    """the normalizer's reference of each contrast, with which it was written"""
    sha256: str
    bytes: int


class FinishedSubject(BaseModel, frozen=True):
    """What is known of a subject that was looked at, or written, before."""

    sources: dict[str, str]
    """SHA-256 of each file that it was made from"""
    subject: SubjectRecord
    stored: StoredSlices | None


class Workspace:
    """Two hidden folders beside a site's output: finished slices, and a record of each subject.

    A record is written after its slices, so what a record tells of is whole. The slices' folder becomes the output by
    renaming.
    """

    def __init__(self, out: Path) -> None:
        """The workspace of an output folder; nothing is read or written."""
        self.out = out
        self.slices = out.with_name(f".{out.name}.work")
        self.records = out.with_name(f".{out.name}.records")

    @contextmanager
    def opened(self, key: str) -> Iterator[None]:
        """Hold the workspace for one process; work that was done under another key is thrown away.

        Args:
            key: hash of everything but the images that the slices depend on.

        Raises:
            UsageError: another process prepares this site.
        """
        self.records.mkdir(parents=True, exist_ok=True)
        with exclusive(self.records / "lock", f"{self.out}: another process is preparing this site; wait for it"):
            restore_folder(self.out)
            if not self._is_of(key):
                shutil.rmtree(self.slices, ignore_errors=True)
                for path in self.records.glob("*.json"):
                    path.unlink()
                write_atomic(self.records / KEY_NAME, key.encode())
            self.slices.mkdir(exist_ok=True)
            for folder in (self.slices, self.records):
                for path in folder.glob(".*.tmp"):
                    path.unlink()
            yield

    def finished(self) -> int:
        """Number of subjects that are recorded; safe to ask without holding the workspace."""
        return len(list(self.records.glob("*.json")))

    def recall(self, name: str, sources: Mapping[str, str]) -> FinishedSubject | None:
        """What was finished of a subject, if its files are still the same and its slices are there."""
        path = self.records / f"{name}.json"
        if not path.is_file():
            return None
        try:
            done = FinishedSubject.model_validate(read_json(path, DataError))
        except (ValidationError, DataError):
            return None
        if done.sources != dict(sources):
            return None
        file = self.slices / slices_name(name)
        if done.stored is not None and not (file.is_file() and file.stat().st_size == done.stored.bytes):
            return None
        return done

    def remember(self, done: FinishedSubject) -> None:
        """Record a subject whose slices, if any, are on the disk."""
        write_json(self.records / f"{done.subject.name}.json", done.model_dump(mode="json"))

    def publish(self, files: Collection[str]) -> None:
        """Make the slices' folder the output, in the place of an old one, and forget the records.

        Args:
            files: names of the files that belong to the output; others are of subjects that are no more.
        """
        for path in self.slices.iterdir():
            if path.name not in files:
                path.unlink()
        sync_folder(self.slices)
        replace_folder(self.slices, self.out)
        shutil.rmtree(self.records)

    def _is_of(self, key: str) -> bool:
        path = self.records / KEY_NAME
        return path.is_file() and path.read_bytes() == key.encode()


def slices_name(subject: str) -> str:
    """Name of a subject's file of slices."""
    return f"{subject}.safetensors"
