"""A volume seen through a few boxes that span the head: small, and the same whatever surrounds the head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pflsynth.data.volumes import BoolArray, FloatArray


def box_average(data: FloatArray, mask: BoolArray, boxes: tuple[int, int, int]) -> FloatArray:
    """Average a volume in a regular grid of boxes that spans the head's bounding box.

    A voxel that lies in several boxes counts in each by the part of it that lies there, so head and boxes need not
    fit, and there may be more boxes than voxels.

    Args:
        data: (X, Y, Z), any unit.
        mask: head (X, Y, Z), not empty.
        boxes: number of boxes along X, Y and Z.

    Returns:
        float32 of shape ``boxes``, in the unit of ``data``.
    """
    average = data.astype(np.float32, copy=False)
    for axis, count in enumerate(boxes):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = int(inside[0]), int(inside[-1])
        part = np.take(average, np.arange(first, last + 1), axis=axis)
        weights = _weights(last + 1 - first, count)
        average = np.moveaxis(np.tensordot(weights, part, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(average)


def _weights(voxels: int, boxes: int) -> npt.NDArray[np.float32]:
    """(boxes, voxels); row b holds the share of each voxel in the average of box b."""
    edges = np.linspace(0, voxels, boxes + 1)
    voxel = np.arange(voxels)
    overlap = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    weights = np.clip(overlap, 0, None)
    shares: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
