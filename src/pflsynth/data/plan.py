"""What ``prepare`` would do with a site, told from file names alone (``--dry-run``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pflsynth.config import SPLITS, FederationConfig, SplitName
from pflsynth.data.scan import scan_site
from pflsynth.data.split import lacking_notes, split_subjects, tasks_served
from pflsynth.data.workspace import Workspace


@dataclass(frozen=True)
class SitePlan:
    """What there is to do at a site.

    Attributes:
        layout: how its folder names images.
        images: subjects (or sessions) that would be prepared.
        finished: how many of them an interrupted ``prepare`` has finished.
        bad: subjects that cannot be used, as far as their file names tell, and why.
        subjects: persons in each split, if all images turn out to be usable.
        notes: what a user should know.
    """

    layout: str
    images: int
    finished: int
    bad: dict[str, str]
    subjects: dict[SplitName, tuple[str, ...]]
    notes: tuple[str, ...]


def plan_site(config: FederationConfig, site: str, out: Path) -> SitePlan:
    """Say what ``prepare`` would do; no image is read and nothing is written.

    Args:
        config: the federation.
        site: one of its sites.
        out: the output folder that ``prepare`` would be given for the site.

    Raises:
        DataError: no folder, no subjects, a wrong ``splits.json``, or a task that no subject can serve.
    """
    scan = scan_site(config, site)
    tasks = config.sites[site].tasks
    served = tasks_served(tasks, [(subject.person, subject.volumes) for subject in scan.subjects])
    splits = split_subjects(served, config.split, site, scan.explicit)
    notes = [*lacking_notes(splits, served, tasks), *scan.notes, *scan.bad.values()]
    if out.exists():
        notes.append(f"{out} exists already and would be replaced only with --force")
    return SitePlan(
        layout=config.sites[site].layout,
        images=len(scan.subjects),
        finished=Workspace(out).finished(),
        bad=scan.bad,
        subjects={split: tuple(name for name in splits if splits[name] == split) for split in SPLITS},
        notes=tuple(notes),
    )
