"""Connected pieces of a stack of planes, found on runs of voxels instead of on voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from pflsynth.data.volumes import BoolArray

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """The True voxels of a stack of planes, as runs along its rows.

    Attributes:
        starts: index of the first voxel of each run in the flat stack, ascending.
        stops: index after its last voxel.
    """

    starts: IntArray
    stops: IntArray

    @classmethod
    def of(cls, stack: BoolArray) -> Runs:
        """The runs of a stack (planes, rows, columns) whose last column is False everywhere."""
        flat = stack.ravel()
        steps = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            steps = np.concatenate(([0], steps))
        return cls(steps[0::2], steps[1::2])

    def pieces(self, *shifts: int) -> tuple[int, IntArray]:
        """Which runs hang together.

        Args:
            shifts: distances in the flat stack at which voxels are neighbours: that of two rows, that of two planes.

        Returns:
            The number of pieces, and the piece of each run.
        """
        pairs = [self._touching(shift) for shift in shifts]
        one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
        count = self.starts.size
        graph = scipy.sparse.coo_array((np.ones(one.size, np.int8), (one, other)), shape=(count, count))
        number, labels = connected_components(graph, directed=False)
        return int(number), labels

    def voxels(self, chosen: BoolArray) -> IntArray:
        """Flat indices of the voxels of the runs for which ``chosen`` is True."""
        return _ranges(self.starts[chosen], self.stops[chosen])

    def _touching(self, shift: int) -> tuple[IntArray, IntArray]:
        """Pairs of runs of which the first, moved by ``shift``, shares a voxel with the second."""
        first = np.searchsorted(self.stops, self.starts + shift, side="right")
        last = np.searchsorted(self.starts, self.stops + shift, side="left")
        return np.repeat(np.arange(self.starts.size), last - first), _ranges(first, last)


def _ranges(starts: IntArray, stops: IntArray) -> IntArray:
    """The numbers of ``range(start, stop)`` of each pair, one after the other."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    offset = np.repeat(starts - (ends - lengths), lengths)
    result: IntArray = offset + np.arange(offset.size)
    return result
