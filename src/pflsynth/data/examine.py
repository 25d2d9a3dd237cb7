"""Examine one subject: load its contrasts, check them against each other, and measure scale, head and slices."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pflsynth.config import FederationConfig, Task
from pflsynth.data.grid import SliceGrid
from pflsynth.data.scaling import Scale, fit_scale
from pflsynth.data.subjects import Subject
from pflsynth.data.volumes import BoolArray, Volume, load_volume
from pflsynth.errors import DataError

_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class ExaminedSubject:
    """A subject whose volumes fit together, ready to be cut into slices.

    Attributes:
        name: the subject.
        volumes: one volume a contrast, all on one grid.
        scales: each volume's own scale.
        mask: head (X, Y, Z), the union over contrasts.
        grid: the way to model slices.
        kept: indices along Z of the slices that show the head.
    """

    name: str
    volumes: dict[str, Volume]
    scales: dict[str, Scale]
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


def examine_subject(config: FederationConfig, site: str, subject: Subject) -> ExaminedSubject:
    """Load and check a subject's volumes; one subject is in memory.

    Raises:
        DataError: everything that is wrong with the subject, one line each.
    """
    where = f"site {site}, subject {subject.name}"
    volumes: dict[str, Volume] = {}
    scales: dict[str, Scale] = {}
    masks: list[BoolArray] = []
    problems: list[str] = []
    for contrast, path in subject.volumes.items():
        try:
            volumes[contrast] = load_volume(path, f"{where}, contrast {contrast}")
            scales[contrast], mask = fit_scale(volumes[contrast].data, f"{where}, contrast {contrast}: {path}")
            masks.append(mask)
        except DataError as error:
            problems.append(str(error))
    try:
        check_geometry(volumes, where)
    except DataError as error:
        problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    first = next(iter(volumes.values()))
    mask = np.logical_or.reduce(masks)
    grid = SliceGrid.of(first, config.image)
    grid.check_head_fits(mask, where)
    kept = choose_slices(mask, config.slices.min_area, config.slices.maximum)
    return ExaminedSubject(subject.name, volumes, scales, mask, grid, kept)


def check_geometry(volumes: Mapping[str, Volume], where: str) -> None:
    """Refuse volumes that do not share one grid.

    Raises:
        DataError: with shape, spacing and affine of each contrast.
    """
    grids = list(volumes.values())
    if all(_same_grid(grids[0], other) for other in grids[1:]):
        return
    lines = "; ".join(
        f"{contrast} ({volume.path.name}): shape {' x '.join(map(str, volume.data.shape))}, "
        f"spacing {' x '.join(f'{step:.4g}' for step in volume.spacing_mm)} mm, "
        f"affine {[[round(float(value), 4) for value in row] for row in volume.affine[:3]]}"
        for contrast, volume in volumes.items()
    )
    raise DataError(
        f"{where}: its contrasts do not share one grid (in RAS: {lines}); register them to one of them and resample "
        "onto its grid before prepare"
    )


def _same_grid(one: Volume, other: Volume) -> bool:
    """Whether shapes are equal and every voxel lies at the same place, within the tolerance."""
    if one.data.shape != other.data.shape:
        return False
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in one.data.shape))])
    distance = (one.affine - other.affine) @ corners.T
    return bool(np.abs(distance).max() <= _TOLERANCE_MM)


def choose_slices(mask: BoolArray, min_area: float, maximum: int) -> tuple[int, ...]:
    """Axial slices that show enough of the head.

    Args:
        mask: head (X, Y, Z), not empty.
        min_area: least area, as a fraction of the largest slice's.
        maximum: most slices, evenly spaced among those; 0 for all.

    Returns:
        Indices along Z, ascending.
    """
    area = mask.sum(axis=(0, 1))
    shown = np.flatnonzero((area > 0) & (area >= min_area * area.max()))
    if maximum and len(shown) > maximum:
        shown = shown[np.linspace(0, len(shown) - 1, maximum).round().astype(int)]
    return tuple(int(index) for index in shown)
