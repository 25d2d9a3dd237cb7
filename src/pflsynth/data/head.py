"""The mask of the head in a volume."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.sparse
from skimage.filters import threshold_otsu

from pflsynth.data.percentiles import percentile
from pflsynth.data.pieces import Runs
from pflsynth.data.volumes import BoolArray, FloatArray

ByteArray = npt.NDArray[np.uint8]

LOW_PERCENTILE = 0.5
HIGH_PERCENTILE = 99.5

_SMOOTHING_VOXELS = 1.0
_SMOOTHING_REACH = 4
_BLOCK_SLICES = 4
_OTSU_FRACTION = 0.5
_OTSU_BINS = 256
_CLOSING_VOXELS = 3


def head_mask(data: FloatArray) -> BoolArray:
    """The head (or the brain, if the skull was removed) as one filled piece.

    Half of Otsu's threshold keeps dark tissue in; light smoothing, the largest connected piece and a closing remove
    noise; holes (fluid that is dark on T1w and FLAIR) are filled in each axial slice.

    Args:
        data: (X, Y, Z), background dark.

    Returns:
        Mask (X, Y, Z); all False if nothing stands out.
    """
    floor, ceiling = percentile(data, LOW_PERCENTILE), percentile(data, HIGH_PERCENTILE)
    if floor == ceiling:
        floor, ceiling = float(data.min()), float(data.max())
    if floor == ceiling:
        return np.zeros(data.shape, bool)
    smooth = _smoothed(data, floor, ceiling)
    threshold = np.float32(floor + _OTSU_FRACTION * (_otsu(smooth) - floor))
    planes = np.concatenate([np.ascontiguousarray((block > threshold).transpose(1, 2, 0)) for block in smooth])
    return _filled(_closed(_largest_piece(planes))).T


def _smoothed(data: FloatArray, floor: float, ceiling: float) -> list[FloatArray]:
    """Gaussian smoothing of the axial slices of (X, Y, Z), clipped to [floor, ceiling]; blocks of a few, (X, Z, Y).

    Each axis in turn comes first and is multiplied by a band matrix, so that memory is read in long pieces.
    """
    x, y, depth = data.shape
    across, down = _gaussian(x), _gaussian(y)
    blocks = []
    for first in range(0, depth, _BLOCK_SLICES):
        slices = data[:, :, first : first + _BLOCK_SLICES].transpose(1, 2, 0)
        z = slices.shape[1]
        clipped = np.clip(slices, np.float32(floor), np.float32(ceiling), order="C")
        rows = (down @ clipped.reshape(y, z * x)).reshape(y, z, x)
        columns = np.ascontiguousarray(rows.transpose(2, 1, 0))
        blocks.append((across @ columns.reshape(x, z * y)).reshape(x, z, y))
    return blocks


def _gaussian(n: int) -> scipy.sparse.csr_array:
    """Smoothing along an axis of ``n`` voxels, mirrored at its ends, as ``scipy.ndimage.gaussian_filter1d`` does it."""
    steps = np.arange(-_SMOOTHING_REACH, _SMOOTHING_REACH + 1)
    weights = np.exp(-0.5 * (steps / _SMOOTHING_VOXELS) ** 2)
    mirrored = np.pad(np.arange(n), _SMOOTHING_REACH, mode="symmetric")
    rows = np.repeat(np.arange(n), steps.size)
    columns = mirrored[np.arange(n)[:, None] + np.arange(steps.size)].ravel()
    entries = np.tile(weights / weights.sum(), n).astype(np.float32)
    return scipy.sparse.csr_array((entries, (rows, columns)), shape=(n, n))


def _otsu(blocks: list[FloatArray]) -> float:
    """Otsu's threshold from a histogram of 256 bins."""
    from PIL import Image

    low, high = min(float(block.min()) for block in blocks), max(float(block.max()) for block in blocks)
    if low == high:
        return low
    factor = np.float32(_OTSU_BINS / (high - low) * (1 - 2.0**-22))  # the brightest voxel, too, is in the last bin
    counts = np.zeros(_OTSU_BINS, np.int64)
    for block in blocks:
        bins = ((block - np.float32(low)) * factor).astype(np.uint8)
        counts += Image.fromarray(bins.reshape(len(bins), -1)).histogram()  # four times as fast as numpy counts
    edges = np.linspace(low, high, _OTSU_BINS + 1)
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))


def _largest_piece(mask: BoolArray) -> BoolArray:
    """The largest piece of (Z, Y, X); voxels touch by their faces."""
    depth, height, width = mask.shape
    stack = np.zeros((depth, height + 1, width + 1), bool)
    stack[:, :-1, :-1] = mask
    runs = Runs.of(stack)
    if runs.starts.size:
        number, labels = runs.pieces(width + 1, (height + 1) * (width + 1))
        sizes = np.bincount(labels, weights=runs.stops - runs.starts, minlength=number)
        stack.reshape(-1)[runs.voxels(labels != sizes.argmax())] = False
    return stack[:, :-1, :-1]


def _closed(mask: BoolArray) -> BoolArray:
    """Closing of each plane of (Z, Y, X) with a disk; beyond the borders there is nothing.

    Eight planes share the bits of one byte, so that each step works on all of them.
    """
    radius = _CLOSING_VOXELS
    depth, height, width = mask.shape
    framed = np.zeros((math.ceil(depth / 8), height + 2 * radius, width + 2 * radius), np.uint8)
    inner = framed[:, radius:-radius, radius:-radius]
    for bit in range(8):
        planes = mask[bit::8].view(np.uint8)
        inner[: len(planes)] |= planes << np.uint8(bit)
    flat, step = framed.reshape(-1), framed.shape[2]
    flat[:] = ~_dilated(~_dilated(flat, step), step)
    closed = np.empty_like(mask)
    for bit in range(8):
        shown = closed[bit::8]
        np.not_equal(inner[: len(shown)] & np.uint8(1 << bit), 0, out=shown)
    return closed


def _dilated(flat: ByteArray, step: int) -> ByteArray:
    """Dilation with the disk of radius 3: rows of 7, 5, 5, and 1 voxels from its middle outwards."""
    row3 = _spread(flat, flat, 1)
    row5 = _spread(row3, row3, 1)
    row7 = _spread(row5, row5, 1)
    return _spread(_spread(_spread(row7, row5, step), row5, 2 * step), flat, 3 * step)


def _spread(flat: ByteArray, moved: ByteArray, shift: int) -> ByteArray:
    """``flat`` with ``moved`` laid over it, shifted to both sides; nothing enters at the ends."""
    result = flat.copy()
    result[shift:] |= moved[:-shift]
    result[:-shift] |= moved[shift:]
    return result


def _filled(mask: BoolArray) -> BoolArray:
    """Hole filling of each plane of (Z, Y, X); where the border cuts the head, the border closes it."""
    depth, height, width = mask.shape
    empty = np.zeros((depth, height + 3, width + 3), bool)  # a frame around each plane, and a False row and column
    empty[:, :-1, :-1] = True
    empty[:, 1:-2, 1:-2] = ~mask
    for border, frame in (
        (mask[:, 0], empty[:, 0, 1:-2]),
        (mask[:, -1], empty[:, -2, 1:-2]),
        (mask[:, :, 0], empty[:, 1:-2, 0]),
        (mask[:, :, -1], empty[:, 1:-2, -2]),
    ):
        frame[_between(border)] = False
    runs = Runs.of(empty)
    number, labels = runs.pieces(width + 3)
    outside = np.zeros(number, bool)
    row, column = np.divmod(runs.starts, width + 3)
    row %= height + 3
    last = (runs.stops - 1) % (width + 3)
    outside[labels[(row == 0) | (row == height + 1) | (column == 0) | (last == width + 1)]] = True
    empty.reshape(-1)[runs.voxels(~outside[labels])] = False
    return ~empty[:, 1:-2, 1:-2]


def _between(border: BoolArray) -> BoolArray:
    """Of each row, the places from its first to its last True."""
    after: BoolArray = np.logical_or.accumulate(border, axis=1)
    before = np.logical_or.accumulate(border[:, ::-1], axis=1)[:, ::-1]
    return after & before
