"""From a site's NIfTI folder to slices that training reads without decoding: the whole road of ``prepare``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pflsynth
from pflsynth.config import FederationConfig, Task
from pflsynth.data.examine import examine_subject, relative_source, serves, used_contrasts
from pflsynth.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    PreparedSubject,
    PreparedVolume,
    SplitName,
    TypicalScale,
)
from pflsynth.data.split import (
    SPLITS_NAME,
    ExplicitSplits,
    few_subjects_note,
    read_splits,
    split_subjects,
)
from pflsynth.data.subjects import Subject, read_subject, subject_folders
from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.files import save_tensors, sha256_of_file, sync_folder, write_json

BACKGROUND = -1.0
"""Value of background in slices: the bottom of [-1, 1]."""

Progress = Callable[[int, int], None]
"""Called with (subjects done, subjects in all)."""


@dataclass(frozen=True)
class PrepareReport:
    """What ``prepare`` did with a site.

    Attributes:
        site: the site's name.
        folder: where the prepared data is.
        subjects: names in each split.
        slices: number of slices in each split.
        tasks: for each task, the number of subjects that serve it in each split.
        skipped: subjects passed over because they cannot be used, and why (only with ``skip_bad``).
        notes: what a user should know, such as a split of too few subjects.
    """

    site: str
    folder: Path
    subjects: dict[SplitName, tuple[str, ...]]
    slices: dict[SplitName, int]
    tasks: dict[str, dict[SplitName, int]]
    skipped: dict[str, str]
    notes: tuple[str, ...]


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

    Args:
        config: the federation.
        site: one of its sites; its data is in ``config.data_folder(site)``.
        out: folder to make for this site, such as ``prepared/ixi``. It appears at the end, whole; until then, and
            if anything fails, what was there before stays as it was.
        force: replace ``out`` if it exists.
        skip_bad: go on without the subjects that cannot be used.
        progress: called after each subject.

    Raises:
        UsageError: ``out`` exists and ``force`` is not given.
        DataError: no subjects; bad subjects (all of them, one line each); a task without subjects or without a
            training subject.
        OSError: disk full, no permission.
    """
    _clean_leftovers(out)
    if out.exists() and not force:
        raise UsageError(f"{out}: exists already; give --force to replace it, or another output folder")
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise UsageError(f"{out}: exists and is not prepared data, so it is not replaced; give another output folder")
    scan = scan_site(config, site)
    tasks = config.sites[site].tasks
    if not skip_bad and scan.bad and not scan.subjects:
        raise _bad_subjects(site, scan.bad)
    if scan.explicit is not None:
        split_subjects([subject.name for subject in scan.subjects], config.split, site, scan.explicit)
    with _temporary_sibling(out) as temporary:
        bad = dict(scan.bad)
        prepared: list[PreparedSubject] = []
        for done, (name, result) in enumerate(_prepare_all(config, site, scan.subjects, temporary), start=1):
            if isinstance(result, PreparedSubject):
                prepared.append(result)
            else:
                bad[name] = result
            if progress is not None:
                progress(done, len(scan.subjects))
        if bad and not skip_bad:
            raise _bad_subjects(site, bad)
        splits = split_subjects([subject.name for subject in prepared], config.split, site, scan.explicit)
        subjects = tuple(
            subject.model_copy(update={"split": splits[subject.name]})
            for subject in sorted(prepared, key=lambda subject: subject.name)
        )
        check_tasks(site, tasks, subjects)
        manifest = _manifest(config, site, subjects, scan, bad)
        write_json(temporary / MANIFEST_NAME, manifest.model_dump(mode="json"))
        _replace(out, temporary)
    return _report(manifest, out)


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
    bad: dict[str, str] = {}
    notes: list[str] = []
    for entry in folders:
        try:
            subject = read_subject(entry, contrasts, site)
        except DataError as error:
            bad[entry.name] = str(error)
            continue
        if serves(subject.volumes, tasks):
            subjects.append(subject)
        else:
            have = ", ".join(subject.volumes) or "none of the contrasts"
            notes.append(f"subject {subject.name} is left out: it has {have}, which serves no task of the site")
    if not bad:
        _check_contrasts(site, tasks, subjects)
    return SiteScan(tuple(subjects), bad, tuple(notes), explicit)


def prepare_subject(config: FederationConfig, site: str, subject: Subject, folder: Path) -> PreparedSubject:
    """Write one subject's slices to ``folder/<subject>.safetensors``.

    The file holds each contrast as float32 (S, size, size) in [-1, 1], and "mask", the head, as uint8 of the same
    shape.

    Returns:
        The subject's entry of the manifest; its split is set to "train" until the site is split.

    Raises:
        DataError: everything that is wrong with the subject, one line each.
        OSError: disk full, no permission.
    """
    examined = examine_subject(config, site, subject)
    kept, grid = list(examined.kept), examined.grid
    tensors: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.uint8]] = {}
    for contrast, volume in examined.volumes.items():
        scaled = examined.scales[contrast].apply(volume.data)
        tensors[contrast] = np.clip(grid.to_slices(scaled, BACKGROUND)[kept], -1, 1)
    tensors["mask"] = (grid.to_slices(examined.mask.astype(np.float32), 0.0)[kept] >= 0.5).astype(np.uint8)
    path = folder / f"{subject.name}.safetensors"
    save_tensors(path, tensors, {"site": site, "subject": subject.name, "slices": kept}, kind="subject")
    first = next(iter(examined.volumes.values()))
    x, y, z = examined.mask.shape
    return PreparedSubject(
        name=subject.name,
        split="train",
        file=path.name,
        sha256=sha256_of_file(path),
        bytes=path.stat().st_size,
        slices=examined.kept,
        shape=(x, y, z),
        affine=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in first.affine),
        spacing_mm=first.spacing_mm,
        contrasts={
            contrast: PreparedVolume(
                source=relative_source(volume.path, config.data_folder(site)),
                source_sha256=sha256_of_file(volume.path),
                low=examined.scales[contrast].low,
                high=examined.scales[contrast].high,
            )
            for contrast, volume in examined.volumes.items()
        },
    )


def check_tasks(site: str, tasks: Sequence[Task], subjects: Sequence[PreparedSubject]) -> None:
    """Refuse a site without training subjects, or with a task that no training subject serves.

    Raises:
        DataError: naming the site, the task, and the subjects that do serve it.
    """
    training = [subject for subject in subjects if subject.split == "train"]
    if not training:
        raise DataError(
            f"site {site}: no training subject is left ({len(subjects)} usable in all); add subjects, lower "
            f"split.test and split.validation, or list them in {SPLITS_NAME}"
        )
    for task in tasks:
        if not any(subject.serves(task) for subject in training):
            others = [f"{subject.name} ({subject.split})" for subject in subjects if subject.serves(task)]
            raise DataError(
                f"site {site}, task {task}: no training subject has both contrasts "
                f"(elsewhere: {', '.join(others) or 'none'}); add subjects, remove the task, or move one to "
                f"train in {SPLITS_NAME}"
            )


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


def _bad_subjects(site: str, bad: Mapping[str, str]) -> DataError:
    count = "1 subject" if len(bad) == 1 else f"{len(bad)} subjects"
    reasons = "\n".join(bad[name] for name in sorted(bad))
    return DataError(
        f"site {site}: {count} cannot be used; mend what is listed, or give --skip-bad to go on without:\n{reasons}"
    )


def _prepare_all(
    config: FederationConfig, site: str, subjects: Sequence[Subject], folder: Path
) -> Iterator[tuple[str, PreparedSubject | str]]:
    """Each subject's manifest entry, or what is wrong with it; in any order."""
    if config.workers == 1 or len(subjects) < 2:
        for subject in subjects:
            yield subject.name, _prepare_or_reason(config, site, subject, folder)
        return
    workers = min(config.workers, len(subjects))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        running: dict[Future[PreparedSubject | str], str] = {
            pool.submit(_prepare_or_reason, config, site, subject, folder): subject.name for subject in subjects
        }
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool:
        raise PflsynthError(
            f"site {site}: a worker process of prepare was ended, most likely for want of memory; set workers below "
            f"{config.workers}"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare_or_reason(config: FederationConfig, site: str, subject: Subject, folder: Path) -> PreparedSubject | str:
    try:
        return prepare_subject(config, site, subject, folder)
    except DataError as error:
        return str(error)


def _manifest(
    config: FederationConfig,
    site: str,
    subjects: Sequence[PreparedSubject],
    scan: SiteScan,
    bad: Mapping[str, str],
) -> Manifest:
    folder = config.data_folder(site)
    note = few_subjects_note(len(subjects)) if scan.explicit is None else None
    return Manifest(
        pflsynth=pflsynth.__version__,
        site=site,
        settings=config.preparation(site),
        tasks=config.sites[site].tasks,
        split_source="fractions" if scan.explicit is None else "splits.json",
        splits_sha256=None if scan.explicit is None else sha256_of_file(folder / SPLITS_NAME),
        notes=(*((note,) if note else ()), *scan.notes, *_empty_splits(config.sites[site].tasks, subjects)),
        # The manifest tells nothing of where the data lies on this machine.
        skipped={name: bad[name].replace(f"{folder}{os.sep}", "") for name in sorted(bad)},
        typical=_typical(subjects),
        subjects=tuple(subjects),
    )


def _empty_splits(tasks: Sequence[Task], subjects: Sequence[PreparedSubject]) -> list[str]:
    """Tasks that no subject of a non-empty split serves: that split will have no scores for them."""
    return [
        f"task {task} has no {split} subject"
        for task in tasks
        for split in SPLITS
        if (members := [subject for subject in subjects if subject.split == split])
        and not any(subject.serves(task) for subject in members)
    ]


def _typical(subjects: Sequence[PreparedSubject]) -> dict[str, TypicalScale]:
    training = [subject.contrasts for subject in subjects if subject.split == "train"]
    names = sorted({name for contrasts in training for name in contrasts})
    return {
        name: TypicalScale(
            low=statistics.median(contrasts[name].low for contrasts in training if name in contrasts),
            high=statistics.median(contrasts[name].high for contrasts in training if name in contrasts),
        )
        for name in names
    }


def _report(manifest: Manifest, folder: Path) -> PrepareReport:
    return PrepareReport(
        site=manifest.site,
        folder=folder,
        subjects={split: tuple(subject.name for subject in manifest.of_split(split)) for split in SPLITS},
        slices={split: sum(len(subject.slices) for subject in manifest.of_split(split)) for split in SPLITS},
        tasks={
            str(task): {split: sum(subject.serves(task) for subject in manifest.of_split(split)) for split in SPLITS}
            for task in manifest.tasks
        },
        skipped=dict(manifest.skipped),
        notes=manifest.notes,
    )


def _leftover(out: Path, purpose: str) -> Path:
    return out.with_name(f".{out.name}.{purpose}")


def _clean_leftovers(out: Path) -> None:
    """Remove what killed runs left beside ``out``; put the old folder back if one was killed while replacing it."""
    replaced = _leftover(out, "replaced")
    if replaced.is_dir() and not out.exists():
        replaced.rename(out)
    for leftover in (*out.parent.glob(f".{out.name}.preparing-*"), replaced):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _temporary_sibling(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, removed at the end whatever happens, if it is still there."""
    temporary = _leftover(out, f"preparing-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(out: Path, new: Path) -> None:
    """Put ``new`` in the place of ``out``; at any moment one of the two is whole on the disk."""
    replaced = _leftover(out, "replaced")
    if out.exists():
        out.rename(replaced)
    new.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
