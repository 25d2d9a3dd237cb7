"""One subject on the road of ``prepare``: looked at once, written once, and not again after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pflsynth.config import FederationConfig
from pflsynth.data.align import rows
from pflsynth.data.examine import ExaminedSubject, examine_subject
from pflsynth.data.manifest import SubjectRecord, VolumeRecord
from pflsynth.data.normalizers import NORMALIZERS, Statistics
from pflsynth.data.subjects import Subject
from pflsynth.data.workspace import FinishedSubject, StoredSlices, Workspace, slices_name
from pflsynth.errors import DataError
from pflsynth.files import save_tensors, sha256_of_file


@dataclass(frozen=True)
class SubjectJob:
    """What a process needs to know to do one subject.

    Attributes:
        config: the federation.
        site: the subject's.
        subject: its files.
        workspace: where the work is kept.
        references: the normalizer's reference of each contrast; None to look at the subject and write nothing.
    """

    config: FederationConfig
    site: str
    subject: Subject
    workspace: Workspace
    references: Mapping[str, Statistics] | None


def do_subject(job: SubjectJob) -> FinishedSubject:
    """Look at a subject and, if the references are known, write its slices; what was done before is not done again.

    The file holds each contrast as float32 (S, size, size) in [-1, 1], and "mask", the head, as uint8 of the same
    shape.

    Raises:
        DataError: everything that is wrong with the subject, one line each.
        OSError: disk full, no permission.
    """
    sources = source_hashes(job.subject)
    references = None if job.references is None else {name: job.references[name] for name in job.subject.volumes}
    before = job.workspace.recall(job.subject.name, sources)
    if before is not None and (references is None or _is_written(before, references)):
        return before
    known = None if before is None else {name: own.placement for name, own in before.subject.contrasts.items()}
    examined = examine_subject(job.config, job.site, job.subject, known)
    stored = None if references is None else _write_slices(job, examined, references)
    done = FinishedSubject(sources=sources, subject=_record(job, examined, sources), stored=stored)
    job.workspace.remember(done)
    return done


def source_hashes(subject: Subject) -> dict[str, str]:
    """SHA-256 of each file of a subject, by contrast; the brain mask is "mask".

    Raises:
        DataError: a file cannot be read.
    """
    paths = {**subject.volumes, **({"mask": subject.mask} if subject.mask is not None else {})}
    return {name: _hash(path, f"subject {subject.name}, contrast {name}") for name, path in paths.items()}


def _hash(path: Path, where: str) -> str:
    try:
        return sha256_of_file(path)
    except PermissionError:
        raise DataError(f"{where}: {path}: no permission to read it; ask for read access to the file") from None
    except OSError as failure:
        raise DataError(f"{where}: {path}: cannot be read ({failure.strerror}); copy or export it again") from None


def _is_written(done: FinishedSubject, references: Mapping[str, Statistics]) -> bool:
    return done.stored is not None and done.stored.references == references


def _write_slices(job: SubjectJob, examined: ExaminedSubject, references: dict[str, Statistics]) -> StoredSlices:
    normalizer = NORMALIZERS[job.config.intensity.normalizer]
    kept, grid, name = list(examined.kept), examined.grid, job.subject.name
    tensors: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.uint8]] = {}
    for contrast, volume in examined.volumes.items():
        scale = normalizer.scale(examined.statistics[contrast], references[contrast])
        head = examined.masks[contrast] if normalizer.masked else None
        tensors[contrast] = grid.scaled_slices(volume, scale, kept, head)
    mask = grid.to_slices(examined.mask[:, :, kept].astype(np.float32), 0.0)
    tensors["mask"] = (mask >= 0.5).astype(np.uint8)
    path = job.workspace.slices / slices_name(name)
    save_tensors(path, tensors, {"site": job.site, "subject": name, "slices": kept}, kind="subject")
    return StoredSlices(references=references, sha256=sha256_of_file(path), bytes=path.stat().st_size)


def _record(job: SubjectJob, examined: ExaminedSubject, sources: Mapping[str, str]) -> SubjectRecord:
    first = next(iter(examined.volumes.values()))
    folder = job.config.data_folder(job.site)
    return SubjectRecord(
        name=job.subject.name,
        person=job.subject.person,
        slices=examined.kept,
        shape=first.grid.shape,
        affine=rows(first.affine),
        spacing_mm=first.spacing_mm,
        contrasts={
            contrast: VolumeRecord(
                source=_relative(volume.path, folder),
                source_sha256=sources[contrast],
                voxels_sha256=examined.voxels_sha256[contrast],
                placement=examined.placements[contrast],
                statistics=examined.statistics[contrast],
            )
            for contrast, volume in examined.volumes.items()
        },
    )


def _relative(path: Path, folder: Path) -> str:
    """The path in the site's folder, or the name alone if a listing points elsewhere."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
