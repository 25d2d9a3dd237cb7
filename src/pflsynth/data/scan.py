"""Look at a site's file names: which subjects there are, and whether they can serve the site's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pflsynth.config import FederationConfig, Task
from pflsynth.data.examine import serves, used_contrasts
from pflsynth.data.split import ExplicitSplits, read_splits
from pflsynth.data.subjects import Subject, read_subject, subject_folders
from pflsynth.errors import DataError


@dataclass(frozen=True)
class SiteScan:
    """What a look at a site's file names tells, before any image is read.

    Attributes:
        subjects: those that can serve at least one of the site's tasks.
        bad: subjects that cannot be used, and why.
        notes: subjects left out because they serve no task.
        explicit: content of ``splits.json``, or None.
    """

    subjects: tuple[Subject, ...]
    bad: dict[str, str]
    notes: tuple[str, ...]
    explicit: ExplicitSplits | None


def scan_site(config: FederationConfig, site: str) -> SiteScan:
    """Look at a site's file names.

    Raises:
        DataError: no folder, no subjects, a wrong ``splits.json``, or a task that no subject can serve.
    """
    folder, tasks = config.data_folder(site), config.sites[site].tasks
    contrasts = used_contrasts(config, site)
    folders = subject_folders(folder, site)
    explicit = read_splits(folder, [entry.name for entry in folders], site)
    subjects: list[Subject] = []
    found: list[Subject] = []
    bad: dict[str, str] = {}
    notes: list[str] = []
    for entry in folders:
        try:
            subject = read_subject(entry, contrasts, site)
        except DataError as error:
            bad[entry.name] = str(error)
            continue
        found.append(subject)
        if serves(subject.volumes, tasks):
            subjects.append(subject)
        else:
            have = ", ".join(subject.volumes) or "none of the contrasts"
            notes.append(f"subject {subject.name} is left out: it has {have}, which serves no task of the site")
    if not bad:
        _check_contrasts(site, tasks, found)
    return SiteScan(tuple(subjects), bad, tuple(notes), explicit)


def _check_contrasts(site: str, tasks: Sequence[Task], subjects: Sequence[Subject]) -> None:
    for task in tasks:
        if not any(serves(subject.volumes, (task,)) for subject in subjects):
            present = sorted({contrast for subject in subjects for contrast in subject.volumes})
            absent = [contrast for contrast in (task.source, task.target) if contrast not in present]
            what = f"no subject has {' or '.join(absent)}" if absent else "no subject has both contrasts"
            raise DataError(
                f"site {site}, task {task}: {what} (found: {', '.join(present) or 'none that a task uses'}); add the "
                "images, or remove the task from the site"
            )
