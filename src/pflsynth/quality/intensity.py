"""Measures of the intensities of one volume, and what is suspicious about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.quality.findings import Finding

MOST_CLIPPED = 0.002
MOST_BACKGROUND = 0.12
MOST_OFFSET = 0.15
MOST_JUMP = 0.2
MOST_BIAS = 0.3
LEAST_SNR = 8.0

_PILE = 4
_FEWEST_PILED = 20
_EQUAL_SHARE = 0.5
_RAYLEIGH_MEDIAN = 1.1774
_RAYLEIGH_LOWER_QUARTER = 0.7585
_BLOCK_MM = 8.0
_BLOCK_DARK = 0.1
_FEWEST_STEPS = 200
_ROUNDS = 8
_OUTLIER = 3 * 1.4826


@dataclass(frozen=True)
class IntensityMeasures:
    """What is measured within and around the head of one volume.

    Attributes:
        clipped: share of the head's voxels at the very highest value; 0 unless these are at least 20, and four times
            as many as have the next lower value, so that values pile up there.
        background: median outside the head above the darkest (0.5th percentile) value, as a fraction of the scale,
            which goes from there to the 99.5th percentile of the head; None without voxels outside.
        offset: median outside the head, as a fraction of the same scale; None without voxels outside.
        constant_slices: indices along Z, within the head's extent, of slices of one value or equal to the one below.
        jumps: indices along Z of slices that are brighter or darker than both neighbours by more than ``MOST_JUMP``.
        largest_jump: the largest such difference (median over the head, to the nearer neighbour), as a fraction of
            the head's median.
        bias: coefficient of variation over the head of a smooth field: the exponential of a quadratic polynomial, whose
            slopes are fitted to the logarithms of neighbouring blocks of 8 mm. Edges of tissue are outliers of a robust
            fit. It takes in slow changes of anatomy: about 0.1 without any bias. None for a head of few blocks.
        snr: brightness (median) of the head over the standard deviation of the noise. The noise is taken from the
            median and the lower quartile outside the head, which follow a Rayleigh distribution in magnitude images of
            one coil; with parallel imaging or filters it is a rough figure. None if half or more of the background is
            of one value (removed, or below the smallest step), so that there is no noise to see.
    """

    clipped: float
    background: float | None
    offset: float | None
    constant_slices: tuple[int, ...]
    jumps: tuple[int, ...]
    largest_jump: float
    bias: float | None
    snr: float | None


def measure_intensity(volume: Volume, mask: BoolArray) -> IntensityMeasures:
    """Measure one volume.

    Args:
        volume: the image, in scanner units.
        mask: its head (X, Y, Z), not empty.
    """
    data = volume.data
    head, outside = data[mask], data[~mask]
    low, high = float(np.percentile(data, 0.5)), float(np.percentile(head, 99.5))
    level = float(np.median(head)) - low
    scale = high - low if high > low else 1.0
    typical = float(np.median(outside)) if outside.size else None
    jump = _jumps(data, mask, level)
    return IntensityMeasures(
        clipped=_clipped(head),
        background=None if typical is None else (typical - low) / scale,
        offset=None if typical is None else typical / scale,
        constant_slices=_constant_slices(data, low + level / 2),
        jumps=tuple(int(z) for z in np.flatnonzero(jump > MOST_JUMP)),
        largest_jump=float(jump.max()),
        bias=_bias(data - low, mask, volume.spacing_mm, level),
        snr=_snr(level + low, outside),
    )


def intensity_findings(
    measures: IntensityMeasures, volume: Volume, where: str, subject: str, contrast: str
) -> list[Finding]:
    """Say what is suspicious about the intensities of one volume.

    Args:
        measures: from :func:`measure_intensity`.
        volume: the volume that they are of.
        where: site and subject, such as "site ixi, subject sub-01".
        subject: the subject.
        contrast: the contrast.
    """
    said = {}
    if measures.clipped > MOST_CLIPPED:
        said["clipping"] = (
            f"{measures.clipped:.1%} of the head has the highest value {volume.data.max():g} (at most "
            f"{MOST_CLIPPED:.1%} is usual), so bright tissue is cut off; export it again without a limit to the values"
        )
    if measures.background is not None and measures.background > MOST_BACKGROUND:
        said["background"] = (
            f"the background lies {measures.background:.0%} of the scale above the darkest values (at most "
            f"{MOST_BACKGROUND:.0%} is usual); set the background to the lowest value"
        )
    elif measures.offset is not None and abs(measures.offset) > MOST_OFFSET:
        said["background"] = (
            f"the background lies {measures.offset:.0%} of the scale away from 0 (at most {MOST_OFFSET:.0%} is usual); "
            "shift the values so that the background is 0"
        )
    if measures.constant_slices:
        said["constant slices"] = (
            f"{_slices(measures.constant_slices)}, within the head, of one value or equal to the slice below; export "
            "or convert it again, for slices were lost or filled in"
        )
    if measures.jumps:
        said["slice gaps"] = (
            f"{_slices(measures.jumps)} brighter or darker than both neighbours by up to {measures.largest_jump:.0%} "
            f"(at most {MOST_JUMP:.0%} is usual); look for lost or disturbed slices"
        )
    if measures.bias is not None and measures.bias > MOST_BIAS:
        said["bias"] = (
            f"strong shading: its smooth field varies by {measures.bias:.0%} over the head (at most {MOST_BIAS:.0%} is "
            "usual); look at the image, and turn on intensity.bias_correction if it is the coil"
        )
    if measures.snr is not None and measures.snr < LEAST_SNR:
        said["noise"] = (
            f"signal over noise is {measures.snr:.1f} (at least {LEAST_SNR:g} is usual); look at the image, and leave "
            "it out if tissue cannot be told"
        )
    place = f"{where}, contrast {contrast} ({volume.path.name})"
    return [Finding("suspicious", check, f"{place}: {text}", subject, (contrast,)) for check, text in said.items()]


def _clipped(head: FloatArray) -> float:
    highest = head.max()
    rest = head[head < highest]
    at_highest, next_lower = head.size - rest.size, np.count_nonzero(rest == rest.max(initial=-np.inf))
    piled = rest.size > 0 and at_highest >= max(_FEWEST_PILED, _PILE * next_lower)
    return at_highest / head.size if piled else 0.0


def _constant_slices(data: FloatArray, bright: float) -> tuple[int, ...]:
    """Slices of one value, or equal to the one below, between the first and the last that show the head."""
    area = (data > bright).sum(axis=(0, 1))
    shown = np.flatnonzero(area > 0.01 * area.max())
    first, last = int(shown[0]), int(shown[-1])
    constant = data.max(axis=(0, 1)) == data.min(axis=(0, 1))
    repeated = np.append(False, (data[:, :, 1:] == data[:, :, :-1]).all(axis=(0, 1)))
    repeated[: first + 1] = False
    return tuple(z for z in range(first, last + 1) if constant[z] or repeated[z])


def _jumps(data: FloatArray, mask: BoolArray, level: float) -> npt.NDArray[np.float64]:
    """How far the median of each slice (Z,) lies beyond those of both neighbours; 0 at the ends and between them."""
    area = mask.sum(axis=(0, 1))
    jump = np.zeros(area.size)
    for z in range(1, area.size - 1):
        common = mask[:, :, z - 1] & mask[:, :, z] & mask[:, :, z + 1]
        if area[z - 1 : z + 2].min() < 0.3 * area.max() or not common.any():
            continue
        below, own, above = np.median(data[:, :, z - 1 : z + 2][common], axis=0)
        if (own - below) * (own - above) > 0:
            jump[z] = min(abs(own - below), abs(own - above)) / (level if level > 0 else 1.0)
    return jump


def _bias(data: FloatArray, mask: BoolArray, spacing_mm: tuple[float, float, float], level: float) -> float | None:
    """Coefficient of variation of the smooth field; ``data`` is 0 in the background."""
    sizes = [max(1, round(_BLOCK_MM / spacing)) for spacing in spacing_mm]
    block = _block_means(data, sizes)
    inside = (_block_means(mask.astype(np.float32), sizes) > 1 - 1e-6) & (block > _BLOCK_DARK * level)
    if not inside.any():
        return None
    logarithm = np.log(np.where(inside, block, 1.0))
    place = np.moveaxis(np.indices(inside.shape).astype(np.float64), 0, -1)
    low, high = place[inside].min(axis=0), place[inside].max(axis=0)
    x, y, z = np.moveaxis(2 * (place - low) / np.maximum(high - low, 1) - 1, -1, 0)
    terms = np.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=-1)
    slopes, steps = [], []
    for axis in range(3):
        both = np.take(inside, range(1, inside.shape[axis]), axis) & np.take(
            inside, range(inside.shape[axis] - 1), axis
        )
        slopes.append(np.diff(terms, axis=axis)[both])
        steps.append(np.diff(logarithm, axis=axis)[both])
    slope, step = np.concatenate(slopes), np.concatenate(steps)
    if len(step) < _FEWEST_STEPS:
        return None
    field = np.exp(terms[inside] @ _robust_fit(slope, step))
    return float(field.std() / field.mean())


def _robust_fit(terms: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coefficients of least squares with Tukey's biweights, after a fixed number of rounds."""
    weights = np.ones(len(values))
    coefficients = np.zeros(terms.shape[1])
    for _ in range(_ROUNDS):
        weighted = terms * weights[:, None]
        coefficients = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values, rcond=None)[0].astype(np.float64)
        residual = np.abs(values - terms @ coefficients)
        limit = _OUTLIER * float(np.median(residual)) + 1e-6
        weights = np.clip(1 - (residual / limit) ** 2, 0, None).astype(np.float64) ** 2
    return coefficients


def _block_means(data: FloatArray, sizes: list[int]) -> FloatArray:
    """Means of blocks of voxels; what is over at both ends is left out."""
    counts = [max(1, length // size) for length, size in zip(data.shape, sizes, strict=True)]
    sizes = [min(size, length) for size, length in zip(sizes, data.shape, strict=True)]
    starts = [(n - count * size) // 2 for n, count, size in zip(data.shape, counts, sizes, strict=True)]
    cut = data[tuple(slice(s, s + n * size) for s, n, size in zip(starts, counts, sizes, strict=True))]
    parts = [part for pair in zip(counts, sizes, strict=True) for part in pair]
    means: FloatArray = cut.reshape(parts).mean(axis=(1, 3, 5))
    return means


def _slices(places: tuple[int, ...]) -> str:
    """Number and places of slices."""
    named = ", ".join(map(str, places[:8])) + (", ..." if len(places) > 8 else "")
    return f"{len(places)} {'slice' if len(places) == 1 else 'slices'} ({named}, counted from 0 at the bottom)"


def _snr(level: float, outside: FloatArray) -> float | None:
    if not outside.size or np.mean(outside == outside.min()) >= _EQUAL_SHARE:
        return None
    air = outside[outside != outside.min()]
    lower, middle = np.percentile(air, (25, 50))
    noise = float(middle - lower) / (_RAYLEIGH_MEDIAN - _RAYLEIGH_LOWER_QUARTER)
    return (level - float(middle) + _RAYLEIGH_MEDIAN * noise) / noise if noise > 0 else None
