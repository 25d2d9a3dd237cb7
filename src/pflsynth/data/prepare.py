"""From a site's NIfTI folder to slices that training reads without decoding: the whole road of ``prepare``."""

from __future__ import annotations

import os
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
from pflsynth.config import SPLITS, FederationConfig, SplitName, Task
from pflsynth.data.examine import examine_subject
from pflsynth.data.manifest import MANIFEST_NAME, Manifest, PreparedSubject, PreparedVolume, TypicalScale
from pflsynth.data.scan import SiteScan, scan_site
from pflsynth.data.split import SPLITS_NAME, few_subjects_note, split_subjects
from pflsynth.data.subjects import Subject
from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.files import clean_leftovers, replaced_folder, save_tensors, sha256_of_file, write_json

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
    clean_leftovers(out)
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
    with replaced_folder(out) as temporary:
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
    return _report(manifest, out)


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
        tensors[contrast] = grid.scaled_slices(volume, examined.scales[contrast])[kept]
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
                source=volume.path.relative_to(config.data_folder(site)).as_posix(),
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
