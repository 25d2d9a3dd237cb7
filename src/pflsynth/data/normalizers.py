"""How intensities become the [-1, 1] that the networks see: one entry of ``NORMALIZERS`` for each way.

A normalizer measures a few statistics of every volume, may fit a reference for the site on its training subjects
alone, and turns both into a :class:`~pflsynth.data.scaling.Scale`. ``prepare`` and ``synthesize`` take the same road.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pflsynth.data.head import HIGH_PERCENTILE
from pflsynth.data.scaling import Head, Scale, find_head
from pflsynth.data.volumes import BoolArray, FloatArray
from pflsynth.errors import DataError

Statistics = tuple[float, ...]

_DEVIATIONS = 4.0
_DECILES = tuple(range(10, 100, 10))


@dataclass(frozen=True)
class Normalizer:
    """One way to normalise.

    Attributes:
        measure: a volume (X, Y, Z) and its head to the statistics that are kept of it; ``ValueError`` says why it
            cannot be done.
        fit: the statistics of a contrast's training volumes to the site's reference; None if it needs none.
        scale: a volume's statistics and the site's reference to its scale.
        masked: whether everything outside the head becomes background.
        inverse: what inverting gives back.
    """

    measure: Callable[[FloatArray, Head], Statistics]
    fit: Callable[[Sequence[Statistics]], Statistics] | None
    scale: Callable[[Statistics, Statistics], Scale]
    masked: bool
    inverse: str


def measure_volume(data: FloatArray, normalizer: str, where: str) -> tuple[Statistics, BoolArray]:
    """Statistics and head mask of a whole volume.

    Args:
        data: (X, Y, Z) in scanner units, background dark.
        normalizer: a name of ``NORMALIZERS``.
        where: site, subject, contrast and file, for errors.

    Raises:
        DataError: no head is seen, the background is not dark, or the normalizer cannot work with the values.
    """
    head = find_head(data, where)
    try:
        return NORMALIZERS[normalizer].measure(data, head), head.mask
    except ValueError as failure:
        raise DataError(f"{where}: intensity.normalizer = {normalizer!r} cannot be used: {failure}") from None


def _percentile(data: FloatArray, head: Head) -> Statistics:
    return head.low, head.high


def _percentile_scale(statistics: Statistics, reference: Statistics) -> Scale:
    return Scale.linear(*statistics)


def _mean(data: FloatArray, head: Head) -> Statistics:
    mean = float(data[head.mask].mean(dtype=np.float64))
    if mean <= 0:
        raise ValueError(f"the mean within the head is {mean:g}, and a mean above 0 is wanted")
    return mean, float(data.max())


def _site_maximum(training: Sequence[Statistics]) -> Statistics:
    return (max(maximum / mean for mean, maximum in training),)


def _mean_scale(statistics: Statistics, reference: Statistics) -> Scale:
    return Scale.linear(0.0, statistics[0] * reference[0])


def _moments(data: FloatArray, head: Head) -> Statistics:
    inside = data[head.mask]
    mean, deviation = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    if deviation == 0:
        raise ValueError(f"all values within the head are {mean:g}")
    return mean, deviation


def _zscore_scale(statistics: Statistics, reference: Statistics) -> Scale:
    mean, deviation = statistics
    return Scale.linear(mean - _DEVIATIONS * deviation, mean + _DEVIATIONS * deviation)


def _landmarks(data: FloatArray, head: Head) -> Statistics:
    *deciles, high = np.percentile(data[head.mask], (*_DECILES, HIGH_PERCENTILE))
    return head.low, *map(float, deciles), float(high)


def _standard_landmarks(training: Sequence[Statistics]) -> Statistics:
    """Mean of the landmarks over training volumes, each mapped linearly to [-1, 1] first."""
    marks = np.array(training)
    low, high = marks[:, :1], marks[:, -1:]
    levels = (2 * (marks - low) / (high - low) - 1).mean(axis=0)
    return tuple(float(level) for level in levels)


def _landmark_scale(statistics: Statistics, reference: Statistics) -> Scale:
    """Landmark to landmark; of landmarks that fall together, in the volume or in the reference, the first counts."""
    knots = [(statistics[0], reference[0])]
    for value, level in itertools.islice(zip(statistics, reference, strict=True), 1, None):
        if value > knots[-1][0] and level > knots[-1][1]:
            knots.append((value, level))
    return Scale(tuple(value for value, _ in knots), tuple(level for _, level in knots))


NORMALIZERS: dict[str, Normalizer] = {
    "percentile": Normalizer(
        _percentile, None, _percentile_scale, masked=False, inverse="all voxels between the two percentiles"
    ),
    "mean": Normalizer(
        _mean, _site_maximum, _mean_scale, masked=False, inverse="all voxels from 0 to the site's maximum"
    ),
    "zscore": Normalizer(
        _moments,
        None,
        _zscore_scale,
        masked=True,
        inverse="voxels of the head within four standard deviations of its mean; the background is lost",
    ),
    "nyul": Normalizer(
        _landmarks,
        _standard_landmarks,
        _landmark_scale,
        masked=False,
        inverse="all voxels between the first and the last landmark",
    ),
}
"""``percentile``: the 0.5th percentile of the volume to the 99.5th of its head. ``mean``: the field's way, each volume
divided by its mean within the head, then by the largest value of the site's training volumes. ``zscore``: mean and
standard deviation within the head, four deviations to each side. ``nyul``: deciles of the head moved to the mean
deciles of the training volumes (Nyul, Udupa and Zhang 2000, doi:10.1109/42.836373)."""
