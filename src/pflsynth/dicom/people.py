"""Number the people of a DICOM folder, and keep the one file that tells which number is whose."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pflsynth.errors import UsageError
from pflsynth.files import sync_folder

_HEAD = ["PatientID", "subject"]
_SUBJECT = re.compile(r"sub-[0-9]{3,}")


def read_key(path: Path) -> dict[str, str]:
    """Read a key file: subject ("sub-001") of each PatientID; empty if there is no such file.

    Raises:
        UsageError: it is not a key file, or names one patient or one subject twice. No PatientID is told.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UsageError(
            f"{path}: cannot be read as a key file; it is CSV with the columns PatientID,subject"
        ) from None
    if not rows or rows[0] != _HEAD:
        raise UsageError(f"{path}: is not a key file; its first line must be PatientID,subject")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not row[0] or not _SUBJECT.fullmatch(row[1]):
            raise UsageError(f"{path}: line {number} is not a PatientID and a subject such as sub-001; correct it")
    key = dict(rows[1:])
    if len(key) < len(rows) - 1 or len(set(key.values())) < len(key):
        raise UsageError(f"{path}: a PatientID or a subject is in it twice; keep one line of each")
    return key


def write_key(path: Path, key: dict[str, str]) -> None:
    """Write a key file atomically; only its owner may read it (mode 0600).

    Raises:
        OSError: disk full, no permission, no such folder.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_HEAD, *sorted(key.items(), key=lambda entry: _number(entry[1]))])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def number_people(patients: Iterable[str], key: dict[str, str]) -> dict[str, str]:
    """Subject of each patient: known ones keep theirs, new ones follow in the order of their sorted PatientID.

    Args:
        patients: PatientIDs, in any order.
        key: those known from before.

    Returns:
        ``key`` with the new patients.
    """
    highest = max(map(_number, key.values()), default=0)
    new = sorted(set(patients) - set(key))
    return {**key, **{patient: f"sub-{number:03d}" for number, patient in enumerate(new, start=highest + 1)}}


def _number(subject: str) -> int:
    return int(subject.removeprefix("sub-"))
