"""Rigid and affine registration of two volumes of a subject, and resampling onto another grid, with SimpleITK.

Mattes mutual information (Mattes et al., IEEE TMI 2003, doi:10.1109/TMI.2003.809072) is maximised from coarse to fine.
The coarsest level first tries a lattice of rotations, with the heads' centres on each other, so that large offsets are
found. Everything runs in one thread and samples with a fixed seed: the same input gives the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import FloatArray, Volume, VoxelGrid
from pflsynth.errors import DataError

LEVELS_MM = (8.0, 4.0, 2.0)
"""Voxel size of the levels, coarse to fine; an axis with larger voxels keeps its own."""

IDENTITY = np.eye(4)

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_BINS = 50
_SEED = 1
_SAMPLES = 60_000
_SEARCH_DEGREES = 15.0
_SEARCH_STEPS = 2
_REFINED = 6
_ITERATIONS = 200
_SMOOTHING = 0.5
_MARGIN_MM = 10.0
_FEWEST = 4
_COARSEST = 6


@dataclass(frozen=True)
class Registration:
    """How one volume lies with respect to another.

    Attributes:
        matrix: (4, 4), millimetres (RAS) of the fixed volume to millimetres (RAS) of the moving volume.
        kind: "rigid" or "affine".
        metric_before: negative Mattes mutual information (nats, lower is better) of the volumes as they lie, at the
            finest level around the fixed volume's head; 0 if they do not overlap.
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

    Contrasts, voxel sizes, orientations and fields of view may differ. Found are rotations to about 40 degrees and
    any shift.

    Args:
        fixed: the reference.
        moving: the volume to align with it.
        kind: "rigid" (6 parameters), or "affine" (12, which starts from the rigid result).
        where: site, subject and contrasts, for errors.

    Raises:
        DataError: SimpleITK is not installed, a volume shows no head, or the volumes cannot be brought to overlap.
    """
    with one_thread():
        fixed_levels, head = _pyramid(fixed, where)
        moving_levels, moving_head = _pyramid(moving, where)
        around = _margin(head)
        levels = [
            _Level(level, other, resample(around, level.grid, nearest=True), size)
            for level, other, size in zip(fixed_levels, moving_levels, LEVELS_MM, strict=True)
        ]
        transform = simpleitk().Euler3DTransform()
        transform.SetCenter(_centre(head).tolist())
        transform.SetTranslation((_centre(moving_head) - _centre(head)).tolist())
        try:
            found = [levels[0].search(transform)]
            for level in levels[1:]:
                found[-1], outcome = level.optimize(found[-1])
            if kind == "affine":
                start = _itk_transform(_ras_matrix(found[-1]), found[-1].GetCenter())
                affine, outcome = levels[-1].optimize(start)
                found.append(affine)
        except RuntimeError as failure:
            raise DataError(
                f"{where}: {moving.path} cannot be registered to {fixed.path} "
                f"({str(failure).splitlines()[-1].strip()}); look at both images"
            ) from None
        as_they_lie = _itk_transform(IDENTITY)
        before = levels[-1].metric(as_they_lie)
        best = min(as_they_lie, *found, key=levels[-1].score)
        after = levels[-1].metric(best)
    matrix = _ras_matrix(best)
    return Registration(
        matrix=tuple(tuple(float(value) for value in row) for row in matrix),
        kind=kind,
        metric_before=before,
        metric_after=after,
        **outcome,
    )


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
    sitk = simpleitk()
    with one_thread():
        grid_of_result = sitk.Image(*(int(size) for size in grid.shape), sitk.sitkUInt8)
        _place(grid_of_result, grid.affine)
        result = sitk.Resample(
            to_itk(volume),
            grid_of_result,
            _itk_transform(np.asarray(matrix, dtype=np.float64)),
            sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
            float(volume.data.min()),
            sitk.sitkFloat32,
        )
    sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
    data = from_itk(result)
    return Volume(data, grid.affine, (float(sizes[0]), float(sizes[1]), float(sizes[2])), volume.path)


def grid_with_voxels(grid: VoxelGrid, voxel_mm: tuple[float, float, float]) -> VoxelGrid:
    """A grid with other voxel sizes, the same centre and directions, and the same field of view to within a voxel.

    Args:
        grid: the grid whose field of view is covered.
        voxel_mm: voxel size along X, Y and Z.
    """
    steps, old_shape = np.asarray(voxel_mm, dtype=np.float64), np.asarray(grid.shape)
    old_steps = np.linalg.norm(grid.affine[:3, :3], axis=0)
    shape = np.maximum(1, np.rint(old_shape * old_steps / steps)).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / old_steps * steps
    centre = grid.affine[:3, :3] @ ((old_shape - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return VoxelGrid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def simpleitk() -> ModuleType:
    """The module SimpleITK.

    Raises:
        DataError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise DataError(
            'registration, resampling and bias correction need SimpleITK: pip install "pflsynth[imaging]"'
        ) from None
    return SimpleITK


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK computes in one thread here, so that sums do not depend on timing; its setting is put back after."""
    process = simpleitk().ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def to_itk(volume: Volume) -> Any:
    """A volume as SimpleITK image."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    _place(image, volume.affine)
    return image


def from_itk(image: Any) -> FloatArray:
    """The values of a SimpleITK image, (X, Y, Z)."""
    return np.ascontiguousarray(simpleitk().GetArrayFromImage(image).transpose(2, 1, 0))


def _place(image: Any, affine: npt.NDArray[np.float64]) -> None:
    """Give a SimpleITK image the place of an RAS affine; SimpleITK's millimetres are LPS."""
    lps = _RAS_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())


def _itk_transform(matrix: npt.NDArray[np.float64], centre: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Any:
    """An RAS matrix as SimpleITK's affine transform, to be optimised about ``centre`` (LPS)."""
    lps = _RAS_LPS @ matrix @ _RAS_LPS
    transform = simpleitk().AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    middle = np.asarray(centre, dtype=np.float64)
    transform.SetCenter(middle.tolist())
    transform.SetTranslation((lps[:3, 3] + lps[:3, :3] @ middle - middle).tolist())
    return transform


def _ras_matrix(transform: Any) -> npt.NDArray[np.float64]:
    """A linear SimpleITK transform as RAS matrix."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    lps = np.eye(4)
    lps[:3, :3] = linear
    lps[:3, 3] = np.array(transform.GetTranslation()) + centre - linear @ centre
    return _RAS_LPS @ lps @ _RAS_LPS


def _pyramid(volume: Volume, where: str) -> tuple[list[Volume], Volume]:
    """The volume at each level, coarse to fine, and the head with a margin as a volume of 0 and 1."""
    if min(volume.data.shape) < _FEWEST:
        raise DataError(
            f"{where}: {volume.path} has {' x '.join(map(str, volume.data.shape))} voxels, registration needs at least "
            f"{_FEWEST} along each axis; give volumes that lie on one grid, and set registration.transform to none"
        )
    levels: list[Volume] = []
    for size in reversed(LEVELS_MM):
        levels.insert(0, _coarser(levels[0] if levels else volume, size))
    middle = levels[1]
    head = head_mask(middle.data)
    if not head.any():
        raise DataError(f"{where}: no head can be told from the background in {volume.path}; look at the image")
    low, high = np.percentile(middle.data, 0.5), np.percentile(middle.data[head], 99.5)
    clipped = [replace(level, data=np.clip(level.data, low, high)) for level in levels]
    return clipped, replace(middle, data=head.astype(np.float32))


def _coarser(volume: Volume, size_mm: float) -> Volume:
    """Smoothed and resampled to voxels of ``size_mm``; an axis of larger or few voxels keeps its own."""
    extent = np.array(volume.data.shape) * volume.spacing_mm
    sizes = np.maximum(volume.spacing_mm, np.minimum(size_mm, extent / _COARSEST))
    ratios = sizes / volume.spacing_mm
    smooth = ndimage.gaussian_filter(volume.data, _SMOOTHING * np.sqrt(ratios**2 - 1), mode="nearest")
    return resample(replace(volume, data=smooth), grid_with_voxels(volume.grid, tuple(sizes)))


def _margin(mask: Volume) -> Volume:
    distance = ndimage.distance_transform_edt(mask.data == 0, sampling=mask.spacing_mm)
    return replace(mask, data=(distance <= _MARGIN_MM).astype(np.float32))


def _centre(mask: Volume) -> npt.NDArray[np.float64]:
    """Centre of mass in millimetres, LPS."""
    middle = np.append(np.argwhere(mask.data > 0).mean(axis=0), 1)
    return (_RAS_LPS @ mask.affine @ middle)[:3]


class _Level:
    """One resolution of the pyramid."""

    def __init__(self, fixed: Volume, moving: Volume, mask: Volume, step_mm: float) -> None:
        sitk = simpleitk()
        self._images = (to_itk(fixed), to_itk(moving))
        self._mask = sitk.Cast(to_itk(mask), sitk.sitkUInt8)
        self._share = min(1.0, _SAMPLES / max(1.0, float(mask.data.sum())))
        self._step_mm = step_mm
        self._moving = moving.grid
        inside = np.argwhere(mask.data > 0)
        self._head_mm = fixed.affine @ np.concatenate([inside, np.ones((len(inside), 1))], axis=1).T
        self._radius_mm = float(np.sqrt(self._head_mm[:3].var(axis=1).sum()))

    def metric(self, transform: Any) -> float:
        """The negative mutual information; 0 if the volumes do not overlap."""
        method = self._method()
        method.SetInitialTransform(transform)
        method.MetricUseFixedImageGradientFilterOff()
        method.MetricUseMovingImageGradientFilterOff()
        try:
            return float(method.MetricEvaluate(*self._images))
        except RuntimeError:
            return 0.0

    def optimize(self, transform: Any) -> tuple[Any, dict[str, Any]]:
        """Descend from ``transform``; the transform that was reached, and how."""
        method = self._method()
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=self._step_mm / 2,
            minStep=self._step_mm / 200,
            numberOfIterations=_ITERATIONS,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-8,
        )
        rest = transform.GetNumberOfParameters() - 3
        method.SetOptimizerScales([self._radius_mm**2] * rest + [1.0] * 3)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(*self._images)
        stop = method.GetOptimizerStopConditionDescription().split(": ", 1)[-1]
        converged = "aximum number" not in stop
        return transform, {"iterations": int(method.GetOptimizerIteration()), "converged": converged, "stop": stop}

    def search(self, transform: Any) -> Any:
        """Try a lattice of rotations, optimise the best few, and return the best transform."""
        sitk = simpleitk()
        angles = np.deg2rad(_SEARCH_DEGREES * np.arange(-_SEARCH_STEPS, _SEARCH_STEPS + 1))
        tried = []
        for rotation in itertools.product(angles, repeat=3):
            candidate = sitk.Euler3DTransform(transform)
            candidate.SetRotation(*rotation)
            tried.append((self.score(candidate), rotation, candidate))
        tried.sort(key=lambda entry: entry[:2])
        refined = [self.optimize(candidate)[0] for _, _, candidate in tried[:_REFINED]]
        return min(refined, key=self.score)

    def score(self, transform: Any) -> float:
        """The metric times the share of the fixed head in the moving field of view: a small overlap can look good."""
        voxels = np.linalg.inv(self._moving.affine) @ _ras_matrix(transform) @ self._head_mm
        last = np.array(self._moving.shape)[:, None] - 0.5
        covered = ((voxels[:3] >= -0.5) & (voxels[:3] <= last)).all(axis=0).mean()
        return float(covered) * self.metric(transform)

    def _method(self) -> Any:
        sitk = simpleitk()
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_BINS)
        method.SetMetricFixedMask(self._mask)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(self._share, _SEED)
        method.SetInterpolator(sitk.sitkLinear)
        return method
