"""Percentiles of many values without putting all of them in order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_SAMPLE = 4096
_MARGIN = 64
_BACKGROUND = 16


def percentile(values: FloatArray, q: float) -> float:
    """The q-th percentile, interpolated linearly: what ``np.percentile`` gives for float64.

    A thin sample bounds the values in question; only what lies beyond that bound is put in order. A background of one
    value is most often seen in the first of the values.

    Args:
        values: any shape, not empty, without NaN.
        q: 0 to 100.
    """
    flat = values.ravel(order="K")
    rank = (flat.size - 1) * (q / 100)
    first = int(rank)
    second = min(first + 1, flat.size - 1)
    if q < 50:
        lowest = flat.min()
        if np.count_nonzero(flat[: _BACKGROUND * second] == lowest) > second:
            return float(lowest)
        tail, smaller = _low_tail(flat, rank)
    else:
        tail, smaller = _high_tail(flat, rank)
    if not smaller <= first <= second < smaller + tail.size:
        tail, smaller = flat, 0
    places = [first - smaller, second - smaller]
    one, other = (float(value) for value in np.partition(tail, places)[places])
    return one + (other - one) * (rank - first)


def _low_tail(flat: FloatArray, rank: float) -> tuple[FloatArray, int]:
    """Values that most likely hold those of the rank, and how many values are smaller than all of them."""
    sample, place = _sample(flat, rank)
    return flat[flat <= sample[min(place + _MARGIN, sample.size - 1)]], 0


def _high_tail(flat: FloatArray, rank: float) -> tuple[FloatArray, int]:
    sample, place = _sample(flat, rank)
    tail = flat[flat >= sample[max(place - _MARGIN, 0)]]
    return tail, flat.size - tail.size


def _sample(flat: FloatArray, rank: float) -> tuple[FloatArray, int]:
    """A sample in order, and the place in it of a rank of all values."""
    sample = np.sort(flat[:: max(1, flat.size // _SAMPLE)])
    return sample, round(rank * sample.size / flat.size)
