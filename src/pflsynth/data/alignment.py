"""Whether two contrasts of a subject show the head at the same place, by mutual information against small moves.

Normalised mutual information (Studholme et al., Pattern Recognition 1999) needs no common scale of intensities. It is
measured as the pair lies, for small shifts of one image, and for small turns, where opposite halves of the head are
shifted in opposite directions. Of a pair that lies well, no move gains much.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pflsynth.data.volumes import BoolArray, FloatArray, Volume

SHIFT_GAIN = 0.035
"""A pair is misaligned if a shift gains more than this; ``benchmarks/alignment.py`` shows the gains of real pairs."""

TURN_GAIN = 0.04
"""A pair is misaligned if a turn gains more than this beyond the best shift."""

_FARTHEST_MM = 4.0
_LARGEST_PART = 5
_MOST_SAMPLES = 250_000
_FEWEST_SAMPLES = 1000
_BINS = (8, 32)
_PERCENTILES = (1, 99)
_ABOVE_CHANCE = 20.0
_PASSES = 3
_OCTANTS = 8

_Step = tuple[int, int, int]
_Integers = npt.NDArray[np.int64]
_STILL: _Step = (0, 0, 0)


@dataclass(frozen=True)
class Alignment:
    """How well a pair lies, and which small move of the moving image would make it lie better.

    Attributes:
        nmi: normalised mutual information as the pair lies, (H(fixed) + H(moving)) / H(both), from 1 to 2.
        best_shift_mm: the shift that, applied to ``moving``, aligns it best: by how much its content has to go to
            the right, the front and the top (along the volume's axes X, Y, Z). Between voxels, by a parabola through
            the neighbours, where both neighbours were measured.
        best_nmi: normalised mutual information at the best shift by whole voxels.
        gain: (best_nmi - nmi) / (nmi - 1): the share by which the best shift raises what the images have in common;
            0 where nothing is better than no shift.
        turn_gain: the same share for the best turn, beyond the gain of the best shift; at least 0.
        evidence: False for very small or nearly constant images, and where little more is shared than by chance.
        aligned: not (``gain`` above ``SHIFT_GAIN`` or ``turn_gain`` above ``TURN_GAIN``); True for lack of evidence.
    """

    nmi: float
    best_shift_mm: tuple[float, float, float]
    best_nmi: float
    gain: float
    turn_gain: float
    evidence: bool
    aligned: bool


def measure_alignment(fixed: Volume, moving: Volume, mask: BoolArray) -> Alignment:
    """Compare a pair as it lies with small shifts of up to 4 mm (at least one voxel) and small turns.

    Args:
        fixed: the image that stays.
        moving: another contrast, on the same grid.
        mask: where both images show the head (X, Y, Z): the intersection of their head masks. Not the union: where
            only one brain was cut away, the union gives false alarms.

    Raises:
        ValueError: the shapes differ.
    """
    if not fixed.data.shape == moving.data.shape == mask.shape:
        raise ValueError(f"shapes differ: {fixed.data.shape}, {moving.data.shape}, {mask.shape}")
    pair = _sample(fixed, moving, mask)
    if pair is None:
        return Alignment(1.0, (0.0, 0.0, 0.0), 1.0, 0.0, 0.0, evidence=False, aligned=True)
    best = _climb(pair)
    here, there = pair.nmi(_STILL), pair.nmi(best)
    shared = max(here - 1, 1e-9)
    gain = (there - here) / shared
    turn_gain = max(0.0, (max(_turns(pair)) - there) / shared)
    evidence = pair.above_chance(best)
    aligned = not evidence or (gain <= SHIFT_GAIN and turn_gain <= TURN_GAIN)
    return Alignment(here, _between_voxels(pair, best, fixed.spacing_mm), there, gain, turn_gain, evidence, aligned)


def normalised_mutual_information(joint: npt.ArrayLike) -> float:
    """(H(first) + H(second)) / H(both) of a joint histogram: 1 for unrelated images, 2 for those that tell each other.

    Args:
        joint: counts (first, second), not all 0. One occupied cell gives 1.
    """
    counts = np.asarray(joint)
    both = _entropy(counts)
    return (_entropy(counts.sum(axis=0)) + _entropy(counts.sum(axis=1))) / both if both > 0 else 1.0


def overlap(fixed: BoolArray, moving: BoolArray) -> float:
    """How much of the head both images show: the share of the larger head mask that the other covers too.

    Args:
        fixed: head mask of one image (X, Y, Z).
        moving: head mask of the other, on the same grid.

    Returns:
        1 if both show the same; low if one image is cut off; 0 if a mask is empty.
    """
    larger = max(np.count_nonzero(fixed), np.count_nonzero(moving))
    return float(np.count_nonzero(fixed & moving) / larger) if larger else 0.0


def likely_misplaced(pairs: Mapping[tuple[str, str], Alignment]) -> dict[str, tuple[str, ...]]:
    """Which contrasts of a subject are to blame for its misaligned pairs.

    The contrast that is in most misaligned pairs is blamed first; then the pairs that this does not explain are looked
    at in the same way. Contrasts that are equally likely are all named.

    Args:
        pairs: every measured pair of one subject.

    Returns:
        Each blamed contrast and those that it disagrees with, both in the order of ``pairs``.
    """
    misaligned = [pair for pair, alignment in pairs.items() if not alignment.aligned]
    blamed: set[str] = set()
    unexplained = misaligned
    while unexplained:
        counts = Counter(itertools.chain.from_iterable(unexplained))
        blamed |= {contrast for contrast, count in counts.items() if count == max(counts.values())}
        unexplained = [pair for pair in unexplained if blamed.isdisjoint(pair)]
    order = dict.fromkeys(itertools.chain.from_iterable(pairs))
    return {
        contrast: tuple(other for other in order if {(contrast, other), (other, contrast)} & set(misaligned))
        for contrast in order
        if contrast in blamed
    }


@dataclass(frozen=True)
class _Pair:
    """Samples of a pair, ready for joint histograms.

    Attributes:
        rows: bin of every voxel of the fixed image, flat, times ``count``.
        columns: bin of every voxel of the moving image, flat.
        places: flat index of each sample; all steps within ``reach`` stay inside the volume.
        octants: octant of the head of each sample, times ``count`` squared.
        strides: distance in the flat volume of neighbours along X, Y and Z.
        reach: farthest step along X, Y and Z, in voxels.
        count: number of bins of each image.
        histograms: those that were made, by step.
    """

    rows: _Integers
    columns: _Integers
    places: _Integers
    octants: _Integers
    strides: _Step
    reach: _Step
    count: int
    histograms: dict[_Step, _Integers] = field(default_factory=dict)

    def histogram(self, step: _Step) -> _Integers:
        """Joint histograms (octant, fixed bin, moving bin) with the moving image shifted by ``step`` voxels.

        Each sample counts twice, as a place of the fixed and of the moving image: the order of a pair does not matter.
        """
        if step not in self.histograms:
            offset = sum(voxels * stride for voxels, stride in zip(step, self.strides, strict=True))
            joint = np.zeros(_OCTANTS * self.count**2, dtype=np.int64)
            for row, column in ((self.places, self.places - offset), (self.places + offset, self.places)):
                cells = self.octants + self.rows[row] + self.columns[column]
                joint += np.bincount(cells, minlength=len(joint))
            self.histograms[step] = joint.reshape(_OCTANTS, self.count, self.count)
        return self.histograms[step]

    def nmi(self, step: _Step) -> float:
        """Normalised mutual information with the moving image shifted."""
        return normalised_mutual_information(self.histogram(step).sum(axis=0))

    def along(self, start: _Step, axis: int) -> list[_Step]:
        """All steps that differ from ``start`` along one axis alone, and ``start``."""
        return [_replaced(start, axis, voxels) for voxels in range(-self.reach[axis], self.reach[axis] + 1)]

    def above_chance(self, step: _Step) -> bool:
        """Whether the images share clearly more than as many unrelated samples would by chance."""
        joint = self.histogram(step).sum(axis=0)
        shared = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)) - _entropy(joint)
        chance = (self.count - 1) ** 2 / (2 * len(self.places))
        return shared > _ABOVE_CHANCE * chance


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _sample(fixed: Volume, moving: Volume, mask: BoolArray) -> _Pair | None:
    """The samples of a pair, or None if they are too few or an image is constant there."""
    if not mask.any():
        return None
    reach = [
        min(max(1, math.ceil(_FARTHEST_MM / size)), count // _LARGEST_PART)
        for size, count in zip(fixed.spacing_mm, mask.shape, strict=True)
    ]
    box = _box(mask, reach)
    inside = np.zeros_like(mask[box])
    core = tuple(slice(far, count - far) for far, count in zip(reach, inside.shape, strict=True))
    inside[core] = mask[box][core]
    places = np.flatnonzero(inside)
    if len(places) < _FEWEST_SAMPLES:
        return None
    places = places[:: math.ceil(len(places) / _MOST_SAMPLES)]
    count = int(np.clip(math.sqrt(len(places)) / 16, *_BINS))
    rows, columns = (_binned(volume.data[box], places, count) for volume in (fixed, moving))
    if rows is None or columns is None:
        return None
    octants = _octants(places, inside.shape) * count**2
    strides = (inside.shape[1] * inside.shape[2], inside.shape[2], 1)
    return _Pair(rows * count, columns, places, octants, strides, (reach[0], reach[1], reach[2]), count)


def _box(mask: BoolArray, reach: Iterable[int]) -> tuple[slice, ...]:
    """The mask's bounding box, wider by ``reach`` where the volume goes on."""
    box = []
    for axis, far in enumerate(reach):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        shown = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(0, int(shown[0]) - far), int(shown[-1]) + 1 + far))
    return tuple(box)


def _binned(data: FloatArray, places: _Integers, count: int) -> _Integers | None:
    """Bin of every voxel, flat; the outermost bins take what lies beyond the percentiles. None if these are equal."""
    flat = data.ravel()
    low, high = np.percentile(flat[places], _PERCENTILES)
    if high <= low:
        return None
    bins: _Integers = np.clip((flat - low) * (count / (high - low)), 0, count - 1).astype(np.int64)
    return bins


def _octants(places: _Integers, shape: tuple[int, ...]) -> _Integers:
    """Octant of the head of each sample, 0 to 7: bit 0 is set in the right half, bit 1 in front, bit 2 on top."""
    octants = np.zeros_like(places)
    for bit, axis in enumerate(np.unravel_index(places, shape)):
        octants |= (axis > np.median(axis)).astype(np.int64) << bit
    return octants


def _climb(pair: _Pair) -> _Step:
    """The best step by whole voxels: the best along the three axes through the best so far, until none is better."""
    best = _STILL
    for _ in range(_PASSES):
        start = best
        best = max([start, *(step for axis in range(3) for step in pair.along(start, axis))], key=pair.nmi)
        if best == start:
            break
    return best


def _turns(pair: _Pair) -> list[float]:
    """Normalised mutual information of turns: opposite halves of the head, shifted in opposite directions."""
    halves = [np.array([octant >> axis & 1 for octant in range(_OCTANTS)], dtype=bool) for axis in range(3)]
    turned = []
    for half, axis in itertools.permutations(range(3), 2):
        for step in pair.along(_STILL, axis):
            back = _replaced(_STILL, axis, -step[axis])
            joint = pair.histogram(step)[halves[half]].sum(axis=0) + pair.histogram(back)[~halves[half]].sum(axis=0)
            turned.append(normalised_mutual_information(joint))
    return turned


def _between_voxels(pair: _Pair, best: _Step, spacing_mm: Iterable[float]) -> tuple[float, float, float]:
    """The best shift in millimetres, refined by a parabola along each axis."""
    x, y, z = (size * (best[axis] + _refinement(pair, best, axis)) for axis, size in enumerate(spacing_mm))
    return x, y, z


def _refinement(pair: _Pair, best: _Step, axis: int) -> float:
    """Where the parabola through the best step and its neighbours has its top, from the best step, in voxels."""
    if abs(best[axis]) >= pair.reach[axis]:
        return 0.0
    below, top, above = (pair.nmi(_replaced(best, axis, best[axis] + side)) for side in (-1, 0, 1))
    bend = 2 * top - below - above
    return (above - below) / (2 * bend) if bend > 0 else 0.0


def _replaced(step: _Step, axis: int, voxels: int) -> _Step:
    x, y, z = (voxels if place == axis else own for place, own in enumerate(step))
    return x, y, z
