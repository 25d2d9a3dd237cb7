"""The mask of the head in a volume."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

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

_BLOCK_VOXELS = 2**18
_OTSU_FRACTION = 0.5
_BINS = 256
_OUTLINE = 32


@dataclass(frozen=True)
class _Detail:
    """Smoothing and closing in pixels of an axial slice, which are voxels or boxes of 2 x 2 voxels.

    Attributes:
        smoothing: standard deviation of the Gaussian, in pixels.
        reach: pixels to each side that the Gaussian sees.
        disk: of the closing; pixels to each side in its middle row, and in each row further out.
    """

    smoothing: float
    reach: int
    disk: tuple[int, ...]


_VOXELS = _Detail(smoothing=1.0, reach=4, disk=(3, 2, 2, 0))
_BOXES = _Detail(smoothing=0.5, reach=1, disk=(1, 1))
_BOXES_FROM = 128


def head_mask(data: FloatArray) -> BoolArray:
    """The head (or the brain, if the skull was removed) as one filled piece.

    Half of Otsu's threshold keeps dark tissue in; light smoothing, the largest connected piece and a closing remove
    noise; holes (fluid that is dark on T1w and FLAIR) are filled in each axial slice. Slices of at least 128 x 128
    voxels (heads in voxels under about 1.5 mm) are looked at in boxes of 2 x 2 voxels, and the outline is then drawn
    voxel by voxel.

    Args:
        data: (X, Y, Z), background dark.

    Returns:
        Mask (X, Y, Z); all False if nothing stands out.
    """
    fine = min(data.shape[:2]) >= _BOXES_FROM
    detail, image = (_BOXES, _boxes(data)) if fine else (_VOXELS, data)
    floor, ceiling = percentile(image, LOW_PERCENTILE), percentile(image, HIGH_PERCENTILE)
    if floor == ceiling:
        floor, ceiling = float(image.min()), float(image.max())
    if floor == ceiling:
        return np.zeros(data.shape, bool)
    smooth = _smoothed(image, floor, ceiling, detail)
    bins, edges = _in_bins(smooth)
    threshold = np.float32(floor + _OTSU_FRACTION * (_otsu(bins, edges) - floor))
    mask = _filled(_closed(_largest_piece(smooth > threshold), detail.disk))
    edge = int(np.searchsorted(edges, threshold))
    return _drawn(mask, bins, edge, data.T.shape).T if fine else mask.T


def _boxes(data: FloatArray) -> FloatArray:
    """Sums over boxes of 2 x 2 voxels of each axial slice of (X, Y, Z); a last odd row or column is left out."""
    width, height, depth = data.shape[0] // 2, data.shape[1] // 2, data.shape[2]
    boxes = np.empty((depth, height, width), np.float32)
    for plane, sums in zip(data.T[:, : 2 * height, : 2 * width], boxes, strict=True):
        rows = plane[0::2] + plane[1::2]
        np.add(rows[:, 0::2], rows[:, 1::2], out=sums)
    return boxes.T


def _drawn(boxes: BoolArray, bins: ByteArray, edge: int, shape: tuple[int, ...]) -> BoolArray:
    """The mask of boxes (Z, Y, X) on the voxels (``shape``); the outline between boxes is where ``edge`` is reached.

    The bins around this one become 64 levels, 32 and more inside, so that a byte holds what is added up.
    """
    levels = np.clip(bins, max(edge - _OUTLINE, 0), min(edge + _OUTLINE, _BINS) - 1)
    levels += np.uint8((_OUTLINE - edge) % _BINS)
    least = boxes * np.uint8(_OUTLINE)
    levels = np.maximum(np.minimum(levels, least + np.uint8(_OUTLINE - 1)), least)
    across = _doubled(levels, 2, shape[2]) // np.uint8(4)
    return _doubled(across, 1, shape[1]) >= 4 * _OUTLINE


def _doubled(levels: ByteArray, axis: int, length: int) -> ByteArray:
    """Four times the levels at twice as many places along an axis, linear between; a last odd one is as that before."""
    boxes = np.moveaxis(levels, axis, 0)
    count = len(boxes)
    voxels = np.empty((*levels.shape[:axis], length, *levels.shape[axis + 1 :]), np.uint8)
    lines = np.moveaxis(voxels, axis, 0)
    thrice = 3 * boxes
    lines[0] = 4 * boxes[0]
    np.add(thrice[1:], boxes[:-1], out=lines[2 : 2 * count : 2])
    np.add(thrice[:-1], boxes[1:], out=lines[1 : 2 * count - 1 : 2])
    lines[2 * count - 1 :] = 4 * boxes[-1]
    return voxels


def _smoothed(data: FloatArray, floor: float, ceiling: float, detail: _Detail) -> FloatArray:
    """Gaussian smoothing of the axial slices of (X, Y, Z), clipped to [floor, ceiling]; (Z, Y, X).

    Each axis in turn comes first and is multiplied by a band matrix, so that memory is read in long pieces.
    """
    x, y, depth = data.shape
    across, down = _gaussian(x, detail), _gaussian(y, detail)
    smooth = np.empty((depth, y, x), np.float32)
    step = max(1, _BLOCK_VOXELS // (x * y))
    for first in range(0, depth, step):
        slices = data[:, :, first : first + step].transpose(1, 2, 0)
        z = slices.shape[1]
        clipped = np.clip(slices, np.float32(floor), np.float32(ceiling), order="C")
        rows = (down @ clipped.reshape(y, z * x)).reshape(y, z, x)
        columns = np.ascontiguousarray(rows.transpose(2, 1, 0))
        smooth[first : first + step] = (across @ columns.reshape(x, z * y)).reshape(x, z, y).transpose(1, 2, 0)
    return smooth


@functools.lru_cache
def _gaussian(n: int, detail: _Detail) -> scipy.sparse.csr_array:
    """Smoothing along an axis of ``n`` voxels, mirrored at its ends, as ``scipy.ndimage.gaussian_filter1d`` does it."""
    steps = np.arange(-detail.reach, detail.reach + 1)
    weights = np.exp(-0.5 * (steps / detail.smoothing) ** 2)
    mirrored = np.pad(np.arange(n), detail.reach, mode="symmetric")
    rows = np.repeat(np.arange(n), steps.size)
    columns = mirrored[np.arange(n)[:, None] + np.arange(steps.size)].ravel()
    entries = np.tile(weights / weights.sum(), n).astype(np.float32)
    return scipy.sparse.csr_array((entries, (rows, columns)), shape=(n, n))


def _in_bins(smooth: FloatArray) -> tuple[ByteArray, npt.NDArray[np.float64]]:
    """The bin of each voxel, and the edges of the 256 bins from the lowest value to the highest."""
    low, high = float(smooth.min()), float(smooth.max())
    factor = np.float32(_BINS / (high - low) * (1 - 2.0**-22)) if high > low else np.float32(0)
    scaled = smooth - np.float32(low)
    scaled *= factor  # the brightest voxel, too, is in the last bin
    return scaled.astype(np.uint8), np.linspace(low, high, _BINS + 1)


def _otsu(bins: ByteArray, edges: npt.NDArray[np.float64]) -> float:
    """Otsu's threshold from a histogram."""
    from PIL import Image

    if edges[0] == edges[-1]:
        return float(edges[0])
    counts = np.array(Image.fromarray(bins.reshape(len(bins), -1)).histogram())  # four times as fast as numpy counts
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


def _closed(mask: BoolArray, disk: tuple[int, ...]) -> BoolArray:
    """Closing of each plane of (Z, Y, X) with a disk; beyond the borders there is nothing.

    Eight planes share the bits of one byte, so that each step works on all of them.
    """
    radius = max(disk[0], len(disk) - 1)
    depth, height, width = mask.shape
    framed = np.zeros((math.ceil(depth / 8), height + 2 * radius, width + 2 * radius), np.uint8)
    inner = framed[:, radius:-radius, radius:-radius]
    for bit in range(8):
        planes = mask[bit::8].view(np.uint8)
        inner[: len(planes)] |= planes << np.uint8(bit)
    flat, step = framed.reshape(-1), framed.shape[2]
    flat[:] = ~_dilated(~_dilated(flat, step, disk), step, disk)
    closed = np.empty_like(mask)
    for bit in range(8):
        shown = closed[bit::8]
        np.not_equal(inner[: len(shown)] & np.uint8(1 << bit), 0, out=shown)
    return closed


def _dilated(flat: ByteArray, step: int, disk: tuple[int, ...]) -> ByteArray:
    """Dilation with a disk, told by how far each of its rows goes; ``step`` is the distance of two rows."""
    spread = [flat]
    while len(spread) <= disk[0]:
        spread.append(_spread(spread[-1], spread[-1], 1))
    result = spread[disk[0]]
    for row, reach in enumerate(disk[1:], start=1):
        result = _spread(result, spread[reach], row * step)
    return result


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
