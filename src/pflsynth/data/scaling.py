"""Robust, invertible intensity scaling of a volume, and the mask of the head that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from pflsynth.data.volumes import BoolArray, FloatArray
from pflsynth.errors import DataError

BACKGROUND = -1.0
"""Value of background in scaled images."""

LOW_PERCENTILE = 0.5
HIGH_PERCENTILE = 99.5

_SMOOTHING_VOXELS = 1.0
_OTSU_FRACTION = 0.5
_CLOSING_VOXELS = 3
_DARK = -0.5


@dataclass(frozen=True)
class Scale:
    """A linear map from scanner units to [-1, 1].

    Attributes:
        low: value that becomes -1 (background).
        high: value that becomes 1 (the brightest tissue, without outliers).
    """

    low: float
    high: float

    def apply(self, data: npt.ArrayLike) -> FloatArray:
        """Scanner units to [-1, 1], any shape; values below ``low`` and above ``high`` are clipped."""
        fraction = (np.asarray(data, dtype=np.float64) - self.low) / (self.high - self.low)
        return np.clip(2 * fraction - 1, -1, 1).astype(np.float32)

    def invert(self, scaled: npt.ArrayLike) -> FloatArray:
        """[-1, 1] back to scanner units, any shape; the inverse of :meth:`apply` but for voxels that it clipped."""
        fraction = (np.asarray(scaled, dtype=np.float64) + 1) / 2
        return (self.low + fraction * (self.high - self.low)).astype(np.float32)


def fit_scale(data: FloatArray, where: str) -> tuple[Scale, BoolArray]:
    """Measure the scale and the head of a whole volume; ``prepare`` and ``synthesize`` both use this.

    ``low`` is the 0.5th percentile of the volume (background: exactly 0 if it is skull-stripped, the noise floor if
    it is not), ``high`` the 99.5th percentile within the head, so that neither the amount of background nor a few
    bright voxels move it.

    Args:
        data: (X, Y, Z) in scanner units, background dark.
        where: site, subject, contrast and file, for errors.

    Returns:
        The scale, and the head mask (X, Y, Z).

    Raises:
        DataError: no head is seen, or the background is not dark.
    """
    mask = head_mask(data)
    if not mask.any():
        raise DataError(f"{where}: no head can be told from the background; look at the image")
    low = float(np.percentile(data, LOW_PERCENTILE))
    high = float(np.percentile(data[mask], HIGH_PERCENTILE))
    if high <= low:
        raise DataError(
            f"{where}: the head (99.5th percentile {high:g}) is no brighter than the background "
            f"(0.5th percentile {low:g}); look at the image"
        )
    scale = Scale(low, high)
    background = _border_value(data)
    if scale.apply(background) > _DARK:
        raise DataError(
            f"{where}: the background ({background:g}) is not dark, the volume goes from {low:g} to {high:g}; "
            "shift the values so that the background is the lowest (z-scored volumes: subtract the minimum within "
            "the brain and set the background to 0)"
        )
    return scale, mask


def _border_value(data: FloatArray) -> float:
    """10th percentile of the in-plane border, which is background even where the head reaches it in places."""
    sides = (data[0], data[-1], data[:, 0], data[:, -1])
    return float(np.percentile(np.concatenate([side.ravel() for side in sides]), 10))


def head_mask(data: FloatArray) -> BoolArray:
    """The head (or the brain, if the skull was removed) as one filled piece.

    Half of Otsu's threshold keeps dark tissue in; light smoothing, the largest connected piece and a closing remove
    noise; holes (fluid that is dark on T1w and FLAIR) are filled in each axial slice.

    Args:
        data: (X, Y, Z), background dark.

    Returns:
        Mask (X, Y, Z); all False if nothing stands out.
    """
    floor, ceiling = np.percentile(data, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if floor == ceiling:
        floor, ceiling = data.min(), data.max()
    in_plane = (_SMOOTHING_VOXELS, _SMOOTHING_VOXELS, 0)
    smooth = ndimage.gaussian_filter(np.clip(data, floor, ceiling), in_plane)
    threshold = floor + _OTSU_FRACTION * (threshold_otsu(smooth.ravel()) - floor)
    mask = _largest_piece(smooth > threshold)
    disk = _disk(_CLOSING_VOXELS)
    return np.stack([_closed_and_filled(mask[:, :, z], disk) for z in range(mask.shape[2])], axis=2)


def _largest_piece(mask: BoolArray) -> BoolArray:
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest: BoolArray = pieces == sizes.argmax()
    return largest


def _closed_and_filled(plane: BoolArray, disk: BoolArray) -> BoolArray:
    """Closing and hole filling of one slice (X, Y); where the border cuts the head, the border closes it."""
    width = disk.shape[0]
    closed = ndimage.binary_closing(np.pad(plane, width), disk)[width:-width, width:-width]
    framed = np.pad(closed, 1)
    sides = (
        (closed[0], framed[0]),
        (closed[-1], framed[-1]),
        (closed[:, 0], framed[:, 0]),
        (closed[:, -1], framed[:, -1]),
    )
    for side, frame in sides:
        reached = np.flatnonzero(side)
        if reached.size:
            frame[1 + reached[0] : 2 + reached[-1]] = True
    filled: BoolArray = ndimage.binary_fill_holes(framed)[1:-1, 1:-1]
    return filled


def _disk(radius: int) -> BoolArray:
    steps = np.arange(-radius, radius + 1)
    disk: BoolArray = steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2
    return disk
