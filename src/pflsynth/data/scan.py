"""Look at a site's file names: which subjects there are, and whether they can serve the site's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pflsynth.config import FederationConfig, Task
from pflsynth.data.examine import serves, used_contrasts
from pflsynth.data.split import ExplicitSplits, read_splits
from pflsynth.data.subjects import Subject, find_subjects
from pflsynth.errors import DataError


@dataclass(frozen=True)
class SiteScan:
    """What a look at a site's file names tells, before any image is read.

    Attributes:
        subjects: those that can serve at least one of the site's tasks.
        bad: subjects that cannot be used, and why.
        notes: files that were passed over, and subjects left out because they serve no task.
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
    folder, own = config.data_folder(site), config.sites[site]
    contrasts = used_contrasts(config, site)
    wanted = (*contrasts, "mask") if own.brain_mask else contrasts
    found = find_subjects(folder, own.layout, wanted, site, own.contrast_names)
    persons = {subject.person for subject in found.subjects} | {name.split("_ses-")[0] for name in found.bad}
    explicit = read_splits(folder, persons, site)
    bad, notes, subjects = dict(found.bad), list(found.notes), []
    for subject in found.subjects:
        if not serves(subject.volumes, own.tasks):
            have = ", ".join(subject.volumes) or "none of the contrasts"
            notes.append(f"subject {subject.name} is left out: it has {have}, which serves no task of the site")
        elif own.brain_mask and subject.mask is None:
            bad[subject.name] = (
                f"site {site}, subject {subject.name}: has no brain mask, but brain_mask is true for the site; add "
                "one, or set it to false"
            )
        else:
            subjects.append(subject if own.brain_mask else replace(subject, mask=None))
    if not bad:
        _check_contrasts(site, own.tasks, found.subjects)
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
