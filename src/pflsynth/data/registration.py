"""Rigid and affine registration of two volumes of a subject, and resampling onto another grid, with SimpleITK.

Mattes mutual information (Mattes et al., IEEE TMI 2003, doi:10.1109/TMI.2003.809072) is maximised from coarse to fine.
The coarsest level first tries a lattice of rotations, with the heads' centres on each other, so that large offsets are
found. Everything runs in one thread and samples with a fixed seed: the same input gives the same bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.head import head_mask
from pflsynth.data.itk import from_itk, from_transform, one_thread, place, simpleitk, to_itk, to_transform
from pflsynth.data.volumes import BoolArray, Volume, VoxelGrid
from pflsynth.errors import DataError

LEVELS_MM = (8.0, 4.0, 2.0)
"""Voxel size of the levels, coarse to fine; an axis with larger or with few voxels keeps its own."""

IDENTITY = np.eye(4)

_FEWEST_VOXELS = 4
_FEWEST_AT_A_LEVEL = 6
_SMOOTHING = 0.5
_HIGH_PERCENTILE = 99.5
_LOW_PERCENTILE = 0.5
_MARGIN_MM = 10.0
_BINS = 50
_SAMPLES = 60_000
_SEED = 1
_ITERATIONS = 200
_SEARCH_DEGREES = (-30.0, -15.0, 0.0, 15.0, 30.0)
_REFINED = 6


@dataclass(frozen=True)
class Registration:
    """How one volume lies with respect to another.

    Attributes:
        matrix: (4, 4), millimetres (RAS) of the fixed volume to millimetres (RAS) of the moving volume. Exactly the
            identity if nothing better was found.
        kind: "rigid" or "affine".
        metric_before: negative Mattes mutual information (nats, lower is better) of the volumes as they lie, at the
            finest level, around the fixed volume's head; 0 if they do not overlap.
        metric_after: the same with ``matrix``.
        iterations: of the optimizer at the finest level.
        converged: the optimizer stopped because it found an optimum, not because of the limit of iterations.
        stop: the optimizer's own words for why it stopped.
    """

    matrix: tuple[tuple[float, float, float, float], ...]
    kind: Literal["rigid", "affine"]
    metric_before: float
    metric_after: float
    iterations: int
    converged: bool
    stop: str


def register(fixed: Volume, moving: Volume, kind: Literal["rigid", "affine"], where: str) -> Registration:
    """Find where each place of the fixed volume's head lies in the moving volume.

    Contrast, voxel size, orientation and field of view may differ. Rotations to 30 degrees and any shift are found.
    The result is never worse than leaving the volumes as they lie.

    Args:
        fixed: the reference.
        moving: the volume to align with it.
        kind: "rigid" (6 parameters), or "affine" (12 parameters, which start from the rigid result).
        where: site, subject and contrasts, for errors.

    Raises:
        DataError: SimpleITK is not installed, a volume shows no head or has fewer than 4 voxels along an axis, or the
            volumes cannot be brought to overlap.
    """
    with one_thread():
        one, other = _Pyramid(fixed, where), _Pyramid(moving, where)
        levels = [_Level(one, other, number) for number in range(len(LEVELS_MM))]
        back = np.linalg.inv(other.to_units(one.radius_mm))
        there = one.to_units(one.radius_mm)
        as_they_lie = to_transform(np.linalg.inv(back) @ np.linalg.inv(there))
        try:
            found = [levels[0].search()]
            for level in levels[1:]:
                found[0], ending = level.optimize(found[0])
            if kind == "affine":
                found.append(to_transform(from_transform(found[0])))
                for level in levels[1:]:
                    found[1], ending = level.optimize(found[1])
        except RuntimeError as failure:
            raise DataError(
                f"{where}: {moving.path.name} cannot be registered to {fixed.path.name} "
                f"({str(failure).splitlines()[-1].strip()}); look at both images"
            ) from None
        finest = levels[-1]
        best = min(as_they_lie, *found, key=finest.score)
        before, after = finest.metric(as_they_lie), finest.metric(best)
    matrix = IDENTITY if best is as_they_lie else back @ from_transform(best) @ there
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in matrix)
    return Registration(rows, kind, before, after, ending.iterations, ending.converged, ending.stop)


def resample(volume: Volume, grid: VoxelGrid, matrix: npt.ArrayLike = IDENTITY, *, nearest: bool = False) -> Volume:
    """Interpolate a volume once, at the voxels of another grid.

    Args:
        volume: the original data.
        grid: where the voxels of the result lie.
        matrix: (4, 4), millimetres (RAS) of ``grid`` to millimetres (RAS) of ``volume``, such as
            :attr:`Registration.matrix` when ``grid`` is that of the fixed volume.
        nearest: take the nearest voxel's value, for masks, instead of linear interpolation.

    Returns:
        The volume on ``grid``, with the path of ``volume``; its lowest value where it does not reach (further than
        half a voxel beyond the centres of its outermost voxels).

    Raises:
        DataError: SimpleITK is not installed.
    """
    with one_thread():
        sitk = simpleitk()
        result = sitk.Image(*(int(size) for size in grid.shape), sitk.sitkUInt8)
        place(result, grid.affine)
        result = sitk.Resample(
            to_itk(volume.data, volume.affine),
            result,
            to_transform(np.asarray(matrix, dtype=np.float64)),
            sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
            float(volume.data.min()),
            sitk.sitkFloat32,
        )
    x, y, z = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return Volume(from_itk(result), grid.affine, (float(x), float(y), float(z)), volume.path)


def grid_with_voxels(grid: VoxelGrid, voxel_mm: tuple[float, float, float]) -> VoxelGrid:
    """A grid with other voxel sizes, the same centre and directions, and the same field of view to within a voxel.

    Args:
        grid: the grid whose field of view is covered.
        voxel_mm: voxel size along X, Y and Z.
    """
    old_shape, old_sizes = np.array(grid.shape), np.linalg.norm(grid.affine[:3, :3], axis=0)
    x, y, z = np.maximum(1, np.rint(old_shape * old_sizes / voxel_mm)).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] *= np.array(voxel_mm) / old_sizes
    centre = grid.affine[:3, :3] @ ((old_shape - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array((x, y, z)) - 1) / 2)
    return VoxelGrid((int(x), int(y), int(z)), affine)


class _Pyramid:
    """A volume at all levels, and its head.

    Attributes:
        levels: the volume, coarse to fine, without very bright voxels.
        head: places within and near the head, 1 or 0.
        centre_mm: middle of the head.
        radius_mm: root mean square distance of the head from its middle.
    """

    def __init__(self, volume: Volume, where: str) -> None:
        if min(volume.data.shape) < _FEWEST_VOXELS:
            raise DataError(
                f"{where}: {volume.path.name} has {' x '.join(map(str, volume.data.shape))} voxels, and registration "
                f"needs {_FEWEST_VOXELS} along each axis; use volumes on one grid, with registration.transform none"
            )
        levels = [_coarser(volume, LEVELS_MM[-1])]
        for size_mm in reversed(LEVELS_MM[:-1]):
            levels.insert(0, _coarser(levels[0], size_mm))
        middle = levels[1]
        mask = head_mask(middle.data)
        if not mask.any():
            raise DataError(
                f"{where}: no head can be told from the background in {volume.path.name}; look at the image"
            )
        low, high = np.percentile(middle.data, _LOW_PERCENTILE), np.percentile(middle.data[mask], _HIGH_PERCENTILE)
        places = _places_mm(mask, middle.affine)
        distance = ndimage.distance_transform_edt(~mask, sampling=middle.spacing_mm)
        self.levels = [replace(level, data=np.clip(level.data, low, high)) for level in levels]
        self.head = replace(middle, data=(distance <= _MARGIN_MM).astype(np.float32))
        self.centre_mm = places.mean(axis=1)
        self.radius_mm = float(np.sqrt(places.var(axis=1).sum()))

    def to_units(self, unit_mm: float) -> npt.NDArray[np.float64]:
        """Matrix (4, 4) of millimetres to coordinates of unit ``unit_mm`` whose origin is the middle of the head."""
        matrix = np.diag([1 / unit_mm, 1 / unit_mm, 1 / unit_mm, 1.0])
        matrix[:3, 3] = -self.centre_mm / unit_mm
        return matrix


@dataclass(frozen=True)
class _Ending:
    iterations: int
    converged: bool
    stop: str


class _Level:
    """Two volumes at one level.

    Transforms are between coordinates whose origins are the middles of the heads and whose unit is the fixed head's
    radius: a step of any parameter, angle or shift, then moves the head about equally far.
    """

    def __init__(self, fixed: _Pyramid, moving: _Pyramid, number: int) -> None:
        unit_mm = fixed.radius_mm
        one, other = fixed.levels[number], moving.levels[number]
        head = resample(fixed.head, one.grid, nearest=True).data > 0
        one_affine, self._affine = fixed.to_units(unit_mm) @ one.affine, moving.to_units(unit_mm) @ other.affine
        self._images = (to_itk(one.data, one_affine), to_itk(other.data, self._affine))
        self._mask = to_itk(head.astype(np.uint8), one_affine)
        self._samples = min(1.0, _SAMPLES / head.sum())
        self._step = LEVELS_MM[number] / unit_mm
        self._head = _places_mm(head, one_affine)
        self._shape = np.array(other.data.shape)

    def metric(self, transform: Any) -> float:
        """The negative mutual information; 0 if the volumes do not overlap."""
        method = self._method(transform)
        method.MetricUseFixedImageGradientFilterOff()
        method.MetricUseMovingImageGradientFilterOff()
        try:
            return float(method.MetricEvaluate(*self._images))
        except RuntimeError:
            return 0.0

    def score(self, transform: Any) -> float:
        """The metric times the share of the fixed head that the moving volume covers: little overlap can look good."""
        voxels = _moved(np.linalg.inv(self._affine) @ from_transform(transform), self._head)
        covered = ((voxels >= -0.5) & (voxels <= self._shape[:, None] - 0.5)).all(axis=0).mean()
        return float(covered) * self.metric(transform)

    def search(self) -> Any:
        """Try a lattice of rotations, optimize the best few, and return the best transform."""
        tried = []
        for degrees in itertools.product(_SEARCH_DEGREES, repeat=3):
            transform = simpleitk().Euler3DTransform()
            transform.SetRotation(*np.deg2rad(degrees).tolist())
            tried.append((self.score(transform), degrees, transform))
        tried.sort(key=lambda entry: entry[:2])
        return min((self.optimize(transform)[0] for _, _, transform in tried[:_REFINED]), key=self.score)

    def optimize(self, transform: Any) -> tuple[Any, _Ending]:
        """Change ``transform`` until the metric is best, and tell how that ended."""
        method = self._method(transform)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self._step / 2,
            minStep=self._step / 200,
            numberOfIterations=_ITERATIONS,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-8,
        )
        method.Execute(*self._images)
        iterations = int(method.GetOptimizerIteration())
        stop = method.GetOptimizerStopConditionDescription().split(": ", 1)[-1].split(". ")[0]
        return transform, _Ending(iterations, iterations < _ITERATIONS, stop)

    def _method(self, transform: Any) -> Any:
        sitk = simpleitk()
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
        method.SetMetricFixedMask(self._mask)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(self._samples, _SEED)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(transform, inPlace=True)
        return method


def _coarser(volume: Volume, size_mm: float) -> Volume:
    """Smoothed and resampled to voxels of ``size_mm``; an axis with larger or with few voxels keeps its own."""
    extent = np.array(volume.data.shape) * volume.spacing_mm
    sizes = np.maximum(volume.spacing_mm, np.minimum(size_mm, extent / _FEWEST_AT_A_LEVEL))
    sigma = _SMOOTHING * np.sqrt((sizes / volume.spacing_mm) ** 2 - 1)
    smooth = replace(volume, data=ndimage.gaussian_filter(volume.data, sigma, mode="nearest"))
    return resample(smooth, grid_with_voxels(volume.grid, tuple(sizes)))


def _places_mm(mask: BoolArray, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the voxels of a mask lie, (3, N)."""
    return _moved(affine, np.argwhere(mask).T)


def _moved(matrix: npt.NDArray[np.float64], places: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """A matrix (4, 4) applied to places (3, N)."""
    moved: npt.NDArray[np.float64] = matrix[:3, :3] @ places + matrix[:3, 3:]
    return moved
