"""From a folder of DICOM files to a BIDS-like folder that tells nothing of who the people are."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from pflsynth.dicom.choose import Choice, Session, choose_series
from pflsynth.dicom.nifti import check_packages, convert_series
from pflsynth.dicom.people import number_people, read_key, write_key
from pflsynth.dicom.rules import load_rules
from pflsynth.dicom.series import Series, find_series
from pflsynth.errors import DataError, UsageError
from pflsynth.files import exclusive, replace_folder, restore_folder, sync_folder, write_atomic, write_json

DESCRIPTION_NAME = "dataset_description.json"
"""File by which a folder made here is known."""

_LOCK_NAME = ".lock"
_MAKER = "pflsynth prepare --from-dicom"


@dataclass(frozen=True)
class ConvertReport:
    """What was made of a folder of DICOM files. It holds nothing that identifies a person.

    Attributes:
        folder: the BIDS-like folder.
        subjects: contrasts written for each subject ("sub-001", or "sub-001_ses-01" if it has several sessions).
        notes: files and series passed over, and why; choices that were made.
        bad: subjects that could not be converted, of which nothing was written, and why.
    """

    folder: Path
    subjects: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    bad: dict[str, str]


def convert_dicom(
    dicom: Path,
    out: Path,
    site: str,
    *,
    rules: Path | None = None,
    key_file: Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Convert all MR series of known contrast to ``out/sub-001[/ses-01]/anat/sub-001[_ses-01]_T1w.nii.gz``.

    Subjects are numbered in the order of their sorted PatientID, sessions of a person in the order of study time.
    Each subject's folder appears whole or not at all. Same input, same bytes.

    Args:
        dicom: folder of DICOM files: any names, any depth, other files among them.
        out: folder to make or to add to.
        site: the site's name, for messages.
        rules: file of own rules (see :func:`load_rules`).
        key_file: CSV file of PatientID and subject, the only place where both stand together; read if it exists,
            and written, for its owner's eyes only. With it, subjects that it names keep their number, and their
            folders that are there already are left as they are.
        force: convert anew what is there already; remove subjects of an earlier conversion that no key file names.
        progress: called with (people done, people in all).

    Raises:
        UsageError: wrong rules or key file; ``key_file`` lies within ``out``; ``out`` holds subjects that no key
            file names, and ``force`` is not given; ``out`` holds subjects that were not made here.
        DataError: no such folder, no MR images in it, or a package is missing.
        OSError: disk full, no permission.
    """
    check_packages()
    table = load_rules(rules)
    key = _read_key(key_file, out)
    known = frozenset(key.values())
    stale = _stale(out, known, force)
    found = find_series(dicom, site)
    people: dict[str, list[Series]] = defaultdict(list)
    for series in found.series:
        people[_patient(series)].append(series)
    key = number_people(people, key)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / _LOCK_NAME, f"{out}: another conversion is writing to it; wait until it ends"):
        _describe(out, site)
        if key_file is not None:
            write_key(key_file, key)
        for folder in stale:
            shutil.rmtree(folder)
        _mend(out, known)
        subjects: dict[str, tuple[str, ...]] = {}
        bad: dict[str, str] = {}
        notes = [*found.notes, *_unnamed(found.series)]
        left: list[str] = []
        for done, (subject, patient) in enumerate(sorted((key[patient], patient) for patient in people), start=1):
            if (out / subject).exists() and not force:
                left.append(subject)
            else:
                choice = choose_series(subject, people[patient], table, site)
                notes += choice.notes
                try:
                    subjects |= _write(out, subject, choice, site)
                except DataError as error:
                    bad[subject] = str(error)
            if progress is not None:
                progress(done, len(people))
    if left:
        notes.append(f"there already, and left as they are: {', '.join(left)}; --force converts them anew")
    return ConvertReport(out, subjects, tuple(notes), bad)


def _read_key(key_file: Path | None, out: Path) -> dict[str, str]:
    if key_file is None:
        return {}
    if key_file.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{key_file}: lies within {out}, which must not tell who the people are; put it elsewhere")
    return read_key(key_file)


def _stale(out: Path, known: Set[str], force: bool) -> list[Path]:
    """Subjects of ``out`` that the key does not name, which ``force`` allows to remove."""
    present = sorted(out.glob("sub-*")) if out.is_dir() else []
    if present and not _made_here(out):
        raise UsageError(
            f"{out}: holds subjects that were not converted from DICOM by pflsynth, and is left as it is; give another "
            "folder"
        )
    stale = [folder for folder in present if folder.name not in known]
    if stale and not force:
        raise UsageError(
            f"{out}: has {len(stale)} subjects whose PatientID is not known, so new ones could be mixed up with them; "
            "leave --from-dicom out to prepare what was converted, or give the key file of that conversion, or --force "
            "to remove them and convert all anew"
        )
    return stale


def _mend(out: Path, known: Set[str]) -> None:
    """Put in place, or remove, what a killed conversion left half replaced or half written."""
    for hidden in sorted(out.glob(".sub-*")):
        subject = hidden.name.removeprefix(".").partition(".")[0]
        if subject in known:
            restore_folder(out / subject)
        shutil.rmtree(hidden, ignore_errors=True)


def _made_here(out: Path) -> bool:
    try:
        description = json.loads((out / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        return bool(description["GeneratedBy"][0]["Name"] == _MAKER)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _describe(out: Path, site: str) -> None:
    description = {"Name": site, "BIDSVersion": "1.8.0", "GeneratedBy": [{"Name": _MAKER}]}
    write_json(out / DESCRIPTION_NAME, description)


def _patient(series: Series) -> str:
    """PatientID, or the study where there is none: people are never put together for want of an ID."""
    return series.first.patient or f"study {series.first.study}"


def _unnamed(series: tuple[Series, ...]) -> list[str]:
    studies = {one.first.study for one in series if not one.first.patient}
    if not studies:
        return []
    return [
        f"{len(studies)} studies have no PatientID, and each counts as a subject of its own; if some are of one "
        "person, give them a PatientID, or that person may be in training and test at once"
    ]


def _write(out: Path, subject: str, choice: Choice, site: str) -> dict[str, tuple[str, ...]]:
    """Write a subject's folder; contrasts of each session.

    Raises:
        DataError: everything that keeps it from being written, one line each.
    """
    if choice.problems:
        raise DataError("\n".join(choice.problems))
    if not choice.sessions:
        return {}
    problems: list[str] = []
    new = out / f".{subject}.new"
    try:
        problems = [problem for session in choice.sessions for problem in _write_session(new, session, site)]
        if problems:
            raise DataError("\n".join(problems))
        sync_folder(new)
        replace_folder(new, out / subject)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return {session.name: tuple(session.chosen) for session in choice.sessions}


def _write_session(folder: Path, session: Session, site: str) -> list[str]:
    """Write a session's images below a subject's folder; what went wrong."""
    images = folder.joinpath(*session.name.split("_")[1:], "anat")
    images.mkdir(parents=True)
    problems: list[str] = []
    for contrast, series in session.chosen.items():
        where = f"site {site}, subject {session.name}, contrast {contrast}: {series.told()}"
        try:
            write_atomic(images / f"{session.name}_{contrast}.nii.gz", convert_series(series, where))
        except DataError as error:
            problems.append(str(error))
    return problems
