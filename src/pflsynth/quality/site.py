"""What the verb ``check`` says about the data of sites: every finding, good and bad, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pflsynth.config import SPLITS, FederationConfig, SplitName
from pflsynth.data.scan import SiteScan, scan_site
from pflsynth.data.split import few_subjects_note, lacking_notes, split_subjects, tasks_served
from pflsynth.errors import DataError
from pflsynth.quality.duplicates import find_twins, twin_findings
from pflsynth.quality.findings import Finding, Level
from pflsynth.quality.mixups import mixup_findings
from pflsynth.quality.page import SitePage, Strip
from pflsynth.quality.subject import CheckedSubject, CheckJob, check_subject
from pflsynth.workers import each

Progress = Callable[[int, int], None]
"""Called with (subjects done, subjects in all)."""


@dataclass(frozen=True)
class SiteCheck:
    """Everything that was found at a site.

    Attributes:
        site: its name.
        findings: about the site as a whole, and about files that were not looked into.
        subjects: sorted by name, with their findings.
        splits: split of each person whose images can be used.
        training_slices: how many slices each subject would give to the training.
    """

    site: str
    findings: tuple[Finding, ...]
    subjects: tuple[CheckedSubject, ...]
    splits: Mapping[str, SplitName]
    training_slices: Mapping[str, int] = field(default_factory=dict)

    @property
    def every_finding(self) -> tuple[Finding, ...]:
        """Those of the site, then those of its subjects."""
        return (*self.findings, *(finding for subject in self.subjects for finding in subject.findings))

    def page(self) -> SitePage:
        """The site's part of the HTML page."""
        strips = tuple(
            Strip(own.subject.name, self.splits.get(own.subject.person), own.findings, own.images, own.facts)
            for own in self.subjects
        )
        return SitePage(self.site, self.findings, strips)


def check_site(
    config: FederationConfig, site: str, *, pictures: bool = False, progress: Progress | None = None
) -> SiteCheck:
    """Check a site's data as ``prepare`` would, subject by subject; bad data gives findings, never an error.

    Args:
        config: the federation; ``workers`` processes share the subjects.
        site: one of its sites.
        pictures: whether to draw thumbnails.
        progress: called after each subject.
    """
    try:
        scan = scan_site(config, site)
    except DataError as error:
        return SiteCheck(site, (Finding("wrong", "files", str(error)),), (), {})
    findings = [Finding("ok", "files", f"site {site}: {note}") for note in scan.notes]
    for name, reason in scan.bad.items():
        findings += [Finding("wrong", "files", line, name) for line in reason.splitlines()]
    jobs = {subject.name: CheckJob(config, site, subject, pictures) for subject in scan.subjects}
    checked: dict[str, CheckedSubject] = {}
    for done, (name, result) in enumerate(each(check_subject, jobs, config.workers), start=1):
        if isinstance(result, DataError):
            findings.append(Finding("wrong", "image", str(result), name))
        else:
            checked[name] = result
        if progress is not None:
            progress(done, len(jobs))
    together = _together(site, checked)
    subjects = tuple(
        replace(checked[name], findings=(*checked[name].findings, *(own for own in together if own.subject == name)))
        for name in sorted(checked)
    )
    findings += [finding for finding in together if finding.subject not in checked]
    splits, more = _splits(config, site, scan, subjects)
    return SiteCheck(site, (*findings, *more), subjects, splits, _training_slices(config, site, subjects, splits))


def copies_between(checks: Sequence[SiteCheck]) -> list[Finding]:
    """Images that two sites on this machine have in common, exactly or nearly."""
    findings = []
    marks = {
        (f"{check.site}, subject {own.subject.name}", contrast): mark
        for check in checks
        for own in check.subjects
        for contrast, mark in own.signatures.items()
    }
    for twin in find_twins(marks) if len(checks) > 1 else ():
        one, other = (f"site {place}, contrast {contrast}" for place, contrast in (twin.one, twin.other))
        site, name = twin.other[0].split(", subject ")
        if twin.one[0].split(",")[0] == site:
            continue
        level: Level = "wrong" if twin.identical else "suspicious"
        what = (
            "is the same image as" if twin.identical else f"is nearly the same image (similarity {twin.similarity}) as"
        )
        text = f"{other}: {what} {one}; remove it from one of the sites"
        findings.append(Finding(level, "duplicate", text, name, (twin.other[1],)))
    return findings


def _together(site: str, checked: Mapping[str, CheckedSubject]) -> list[Finding]:
    """Findings that need all subjects of the site: copies and mixed-up contrasts."""
    signatures = {(name, contrast): mark for name, own in checked.items() for contrast, mark in own.signatures.items()}
    features = {(name, contrast): mark for name, own in checked.items() for contrast, mark in own.features.items()}
    persons = {name: own.subject.person for name, own in checked.items()}
    return [*twin_findings(find_twins(signatures), persons), *mixup_findings(features, site)]


def _training_slices(
    config: FederationConfig, site: str, subjects: Sequence[CheckedSubject], splits: Mapping[str, SplitName]
) -> dict[str, int]:
    """Slices of each subject that is for training and serves a task."""
    return {
        own.subject.name: own.slices
        for own in subjects
        if own.usable
        and splits.get(own.subject.person) == "train"
        and any({task.source, task.target} <= own.subject.volumes.keys() for task in config.sites[site].tasks)
    }


def _splits(
    config: FederationConfig, site: str, scan: SiteScan, subjects: Sequence[CheckedSubject]
) -> tuple[dict[str, SplitName], list[Finding]]:
    """The split that ``prepare`` would make of the usable subjects, and what it means for each task."""
    tasks = config.sites[site].tasks
    served = tasks_served(tasks, [(own.subject.person, own.subject.volumes) for own in subjects if own.usable])
    try:
        splits = split_subjects(served, config.split, site, scan.explicit)
    except DataError as error:
        return {}, [Finding("wrong", "split", str(error))]
    few = few_subjects_note(len(served)) if scan.explicit is None else None
    findings = [Finding("ok", "split", f"site {site}: {few}")] if few else []
    for note in lacking_notes(splits, served, tasks):
        findings.append(Finding("suspicious", "split", f"site {site}: {note}"))
    for task in tasks:
        counts = {split: sum(splits[name] == split and task in own for name, own in served.items()) for split in SPLITS}
        text = f"site {site}, task {task}: {', '.join(f'{count} {split}' for split, count in counts.items())}"
        if counts["train"]:
            findings.append(Finding("ok", "split", text))
        else:
            findings.append(Finding("wrong", "split", f"{text}: no training subject; add subjects or remove the task"))
    return splits, findings
