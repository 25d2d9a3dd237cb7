"""From a site's folder of images to slices that training reads without decoding: the whole road of ``prepare``."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pflsynth
from pflsynth.canonical import sha256_of_json
from pflsynth.config import SPLITS, FederationConfig, SplitName
from pflsynth.data.copies import copies_elsewhere, copies_within
from pflsynth.data.manifest import MANIFEST_NAME, ContrastIntensity, Manifest, PreparedSubject, SiteIntensity
from pflsynth.data.normalizers import NORMALIZERS, Statistics
from pflsynth.data.scan import SiteScan, scan_site
from pflsynth.data.split import (
    SPLITS_NAME,
    check_training,
    few_subjects_note,
    lacking_notes,
    split_subjects,
    tasks_served,
)
from pflsynth.data.subject_slices import SubjectJob, do_subject
from pflsynth.data.workspace import FinishedSubject, Workspace, slices_name
from pflsynth.errors import DataError, UsageError
from pflsynth.files import sha256_of_file, write_json
from pflsynth.workers import each

Progress = Callable[[int, int], None]
"""Called with (subjects done, subjects in all)."""


@dataclass(frozen=True)
class PrepareReport:
    """What ``prepare`` did with a site.

    Attributes:
        site: the site's name.
        folder: where the prepared data is.
        subjects: persons in each split.
        slices: number of slices in each split.
        tasks: for each task, the number of persons that serve it in each split.
        registered: volumes that were registered.
        untouched: volumes that were left as they lay.
        skipped: subjects passed over because they cannot be used, and why (only with ``skip_bad``).
        notes: what a user should know, such as a split of too few subjects.
    """

    site: str
    folder: Path
    subjects: dict[SplitName, tuple[str, ...]]
    slices: dict[SplitName, int]
    tasks: dict[str, dict[SplitName, int]]
    registered: int
    untouched: int
    skipped: dict[str, str]
    notes: tuple[str, ...]


def prepare_site(
    config: FederationConfig,
    site: str,
    out: Path,
    *,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> PrepareReport:
    """Prepare a site's data.

    Finished subjects are kept beside ``out`` until all are done, so that the same call goes on after any stop.

    Args:
        config: the federation.
        site: one of its sites; its data is in ``config.data_folder(site)``.
        out: folder to make for this site, such as ``prepared/ixi``. It appears at the end, whole; until then, and
            if anything fails, what was there before stays as it was.
        force: replace ``out`` if it exists.
        skip_bad: go on without the subjects that cannot be used.
        progress: called after each subject.

    Raises:
        UsageError: ``out`` exists and ``force`` is not given, or another process prepares the site.
        DataError: no subjects; bad subjects (all of them, one line each); a task without subjects or without a
            training subject; an image that another site has too.
        OSError: disk full, no permission.
    """
    _check_output(out, force)
    scan = scan_site(config, site)
    if not skip_bad and scan.bad and not scan.subjects:
        raise _bad_subjects(site, scan.bad)
    if scan.explicit is not None:
        _split(config, site, scan, [(subject.person, subject.volumes) for subject in scan.subjects])
    workspace = Workspace(out)
    with workspace.opened(_key(config, site)):
        _check_output(out, force)
        finished, bad = _do_subjects(config, site, scan, workspace, progress)
        bad |= copies_within(site, finished)
        if bad and not skip_bad:
            raise _bad_subjects(site, bad)
        finished = {name: done for name, done in finished.items() if name not in bad}
        records = [done.subject for done in finished.values()]
        splits, notes = _split(config, site, scan, [(record.person, record.contrasts) for record in records])
        copies_elsewhere(site, records, out)
        intensity = _fit_intensity(config, finished, splits)
        references = {name: own.reference for name, own in intensity.contrasts.items()}
        if NORMALIZERS[intensity.normalizer].fit is not None:
            jobs = _jobs(config, site, scan, workspace, references, finished)
            finished, changed = _results(each(do_subject, jobs, config.workers), len(jobs), progress)
            if changed:  # a file was spoiled since it was measured
                raise _bad_subjects(site, changed)
        subjects = tuple(_prepared(finished[name], splits) for name in sorted(finished))
        manifest = Manifest(
            pflsynth=pflsynth.__version__,
            site=site,
            settings=config.preparation(site),
            tasks=config.sites[site].tasks,
            split_source="fractions" if scan.explicit is None else "splits.json",
            splits_sha256=_splits_sha256(config, site, scan),
            notes=(*notes, *_doubts(subjects), *scan.notes),
            # The manifest tells nothing of where the data lies on this machine.
            skipped={name: bad[name].replace(f"{config.data_folder(site)}{os.sep}", "") for name in sorted(bad)},
            intensity=intensity,
            subjects=subjects,
        )
        write_json(workspace.slices / MANIFEST_NAME, manifest.model_dump(mode="json"))
        workspace.publish({MANIFEST_NAME, *(subject.file for subject in subjects)})
    return _report(manifest, out)


def _check_output(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UsageError(f"{out}: exists already; give --force to replace it, or another output folder")
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise UsageError(f"{out}: exists and is not prepared data, so it is not replaced; give another output folder")


def _key(config: FederationConfig, site: str) -> str:
    """Hash of all but the images that a subject's slices depend on."""
    tasks = [str(task) for task in config.sites[site].tasks]
    return sha256_of_json([pflsynth.__version__, config.preparation(site), tasks])


def _bad_subjects(site: str, bad: Mapping[str, str]) -> DataError:
    count = "1 subject" if len(bad) == 1 else f"{len(bad)} subjects"
    reasons = "\n".join(bad[name] for name in sorted(bad))
    return DataError(
        f"site {site}: {count} cannot be used; mend what is listed and give the same command again (what is finished "
        f"is kept), or give --skip-bad to go on without:\n{reasons}"
    )


def _do_subjects(
    config: FederationConfig, site: str, scan: SiteScan, workspace: Workspace, progress: Progress | None
) -> tuple[dict[str, FinishedSubject], dict[str, str]]:
    """Look at every subject, and write its slices at once if the normalizer needs nothing of the other subjects."""
    fits = NORMALIZERS[config.intensity.normalizer].fit is not None
    references = None if fits else dict[str, Statistics].fromkeys(config.contrasts, ())
    jobs = _jobs(config, site, scan, workspace, references, {subject.name for subject in scan.subjects})
    finished, bad = _results(each(do_subject, jobs, config.workers), len(jobs), progress)
    return finished, {**scan.bad, **bad}


def _jobs(
    config: FederationConfig,
    site: str,
    scan: SiteScan,
    workspace: Workspace,
    references: Mapping[str, Statistics] | None,
    names: Iterable[str],
) -> dict[str, SubjectJob]:
    wanted = set(names)
    return {
        subject.name: SubjectJob(config, site, subject, workspace, references)
        for subject in scan.subjects
        if subject.name in wanted
    }


def _results(
    results: Iterable[tuple[str, FinishedSubject | DataError]], total: int, progress: Progress | None
) -> tuple[dict[str, FinishedSubject], dict[str, str]]:
    """Finished subjects sorted by name, and what is wrong with the others."""
    finished: dict[str, FinishedSubject] = {}
    bad: dict[str, str] = {}
    for done, (name, result) in enumerate(results, start=1):
        if isinstance(result, DataError):
            bad[name] = str(result)
        else:
            finished[name] = result
        if progress is not None:
            progress(done, total)
    return dict(sorted(finished.items())), bad


def _split(
    config: FederationConfig, site: str, scan: SiteScan, images: Sequence[tuple[str, Iterable[str]]]
) -> tuple[dict[str, SplitName], list[str]]:
    """Split of each person, and notes about it; ``images`` are the contrasts of each session with its person."""
    tasks = config.sites[site].tasks
    served = tasks_served(tasks, images)
    splits = split_subjects(served, config.split, site, scan.explicit)
    check_training(splits, served, tasks, site)
    few = few_subjects_note(len(served)) if scan.explicit is None else None
    return splits, [*([few] if few else []), *lacking_notes(splits, served, tasks)]


def _fit_intensity(
    config: FederationConfig, finished: Mapping[str, FinishedSubject], splits: Mapping[str, SplitName]
) -> SiteIntensity:
    """What the training subjects say of each contrast."""
    measured: dict[str, list[Statistics]] = {}
    for done in finished.values():
        if splits[done.subject.person] == "train":
            for contrast, volume in done.subject.contrasts.items():
                measured.setdefault(contrast, []).append(volume.statistics)
    fit = NORMALIZERS[config.intensity.normalizer].fit
    return SiteIntensity(
        normalizer=config.intensity.normalizer,
        contrasts={
            contrast: ContrastIntensity(
                reference=() if fit is None else fit(values),
                typical=tuple(statistics.median(column) for column in zip(*values, strict=True)),
            )
            for contrast, values in sorted(measured.items())
        },
    )


def _prepared(done: FinishedSubject, splits: Mapping[str, SplitName]) -> PreparedSubject:
    assert done.stored is not None
    return PreparedSubject(
        **dict(done.subject),
        split=splits[done.subject.person],
        file=slices_name(done.subject.name),
        sha256=done.stored.sha256,
        bytes=done.stored.bytes,
    )


def _doubts(subjects: Sequence[PreparedSubject]) -> list[str]:
    return [
        f"subject {subject.name}, contrast {contrast}: {volume.placement.reason}"
        + (f"; registration did not converge: {volume.placement.stop}" if volume.placement.stop else "")
        for subject in subjects
        for contrast, volume in subject.contrasts.items()
        if volume.placement.doubtful
    ]


def _splits_sha256(config: FederationConfig, site: str, scan: SiteScan) -> str | None:
    return None if scan.explicit is None else sha256_of_file(config.data_folder(site) / SPLITS_NAME)


def _report(manifest: Manifest, folder: Path) -> PrepareReport:
    steps = Counter(volume.placement.step for subject in manifest.subjects for volume in subject.contrasts.values())
    persons = {
        split: {person: set[str]() for person in sorted({own.person for own in manifest.of_split(split)})}
        for split in SPLITS
    }
    served = {
        split: tasks_served(manifest.tasks, [(own.person, own.contrasts) for own in manifest.of_split(split)])
        for split in SPLITS
    }
    return PrepareReport(
        site=manifest.site,
        folder=folder,
        subjects={split: tuple(persons[split]) for split in SPLITS},
        slices={split: sum(len(subject.slices) for subject in manifest.of_split(split)) for split in SPLITS},
        tasks={
            str(task): {split: sum(task in own for own in served[split].values()) for split in SPLITS}
            for task in manifest.tasks
        },
        registered=steps["registered"],
        untouched=steps["untouched"],
        skipped=dict(manifest.skipped),
        notes=manifest.notes,
    )
