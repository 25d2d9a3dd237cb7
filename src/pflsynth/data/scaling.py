"""Invertible intensity scales of volumes, and the robust range of intensities within the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pflsynth.data.head import HIGH_PERCENTILE, LOW_PERCENTILE, head_mask
from pflsynth.data.percentiles import percentile
from pflsynth.data.volumes import BoolArray, FloatArray
from pflsynth.errors import DataError

BACKGROUND = -1.0
"""Value of background in scaled images."""


_DARK = -0.5


@dataclass(frozen=True)
class Scale:
    """A rising, piecewise linear map from scanner units to [-1, 1].

    Attributes:
        values: scanner units, strictly rising; at least two.
        levels: what they become, strictly rising, within [-1, 1].
    """

    values: tuple[float, ...]
    levels: tuple[float, ...]

    @classmethod
    def linear(cls, low: float, high: float) -> Scale:
        """The map of two values: ``low`` becomes -1 (background), ``high`` becomes 1 (the brightest tissue)."""
        return cls((low, high), (-1.0, 1.0))

    def apply(self, data: npt.ArrayLike) -> FloatArray:
        """Scanner units to [-1, 1], any shape; values beyond the first and the last are clipped."""
        return _interpolated(np.asarray(data), self.values, self.levels)

    def invert(self, scaled: npt.ArrayLike) -> FloatArray:
        """[-1, 1] back to scanner units, any shape; the inverse of :meth:`apply` but for voxels that it clipped."""
        return _interpolated(np.asarray(scaled), self.levels, self.values)


@dataclass(frozen=True)
class Head:
    """What every normalizer rests on: the head of a whole volume and its range of intensities.

    Attributes:
        mask: (X, Y, Z).
        low: 0.5th percentile of the volume: exactly 0 if it is skull-stripped, the noise floor if it is not.
        high: 99.5th percentile within the mask.
    """

    mask: BoolArray
    low: float
    high: float


def find_head(data: FloatArray, where: str) -> Head:
    """Find the head in a whole volume and its robust range of intensities.

    Neither the amount of background nor a few bright voxels move the range.

    Args:
        data: (X, Y, Z) in scanner units, background dark.
        where: site, subject, contrast and file, for errors.

    Raises:
        DataError: no head is seen, or the background is not dark.
    """
    mask = head_mask(data)
    if not mask.any():
        raise DataError(f"{where}: no head can be told from the background; look at the image")
    low = percentile(data, LOW_PERCENTILE)
    high = percentile(data.T[mask.T], HIGH_PERCENTILE)
    if high <= low:
        raise DataError(
            f"{where}: the head (99.5th percentile {high:g}) is no brighter than the background "
            f"(0.5th percentile {low:g}); look at the image"
        )
    background = _border_value(data)
    if Scale.linear(low, high).apply(background) > _DARK:
        raise DataError(
            f"{where}: the background ({background:g}) is not dark, the volume goes from {low:g} to {high:g}; "
            "shift the values so that the background is the lowest (z-scored volumes: subtract the minimum within "
            "the brain and set the background to 0)"
        )
    return Head(mask, low, high)


def _interpolated(data: npt.NDArray[Any], values: tuple[float, ...], levels: tuple[float, ...]) -> FloatArray:
    """``levels`` at ``data``, linear between ``values``, constant beyond them."""
    if len(values) > 2:
        stepwise: FloatArray = np.interp(data, values, levels).astype(np.float32)
        return stepwise
    slope = (levels[1] - levels[0]) / (values[1] - values[0])
    scaled = data.astype(np.float32)
    scaled -= np.float32(values[0])
    scaled *= np.float32(slope)
    scaled += np.float32(levels[0])
    return np.clip(scaled, levels[0], levels[1], out=scaled)


def _border_value(data: FloatArray) -> float:
    """10th percentile of the in-plane border, which is background even where the head reaches it in places."""
    sides = (data[0], data[-1], data[:, 0], data[:, -1])
    return percentile(np.concatenate([side.ravel() for side in sides]), 10)
