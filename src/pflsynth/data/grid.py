"""The way between a volume's own grid and the square slices that the networks see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy.sparse

from pflsynth.config_sections import ImageConfig
from pflsynth.data.scaling import BACKGROUND, Scale
from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.errors import DataError

_LARGEST_SIZE = 1024
_SIZE_STEP = 4


@lru_cache
def resampling_matrix(n_in: int, n_out: int, ratio: float, offset: float) -> scipy.sparse.csr_array:
    """Linear resampling along one axis, antialiased when it shrinks.

    Output sample ``i`` lies at input position ``offset + ratio * i`` and is the mean of the input samples around it,
    weighted by a triangle of half-width ``max(1, ratio)``. Weights that fall outside the input are left out, so that
    a row sums to the part of its triangle that the input covers (1 inside, 0 far outside).

    Returns:
        float32 (n_out, n_in).
    """
    half_width = max(1.0, ratio)
    positions = offset + ratio * np.arange(n_out)[:, None]
    first = np.floor(positions - half_width).astype(np.int64)
    samples = first + np.arange(2 * math.ceil(half_width) + 2)[None, :]
    weights = np.maximum(0.0, 1.0 - np.abs(samples - positions) / half_width)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(n_out)[:, None], samples.shape)
    inside = (samples >= 0) & (samples < n_in) & (weights > 0)
    entries = (weights[inside].astype(np.float32), (rows[inside], samples[inside]))
    return scipy.sparse.csr_array(entries, shape=(n_out, n_in))


@dataclass(frozen=True)
class _Axis:
    """One in-plane axis: ``n`` voxels of the volume and ``size`` pixels of the slice, centred on each other."""

    n: int
    size: int
    ratio: float

    @property
    def offset(self) -> float:
        """Voxel position of pixel 0; a whole number at native spacing, so that values pass through unchanged."""
        offset = (self.n - 1) / 2 - self.ratio * (self.size - 1) / 2
        return math.floor(offset) if self.ratio == 1.0 else offset

    @cached_property
    def to_slice(self) -> scipy.sparse.csr_array:
        return resampling_matrix(self.n, self.size, self.ratio, self.offset)

    @cached_property
    def to_volume(self) -> scipy.sparse.csr_array:
        return resampling_matrix(self.size, self.n, 1 / self.ratio, -self.offset / self.ratio)

    def holds(self, first: int, last: int) -> bool:
        """Whether the centres of voxels ``first`` to ``last`` lie within the slice."""
        low, high = ((voxel - self.offset) / self.ratio for voxel in (first, last))
        return low >= -0.5 and high <= self.size - 0.5


class SliceGrid:
    """Axial slices of ``size`` x ``size`` pixels of a RAS volume: anterior on top, columns along X.

    The slices and the volume share their in-plane centre. In-plane spacing is changed, and the plane is cropped or
    padded with background, in one linear operation per axis; slices along Z are kept as they are.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float],
        size: int,
        spacing_mm: float | None,
    ) -> None:
        """Make the grid.

        Args:
            shape: (X, Y, Z) of the volume.
            spacing: voxel size of the volume along X and Y, in mm.
            size: rows and columns of a slice.
            spacing_mm: pixel size of the slices; None keeps that of the volume.
        """
        self.shape = shape
        self.spacing = spacing
        self.size = size
        self.spacing_mm = spacing_mm
        self._columns, self._rows = (
            _Axis(n, size, _ratio(spacing_mm, own)) for n, own in zip(shape[:2], spacing, strict=True)
        )

    @classmethod
    def of(cls, volume: Volume, image: ImageConfig) -> SliceGrid:
        """The grid of a volume's slices as the configuration wants them."""
        x, y, z = volume.data.shape
        return cls((x, y, z), volume.spacing_mm[:2], image.size, image.spacing_mm)

    def scaled_slices(
        self, volume: Volume, scale: Scale, kept: Sequence[int], head: BoolArray | None = None
    ) -> FloatArray:
        """What the networks see of a volume; outside the volume is background.

        Args:
            volume: on this grid.
            scale: of its intensities.
            kept: indices along Z of the slices that are wanted.
            head: (X, Y, Z); if given, everything outside it becomes background.

        Returns:
            float32 (S, size, size) in [-1, 1].
        """
        scaled = np.stack([scale.apply(volume.data[:, :, z].T) for z in kept]).T
        if head is not None:
            scaled[~head[:, :, kept]] = BACKGROUND
        slices = self.to_slices(scaled, BACKGROUND)
        return np.clip(slices, -1, 1, out=slices)

    def to_slices(self, data: FloatArray, background: float) -> FloatArray:
        """Resample a volume.

        Args:
            data: (X, Y, Z).
            background: value of what lies outside the volume.

        Returns:
            float32 (Z, size, size).
        """
        planes = data.transpose(2, 1, 0)[:, ::-1, :]
        return _resample(planes, self._rows.to_slice, self._columns.to_slice, background)

    def to_volume(self, slices: FloatArray, background: float) -> FloatArray:
        """Resample slices back onto the volume's grid.

        Args:
            slices: (Z, size, size).
            background: value of what lies outside the slices.

        Returns:
            float32 (X, Y, Z).
        """
        planes = _resample(slices, self._rows.to_volume, self._columns.to_volume, background)
        return np.ascontiguousarray(planes[:, ::-1, :].transpose(2, 1, 0))

    def head_fits(self, mask: BoolArray) -> bool:
        """Whether the slices hold the centre of every voxel of the mask (X, Y, Z)."""
        (left, right), (front, back) = self._extent(mask)
        return self._columns.holds(left, right) and self._rows.holds(front, back)

    def check_head_fits(self, mask: BoolArray, where: str) -> None:
        """Refuse a grid that would cut the head.

        Args:
            mask: head (X, Y, Z).
            where: site and subject, for the error.

        Raises:
            DataError: with the head's extent and the ``image.size`` or ``image.spacing_mm`` that would do.
        """
        if self.head_fits(mask):
            return
        columns, rows = self._extent(mask)
        head = [(last - first + 1) * own for (first, last), own in zip((columns, rows), self.spacing, strict=True)]
        pixel = [self.spacing_mm or own for own in self.spacing]
        raise DataError(
            f"{where}: the head is {head[0]:.0f} x {head[1]:.0f} mm (left-right x front-back), but slices hold "
            f"{self.size * pixel[0]:.0f} x {self.size * pixel[1]:.0f} mm around the volume's centre "
            f"(image.size {self.size} at {max(pixel):g} mm), so the head would be cut; " + self._cure(mask)
        )

    def _cure(self, mask: BoolArray) -> str:
        sizes = range(self.size + _SIZE_STEP, _LARGEST_SIZE + 1, _SIZE_STEP)
        size = next((size for size in sizes if self._with(size, self.spacing_mm).head_fits(mask)), None)
        steps = (max(self.spacing_mm or own for own in self.spacing) * (1 + step / 100) for step in range(1, 1000))
        spacings = (math.ceil(spacing * 100) / 100 for spacing in steps)
        spacing = next((s for s in spacings if self._with(self.size, s).head_fits(mask)), None)
        cures = [
            f"image.size = {size}" if size else "",
            f"image.spacing_mm = {spacing}" if spacing else "",
        ]
        return "set " + " or ".join(filter(None, cures)) if any(cures) else "check its voxel size"

    def _with(self, size: int, spacing_mm: float | None) -> SliceGrid:
        return SliceGrid(self.shape, self.spacing, size, spacing_mm)

    def _extent(self, mask: BoolArray) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last voxel of the mask along X, and along Y counted from the front."""
        plane: BoolArray = np.logical_or.reduce(mask, axis=2)
        columns = np.flatnonzero(plane.any(axis=1))
        rows = np.flatnonzero(np.flip(plane.any(axis=0)))
        return (int(columns[0]), int(columns[-1])), (int(rows[0]), int(rows[-1]))


def _ratio(spacing_mm: float | None, own: float) -> float:
    """Pixel size over voxel size; sizes that differ by rounding alone (1.0000001 mm) count as equal."""
    if spacing_mm is None or math.isclose(spacing_mm, own, rel_tol=1e-4):
        return 1.0
    return spacing_mm / own


def _resample(
    planes: FloatArray, rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array, background: float
) -> FloatArray:
    """Apply both matrices to (Z, H, W); what the planes do not cover is ``background``."""
    depth, height, width = planes.shape
    down = rows @ planes.transpose(1, 0, 2).reshape(height, depth * width)
    down = np.ascontiguousarray(down.reshape(-1, depth, width).transpose(2, 1, 0))
    across = columns @ down.reshape(width, -1)
    resampled = across.reshape(columns.shape[0], depth, rows.shape[0]).transpose(1, 2, 0)
    covered = np.outer(rows.sum(axis=1), columns.sum(axis=1))
    filled: FloatArray = np.ascontiguousarray(resampled)
    filled += (np.float32(background) * (1 - covered)).astype(np.float32)
    return filled
