"""Examine one subject: load its contrasts, bring them onto one grid, and measure intensities, head and slices."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pflsynth.config import FederationConfig, Task
from pflsynth.data.align import align_volumes
from pflsynth.data.bias import correct_bias
from pflsynth.data.grid import SliceGrid
from pflsynth.data.manifest import Placement
from pflsynth.data.normalizers import Statistics, measure_volume
from pflsynth.data.registration import resample
from pflsynth.data.scaling import find_head
from pflsynth.data.subjects import Subject
from pflsynth.data.volumes import BoolArray, Volume, VoxelGrid, load_volume
from pflsynth.errors import DataError


@dataclass(frozen=True)
class ExaminedSubject:
    """A subject whose volumes lie on one grid, ready to be cut into slices.

    Attributes:
        subject: whose they are.
        volumes: one volume a contrast, all on one grid.
        voxels_sha256: hash of each contrast's voxel values as they were read.
        placements: how each contrast came onto the grid.
        statistics: what the normalizer measured of each contrast.
        masks: head of each contrast (X, Y, Z).
        mask: head (X, Y, Z), the union over contrasts.
        grid: the way to model slices.
        kept: indices along Z of the slices that show the head.
    """

    subject: Subject
    volumes: dict[str, Volume]
    voxels_sha256: dict[str, str]
    placements: dict[str, Placement]
    statistics: dict[str, Statistics]
    masks: dict[str, BoolArray]
    mask: BoolArray
    grid: SliceGrid
    kept: tuple[int, ...]


def used_contrasts(config: FederationConfig, site: str) -> tuple[str, ...]:
    """Contrasts that at least one of the site's tasks uses, in the agreement's order."""
    used = {contrast for task in config.sites[site].tasks for contrast in (task.source, task.target)}
    return tuple(contrast for contrast in config.contrasts if contrast in used)


def serves(contrasts: Iterable[str], tasks: Iterable[Task]) -> bool:
    """Whether a subject with these contrasts can take part in at least one of the tasks."""
    have = set(contrasts)
    return any(task.source in have and task.target in have for task in tasks)


def examine_subject(
    config: FederationConfig, site: str, subject: Subject, known: Mapping[str, Placement] | None = None
) -> ExaminedSubject:
    """Load, check, align and measure a subject's volumes; one subject is in memory.

    Args:
        config: the federation.
        site: the subject's.
        subject: with at least one contrast.
        known: placements that were found before, to do again without searching.

    Raises:
        DataError: everything that is wrong with the subject, one line each.
    """
    where = f"site {site}, subject {subject.name}"
    volumes = load_subject(subject, where)
    hashes = {contrast: voxels_sha256(volume) for contrast, volume in volumes.items()}
    if config.intensity.bias_correction:
        volumes = {
            contrast: without_bias(volume, f"{where}, contrast {contrast}") for contrast, volume in volumes.items()
        }
    volumes, placements = align_volumes(volumes, config.registration, where, known)
    if subject.mask is not None:
        brain = on_grid(load_volume(subject.mask, f"{where}, brain mask"), next(iter(volumes.values())).grid, where)
        volumes = {contrast: with_dark_background(volume, brain) for contrast, volume in volumes.items()}
    statistics: dict[str, Statistics] = {}
    masks: dict[str, BoolArray] = {}
    problems: list[str] = []
    for contrast, volume in volumes.items():
        try:
            statistics[contrast], masks[contrast] = measure_volume(
                volume.data, config.intensity.normalizer, f"{where}, contrast {contrast}: {volume.path}"
            )
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    mask = functools.reduce(np.logical_or, masks.values())
    grid = SliceGrid.of(next(iter(volumes.values())), config.image)
    grid.check_head_fits(mask, where)
    kept = choose_slices(mask, config.slices.min_area, config.slices.maximum)
    return ExaminedSubject(subject, volumes, hashes, placements, statistics, masks, mask, grid, kept)


def load_subject(subject: Subject, where: str) -> dict[str, Volume]:
    """Read all contrasts of a subject, each on its own grid.

    Raises:
        DataError: every file that cannot be used, one line each.
    """
    volumes: dict[str, Volume] = {}
    problems: list[str] = []
    for contrast, path in subject.volumes.items():
        try:
            volumes[contrast] = load_volume(path, f"{where}, contrast {contrast}")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return volumes


def on_grid(brain: Volume, grid: VoxelGrid, where: str) -> BoolArray:
    """A brain mask on another grid (nearest voxel).

    Raises:
        DataError: it is empty there.
    """
    mask = resample(brain, grid, nearest=True).data > 0
    if not mask.any():
        raise DataError(f"{where}: the brain mask {brain.path} is empty where the image is; check its affine")
    return mask


def with_dark_background(volume: Volume, mask: BoolArray) -> Volume:
    """The volume with everything outside the mask set to its lowest value."""
    return replace(volume, data=np.where(mask, volume.data, volume.data.min()))


def without_bias(volume: Volume, where: str) -> Volume:
    """The volume after N4 bias field correction within its head."""
    return correct_bias(volume, find_head(volume.data, f"{where}: {volume.path}").mask)


def voxels_sha256(volume: Volume) -> str:
    """SHA-256 over shape and every fourth row of voxels (float32, RAS): equal for copies, whatever their files."""
    digest = hashlib.sha256(repr(volume.data.shape).encode())
    for plane in volume.data.T:
        digest.update(np.ascontiguousarray(plane[::4]).data)
    return digest.hexdigest()


def choose_slices(mask: BoolArray, min_area: float, maximum: int) -> tuple[int, ...]:
    """Axial slices that show enough of the head.

    Args:
        mask: head (X, Y, Z), not empty.
        min_area: least area, as a fraction of the largest slice's.
        maximum: most slices, evenly spaced among those; 0 for all.

    Returns:
        Indices along Z, ascending.
    """
    area = np.array([np.count_nonzero(plane) for plane in mask.T])
    shown = np.flatnonzero((area > 0) & (area >= min_area * area.max()))
    if maximum and len(shown) > maximum:
        shown = shown[np.linspace(0, len(shown) - 1, maximum).round().astype(int)]
    return tuple(int(index) for index in shown)
