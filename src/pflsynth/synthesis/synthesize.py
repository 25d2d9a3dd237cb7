"""Synthesise the missing contrast of files and folders: NIfTI in, NIfTI out, on the input's own grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pflsynth import __version__
from pflsynth.config import Task
from pflsynth.data.names import split_nifti_name
from pflsynth.data.subjects import contrast_in_layout
from pflsynth.data.volumes import FloatArray, load_volume, save_synthetic
from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import sha256_of_file, write_json
from pflsynth.synthesis.volume import SeenVolume, see_volume, to_volume

NOTICE = "synthetic, not for diagnosis"


@dataclass(frozen=True)
class Synthesized:
    """One volume that was written, and what its JSON file says of it."""

    path: Path
    provenance: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """A file to read (with its brain mask, if masks are wanted), and the one to write."""

    source: Path
    out: Path
    mask: Path | None
    force: bool


def synthesize_file(
    source: Path,
    out: Path,
    model: PersonalisedModel,
    task: Task,
    *,
    mask: Path | None = None,
    force: bool = False,
) -> Synthesized:
    """Read a NIfTI volume, write the synthesised one and a JSON file beside it.

    Args:
        source: NIfTI volume of the task's source contrast.
        out: NIfTI file to write (``.nii`` or ``.nii.gz``).
        model: of the site that the volume is from.
        task: one of the site's tasks.
        mask: brain mask of the source, if the site's data was prepared with brain masks.
        force: overwrite.

    Raises:
        UsageError: if ``out`` exists (without ``force``), is ``source``, or is not named as NIfTI.
        DataError: if the volume cannot be used.
    """
    job = _Job(source, out, mask, force)
    seen = _read(job, model, task)
    return _write(job, seen, model.synthesize(seen.slices, task), model, task)


def synthesize_folder(
    source: Path,
    out: Path,
    model: PersonalisedModel,
    task: Task,
    *,
    workers: int = 1,
    force: bool = False,
    on_file: Callable[[int, int, Path], None] | None = None,
) -> tuple[list[Synthesized], list[PflsynthError]]:
    """Synthesise for every volume of the source contrast below a folder, keeping its structure.

    Names are read in the site's layout, or else as BIDS. Files whose name says another contrast are left out; if no
    name says a contrast, all NIfTI files are taken. The brain mask of ``sub-01_T1w.nii.gz``, if masks are wanted, is
    ``sub-01_mask.nii.gz`` beside it.

    Args:
        source: folder to read.
        out: folder to write.
        model: of the site that the volumes are from.
        task: one of the site's tasks.
        workers: threads that read the next volumes and write the last ones while the network has one; the results do
            not depend on it.
        force: overwrite.
        on_file: told of every file before the network has it: its number from 0, how many there are, its path.

    Returns:
        What was written, in the order of the files, and the errors of the files that could not be used.

    Raises:
        DataError: if the folder has no volume of the source contrast.
    """
    written: list[Synthesized] = []
    failed: list[PflsynthError] = []

    def collect(writing: Future[Synthesized]) -> None:
        try:
            written.append(writing.result())
        except PflsynthError as error:
            failed.append(error)

    jobs, clashes = _jobs(source, out, model, task, force)
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = iter(jobs)
        reads = deque(pool.submit(_read, job, model, task) for job in islice(waiting, workers))
        writes: deque[Future[Synthesized]] = deque()
        for number, job in enumerate(jobs):
            if on_file is not None:
                on_file(number, len(jobs), job.source)
            read = reads.popleft()
            reads.extend(pool.submit(_read, later, model, task) for later in islice(waiting, 1))
            try:
                seen = read.result()
                slices = model.synthesize(seen.slices, task)
            except PflsynthError as error:
                failed.append(error)
                continue
            writes.append(pool.submit(_write, job, seen, slices, model, task))
            if len(writes) > workers:
                collect(writes.popleft())
        for write in writes:
            collect(write)
    finally:
        pool.shutdown(cancel_futures=True)
    return written, [*failed, *clashes]


def _jobs(
    source: Path, out: Path, model: PersonalisedModel, task: Task, force: bool
) -> tuple[list[_Job], list[UsageError]]:
    """What there is to do in a folder, and the errors of files that would be written where an earlier one is."""
    own = model.config.sites[model.site]
    jobs: list[_Job] = []
    clashes: list[UsageError] = []
    taken: dict[Path, Path] = {}
    for path in _volumes(source, model, task):
        target = out / path.relative_to(source).with_name(target_name(path, task))
        first = taken.setdefault(provenance_path(target), path)
        if first == path:
            jobs.append(_Job(path, target, mask_path(path, task) if own.brain_mask else None, force))
        else:
            clashes.append(UsageError(f"{path}: its output would have the name of {first.name}'s; rename one of them"))
    return jobs, clashes


def _volumes(source: Path, model: PersonalisedModel, task: Task) -> Sequence[Path]:
    """The volumes of the source contrast below a folder."""
    volumes = sorted(path for path in source.rglob("*") if split_nifti_name(path)[1])
    own = model.config.sites[model.site]
    contrasts = {
        path: contrast_in_layout(path.relative_to(source), own.layout, model.site, own.contrast_names)
        for path in volumes
    }
    chosen = [path for path in volumes if contrasts[path] == task.source]
    if not any(contrasts.values()):
        chosen = volumes
    if not chosen:
        raise DataError(
            f"{source}: has no NIfTI volume of contrast {task.source} (such as sub-01_{task.source}.nii.gz)"
        )
    return chosen


def _read(job: _Job, model: PersonalisedModel, task: Task) -> SeenVolume:
    """Check the names of a job and read its files."""
    if job.out.exists() and job.source.exists() and job.out.samefile(job.source):
        raise UsageError(f"{job.out}: is the input itself; choose another --out")
    for path in (job.out, provenance_path(job.out)):
        if path.exists() and not job.force:
            raise UsageError(f"{path}: exists already; choose another --out or overwrite with --force")
    volume = load_volume(job.source, f"site {model.site}, contrast {task.source}")
    brain = load_volume(job.mask, f"site {model.site}, brain mask") if job.mask is not None else None
    return see_volume(volume, model, task, brain)


def _write(job: _Job, seen: SeenVolume, slices: FloatArray, model: PersonalisedModel, task: Task) -> Synthesized:
    """Write what the network made of a job's slices, and the JSON file."""
    data = to_volume(seen, slices, model, task)
    provenance = {
        "notice": NOTICE,
        "site": model.site,
        "task": str(task),
        "method": model.config.method,
        "model": "personalised",
        "round": model.round,
        "model_sha256": model.sha256,
        "agreement_sha256": model.config.agreement_sha256(),
        "input": job.source.name,
        "input_sha256": sha256_of_file(job.source),
        "normalizer": model.config.intensity.normalizer,
        "pflsynth": __version__,
    }
    job.out.parent.mkdir(parents=True, exist_ok=True)
    save_synthetic(job.out, data, like=job.source, description=f"pflsynth {__version__} {task}: {NOTICE}")
    write_json(provenance_path(job.out), provenance)
    return Synthesized(job.out, provenance)


def target_name(source: Path, task: Task) -> str:
    """File name of the synthesised volume: the source contrast's suffix replaced by the target's."""
    stem, ending = _split_ending(source)
    prefix = stem.removesuffix(f"_{task.source}")
    return f"{prefix}_{task.target}{ending}"


def mask_path(source: Path, task: Task) -> Path:
    """Where the brain mask of a source volume is looked for: its name with ``mask`` for the contrast's suffix."""
    stem, ending = _split_ending(source)
    return source.with_name(f"{stem.removesuffix(f'_{task.source}')}_mask{ending}")


def provenance_path(out: Path) -> Path:
    """The JSON file beside a NIfTI file."""
    return out.with_name(_split_ending(out)[0] + ".json")


def _split_ending(path: Path) -> tuple[str, str]:
    stem, ending = split_nifti_name(path)
    if not ending:
        raise UsageError(f"{path}: is not named as NIfTI; give a name that ends in .nii.gz or .nii")
    return stem, ending
