"""Findings about orientation, voxels and fields of view of a subject's volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np

from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.quality.findings import Finding

LARGEST_VOXEL_MM = 8.0
SMALLEST_VOXEL_MM = 0.2
MOST_ANISOTROPY = 12.0
THICK_ANISOTROPY = 2.5
MOST_OBLIQUE_DEGREES = 30.0
MOST_SHEAR_DEGREES = 2.0
LEAST_SHARED_VIEW = 0.6
FLAT_SIDE = 3.5

_DARK = 0.25
_AXES = ("left-right", "front-back", "bottom-top")
_SIDES = ("left", "right", "back", "front")


def geometry_findings(volumes: Mapping[str, Volume], where: str, subject: str) -> list[Finding]:
    """Say what is suspicious about the orientation, the voxels and the fields of view of a subject's volumes.

    Args:
        volumes: volume of each contrast, before or after registration.
        where: site and subject, such as "site ixi, subject sub-01".
        subject: the subject.
    """
    bright = {contrast: _bright(volume.data) for contrast, volume in volumes.items()}
    checks: tuple[tuple[str, Callable[[str], list[str]]], ...] = (
        ("orientation", lambda contrast: _orientation(volumes[contrast])),
        ("spacing", lambda contrast: _spacing(volumes[contrast].spacing_mm)),
    )
    findings = []
    for check, problems_of in checks:
        sharing: dict[str, list[str]] = {}
        for contrast in volumes:
            for problem in problems_of(contrast):
                sharing.setdefault(problem, []).append(contrast)
        for problem, contrasts in sharing.items():
            text = f"{where}, {_files(volumes, contrasts)}: {problem}"
            findings.append(Finding("suspicious", check, text, subject, tuple(contrasts)))
    cuts = {contrast: _cut_sides(bright[contrast]) for contrast in volumes}
    for side in _SIDES:
        contrasts = [contrast for contrast in volumes if side in cuts[contrast]]
        if contrasts:
            flat, limit = max(cuts[contrast][side] for contrast in contrasts)
            text = (
                f"{where}, {_files(volumes, contrasts)}: the head ends at the {side} in a plane over {flat:.0%} of its "
                f"width (at most {limit:.0%} is usual), as if the field of view cut it; look at the image"
            )
            findings.append(Finding("suspicious", "field of view", text, subject, tuple(contrasts)))
    for one, other in permutations(volumes, 2):
        shared = _shared_view(bright[one], volumes[one], volumes[other])
        if shared < LEAST_SHARED_VIEW:
            text = (
                f"{where}: {other} ({volumes[other].path.name}) covers {shared:.0%} of the head that {one} "
                f"({volumes[one].path.name}) shows (at least {LEAST_SHARED_VIEW:.0%} is usual); check that both are of "
                "one person and session and that their affines are right"
            )
            findings.append(Finding("suspicious", "field of view", text, subject, (one, other)))
    return findings


def _files(volumes: Mapping[str, Volume], contrasts: Sequence[str]) -> str:
    return ", ".join(f"{contrast} ({volumes[contrast].path.name})" for contrast in contrasts)


def _orientation(volume: Volume) -> list[str]:
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    oblique = np.degrees(np.arccos(np.clip(np.diag(directions), -1, 1)))
    cosines = np.abs(directions.T @ directions - np.eye(3))
    shear = float(np.degrees(np.arcsin(min(1.0, float(cosines.max())))))
    thick = int(np.argmax(volume.spacing_mm))
    problems = []
    if oblique.max() > MOST_OBLIQUE_DEGREES:
        axis = _AXES[int(oblique.argmax())]
        problems.append(
            f"its {axis} axis is {oblique.max():.0f} degrees oblique (at most {MOST_OBLIQUE_DEGREES:g} is usual), so "
            "that axial slices are not axial; check the affine, or resample it onto straight axes"
        )
    if shear > MOST_SHEAR_DEGREES:
        problems.append(
            f"its axes are {shear:.0f} degrees off right angles (at most {MOST_SHEAR_DEGREES:g} is usual); check the "
            "affine"
        )
    if thick != 2 and max(volume.spacing_mm) > THICK_ANISOTROPY * min(volume.spacing_mm):
        problems.append(
            f"its slices are {max(volume.spacing_mm):.3g} mm thick {_AXES[thick]}, not bottom-top, so axial slices are "
            "coarse; check the affine, or use an axial series"
        )
    return problems


def _spacing(spacing_mm: tuple[float, float, float]) -> list[str]:
    smallest, largest = min(spacing_mm), max(spacing_mm)
    if largest <= LARGEST_VOXEL_MM and smallest >= SMALLEST_VOXEL_MM and largest <= MOST_ANISOTROPY * smallest:
        return []
    return [
        f"its voxels are {' x '.join(f'{size:.3g}' for size in spacing_mm)} mm ({SMALLEST_VOXEL_MM:g} to "
        f"{LARGEST_VOXEL_MM:g} mm, and at most {MOST_ANISOTROPY:g} : 1, are usual); check the voxel size in its header"
    ]


def _bright(data: FloatArray) -> BoolArray:
    """Voxels (X, Y, Z) above a quarter of the typical brightness of what is brighter than the mean."""
    low = float(np.percentile(data[::4, ::4], 0.5))
    bright: BoolArray = data > low + _DARK * (float(np.median(data[data > data.mean()])) - low)
    return bright


def _cut_sides(bright: BoolArray) -> dict[str, tuple[float, float]]:
    """Sides on which the head ends in a plane, each with the plane's share of the head's width and its limit.

    From one plane to the next one further in, a round head of n voxels grows by 2 / sqrt(n) of its width at most; the
    limit is three quarters more, in a quarter of its slices.
    """
    slices = bright[:, :, bright.any(axis=(0, 1))]
    quarter = max(2, -(-slices.shape[2] // 4))
    cut = {}
    for axis, sides in ((0, _SIDES[:2]), (1, _SIDES[2:])):
        width = int(slices.any(axis=(axis, 2)).sum())
        profile = slices.sum(axis=1 - axis) / width
        limit = FLAT_SIDE / float(np.sqrt(width))
        for side, planes in zip(sides, (profile, profile[::-1]), strict=True):
            growth = np.diff(planes[: planes.shape[0] // 4], axis=0, prepend=0)
            flat = float(np.sort(growth, axis=1)[:, -quarter:].min(axis=1).max(initial=0))
            if flat > limit:
                cut[side] = (flat, limit)
    return cut


def _shared_view(bright: BoolArray, volume: Volume, other: Volume) -> float:
    """Share of the bright voxels of a volume (a sample of them) that lie within the grid of another."""
    places = np.argwhere(bright[::4, ::4]) * (4, 4, 1)
    to_other = np.linalg.inv(other.affine) @ volume.affine
    there = places @ to_other[:3, :3].T + to_other[:3, 3]
    inside = ((there >= -0.5) & (there <= np.array(other.data.shape) - 0.5)).all(axis=1)
    return float(inside.mean()) if inside.size else 1.0
