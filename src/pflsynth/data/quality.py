"""What the verb ``check`` says about a site's data: every finding, good and bad, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from pflsynth.config import SPLITS, FederationConfig
from pflsynth.data.examine import ExaminedSubject, examine_subject, serves
from pflsynth.data.scan import scan_site
from pflsynth.data.split import few_subjects_note, split_subjects
from pflsynth.errors import DataError


@dataclass(frozen=True)
class Finding:
    """One line of ``check``.

    Attributes:
        ok: whether it is well.
        text: what was found, and what to do if it is not well.
        subject: the subject that it is about, or None for the site.
    """

    ok: bool
    text: str
    subject: str | None = None


def check_site(config: FederationConfig, site: str) -> list[Finding]:
    """Check a site's data as ``prepare`` would, subject by subject; bad data gives findings, never an error."""
    try:
        scan = scan_site(config, site)
    except DataError as error:
        return [_bad(str(error))]
    findings = [Finding(True, f"site {site}: {note}") for note in scan.notes]
    for name, reason in scan.bad.items():
        findings += [_bad(line, name) for line in reason.splitlines()]
    usable: dict[str, tuple[str, ...]] = {}
    for subject in scan.subjects:
        try:
            findings.append(_good(site, examine_subject(config, site, subject)))
            usable[subject.name] = tuple(subject.volumes)
        except DataError as error:
            findings += [_bad(line, subject.name) for line in str(error).splitlines()]
    try:
        splits = split_subjects(usable, config.split, site, scan.explicit)
    except DataError as error:
        return [*findings, _bad(str(error))]
    note = few_subjects_note(len(usable)) if scan.explicit is None else None
    if note:
        findings.append(Finding(True, f"site {site}: {note}"))
    for task in config.sites[site].tasks:
        counts = {
            split: sum(splits[name] == split and serves(have, (task,)) for name, have in usable.items())
            for split in SPLITS
        }
        text = ", ".join(f"{count} {split}" for split, count in counts.items())
        if counts["train"]:
            findings.append(Finding(True, f"site {site}, task {task}: {text}"))
        else:
            findings.append(_bad(f"site {site}, task {task}: no training subject ({text}); add subjects or remove it"))
    return findings


def _bad(text: str, subject: str | None = None) -> Finding:
    return Finding(False, text, subject)


def _good(site: str, subject: ExaminedSubject) -> Finding:
    shape = " x ".join(map(str, subject.mask.shape))
    first = next(iter(subject.volumes.values()))
    spacing = " x ".join(f"{step:.3g}" for step in first.spacing_mm)
    return Finding(
        True,
        f"site {site}, subject {subject.name}: {', '.join(subject.volumes)}; {shape} voxels of {spacing} mm; "
        f"{len(subject.kept)} slices",
        subject.name,
    )
