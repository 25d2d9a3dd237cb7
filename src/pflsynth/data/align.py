"""Bring the contrasts of a subject onto one grid: leave, resample or register them, and say which and why."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from pflsynth.config_sections import RegistrationConfig
from pflsynth.data.alignment import SHIFT_GAIN, measure_alignment
from pflsynth.data.manifest import Placement
from pflsynth.data.registration import Registration, grid_with_voxels, register, resample
from pflsynth.data.scaling import find_head
from pflsynth.data.volumes import Volume, VoxelGrid
from pflsynth.errors import DataError

_TOLERANCE_MM = 1e-3


def reference_contrast(contrasts: Mapping[str, object], config: RegistrationConfig) -> str:
    """The contrast that the others are registered to: the configured one, else T1w, else the first there is."""
    wanted = (config.reference or "T1w", "T1w", *contrasts)
    return next(contrast for contrast in wanted if contrast in contrasts)


def align_volumes(
    volumes: Mapping[str, Volume],
    config: RegistrationConfig,
    where: str,
    known: Mapping[str, Placement] | None = None,
) -> tuple[dict[str, Volume], dict[str, Placement]]:
    """Bring a subject's volumes onto one grid, each resampled at most once.

    A contrast on the reference's grid is left as it is unless it is clearly misaligned; one on another grid is always
    registered.

    Args:
        volumes: at least one, each on its own grid.
        config: how.
        where: site and subject, for errors.
        known: placements that were found before, to do again without searching.

    Returns:
        The volumes on one grid, and how each came there, in the order of ``volumes``.

    Raises:
        DataError: different grids with ``transform = "none"``, or a registration that cannot be done.
    """
    name = reference_contrast(volumes, config)
    if config.transform == "none":
        check_geometry(volumes, where)
        placements = {contrast: Placement(step="untouched", reason="registration is off") for contrast in volumes}
    elif known is not None:
        placements = dict(known)
    else:
        placements = _placements(volumes, name, config.transform, where)
    reference = volumes[name].grid
    grid = reference if config.voxel_mm is None else grid_with_voxels(reference, config.voxel_mm)
    return {contrast: _placed(volume, placements[contrast], grid) for contrast, volume in volumes.items()}, placements


def check_geometry(volumes: Mapping[str, Volume], where: str) -> None:
    """Refuse volumes that do not share one grid.

    Raises:
        DataError: with shape, spacing and affine of each contrast.
    """
    grids = [volume.grid for volume in volumes.values()]
    if all(same_grid(grids[0], other) for other in grids[1:]):
        return
    lines = "; ".join(
        f"{contrast} ({volume.path.name}): shape {' x '.join(map(str, volume.data.shape))}, "
        f"spacing {' x '.join(f'{step:.4g}' for step in volume.spacing_mm)} mm, "
        f"affine {[[round(float(value), 4) for value in row] for row in volume.affine[:3]]}"
        for contrast, volume in volumes.items()
    )
    raise DataError(
        f"{where}: its contrasts do not share one grid (in RAS: {lines}), and registration.transform is none; set it "
        "to rigid, or register them to one of them and resample onto its grid"
    )


def same_grid(one: VoxelGrid, other: VoxelGrid) -> bool:
    """Whether shapes are equal and every voxel lies at the same place, within 0.001 mm."""
    if one.shape != other.shape:
        return False
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in one.shape))])
    distance = (one.affine - other.affine) @ corners.T
    return bool(np.abs(distance).max() <= _TOLERANCE_MM)


def rows(matrix: npt.NDArray[np.float64]) -> tuple[tuple[float, float, float, float], ...]:
    """A 4x4 matrix as the manifest holds it."""
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)


def _placements(
    volumes: Mapping[str, Volume], name: str, transform: Literal["rigid", "affine"], where: str
) -> dict[str, Placement]:
    reference = volumes[name]
    placements = {}
    for contrast, volume in volumes.items():
        if contrast == name:
            placements[contrast] = Placement(step="reference", reason="the others are registered to it")
        elif same_grid(reference.grid, volume.grid):
            placements[contrast] = _checked(reference, volume, transform, f"{where}, contrast {contrast}")
        else:
            found = register(reference, volume, transform, f"{where}, contrast {contrast}")
            placements[contrast] = _registered(found, f"its grid is not that of {name}")
    return placements


def _checked(reference: Volume, volume: Volume, transform: Literal["rigid", "affine"], where: str) -> Placement:
    """Leave a volume on the reference's grid as it is, unless registration mends a misalignment that is seen."""
    heads = [find_head(own.data, f"{where}: {own.path}").mask for own in (reference, volume)]
    mask = heads[0] & heads[1]
    before = measure_alignment(reference, volume, mask)
    if before.aligned:
        return Placement(step="untouched", reason=f"already aligned (NMI {before.nmi:.4f}, best without a shift)")
    found = register(reference, volume, transform, where)
    moves = {"registration": np.array(found.matrix), "the shift alone": _translation(reference, before.best_shift_mm)}
    after = {
        name: measure_alignment(reference, resample(volume, reference.grid, matrix), mask).nmi
        for name, matrix in moves.items()
    }
    best = max(after, key=lambda name: after[name])
    shift = ", ".join(f"{step:+.1f}" for step in before.best_shift_mm)
    moved = f"{before.best_nmi:.4f} when moved by {shift} mm" if before.gain > SHIFT_GAIN else "higher when turned"
    seen = f"NMI {before.nmi:.4f}, {moved}"
    if after[best] <= before.nmi:
        reason = f"misaligned ({seen}), but no registration made it better: look at it"
        return Placement(step="untouched", reason=reason, doubtful=True)
    reason = f"misaligned ({seen}); NMI {after[best]:.4f} after {best}"
    if best == "registration":
        return _registered(found, reason)
    return Placement(step="registered", reason=reason, matrix=rows(moves[best]), kind="rigid")


def _translation(reference: Volume, shift_mm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Millimetres of the reference to millimetres of a volume whose content has to move along the grid's axes."""
    directions = reference.affine[:3, :3] / np.array(reference.spacing_mm)
    matrix = np.eye(4)
    matrix[:3, 3] = -directions @ np.array(shift_mm)
    return matrix


def _registered(found: Registration, reason: str) -> Placement:
    return Placement(
        step="registered",
        reason=reason,
        matrix=found.matrix,
        kind=found.kind,
        metric_before=found.metric_before,
        metric_after=found.metric_after,
        iterations=found.iterations,
        converged=found.converged,
        stop=found.stop,
        doubtful=not found.converged,
    )


def _placed(volume: Volume, placement: Placement, grid: VoxelGrid) -> Volume:
    if placement.matrix is None and same_grid(volume.grid, grid):
        return volume
    return resample(volume, grid, np.eye(4) if placement.matrix is None else placement.matrix)
