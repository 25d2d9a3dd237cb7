"""Small pictures of a subject's contrasts, with the edges of one drawn over the others."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.align import same_grid
from pflsynth.data.head import HIGH_PERCENTILE, LOW_PERCENTILE, head_mask
from pflsynth.data.scaling import Scale
from pflsynth.data.volumes import BoolArray, FloatArray, Volume

LONGEST_PIXELS = 152
"""Pixels along the longest side of the head; the three planes share one scale."""

EDGE_COLOUR = (255, 70, 60)
"""Red, green and blue of the reference's edges."""

_GREYS = 15
_EDGE_INDEX = _GREYS
_GAMMA = 0.85
_GAP_PIXELS = 4
_MARGIN_MM = 3.0
_EDGE_SIGMA_PIXELS = 1.2
_EDGE_QUANTILES = (0.80, 0.93)
_RIM_PIXELS = 15
_DARK = -0.9

Box = tuple[slice, slice, slice]
Planes = tuple[FloatArray, FloatArray, FloatArray]
Edges = tuple[BoolArray, BoolArray, BoolArray]


@dataclass(frozen=True)
class Thumbnail:
    """One contrast in three planes side by side: axial, coronal, sagittal.

    Attributes:
        contrast: what it shows.
        png: a PNG of 16 colours. The patient's left is on the left, the front of a sagittal plane on the right.
        edges_of: the contrast whose edges are drawn over it, or None.
    """

    contrast: str
    png: bytes
    edges_of: str | None = None


def thumbnails(volumes: Mapping[str, Volume], mask: BoolArray, reference: str | None) -> tuple[Thumbnail, ...]:
    """Draw each contrast of a subject in three planes through the middle of the head, true to scale in mm.

    Black is the 0.5th percentile of the volume, white the 99.5th within the head, or the lowest and highest value
    where that is no range; a constant volume is black. The same volumes give the same bytes.

    Args:
        volumes: the subject's contrasts. If they do not share one grid, each is drawn through the middle of its own
            head, without edges.
        mask: head (X, Y, Z) on the common grid; not used if there is none.
        reference: the contrast whose edges are drawn over every other one, or None for no edges.

    Returns:
        One picture a contrast, in the order of ``volumes``.
    """
    if not _share_grid(volumes, mask):
        return tuple(Thumbnail(name, _png(_planes(own, _own_head(own)))) for name, own in volumes.items())
    planes = {contrast: _planes(volume, mask) for contrast, volume in volumes.items()}
    edges = _edges(planes[reference]) if reference in planes else None
    return tuple(
        Thumbnail(contrast, _png(own))
        if edges is None or contrast == reference
        else Thumbnail(contrast, _png(own, edges), reference)
        for contrast, own in planes.items()
    )


def _share_grid(volumes: Mapping[str, Volume], mask: BoolArray) -> bool:
    grids = [volume.grid for volume in volumes.values()]
    return all(grid.shape == mask.shape and same_grid(grids[0], grid) for grid in grids)


def _own_head(volume: Volume) -> BoolArray:
    """The head of one volume; everything where none can be told."""
    try:
        return head_mask(volume.data)
    except ValueError:
        return np.ones(volume.data.shape, dtype=np.bool_)


def _planes(volume: Volume, mask: BoolArray) -> Planes:
    """Axial, coronal and sagittal plane in [-1, 1], top row first, with square pixels of one size."""
    mask = mask if mask.any() else np.ones_like(mask)
    box = _box(mask, volume.spacing_mm)
    x, y, z = (round(float(place)) for place in ndimage.center_of_mass(mask))
    scaled = _scale(volume.data, mask).apply
    longest_mm = max((side.stop - side.start) * step for side, step in zip(box, volume.spacing_mm, strict=True))
    right, front, top = (step * LONGEST_PIXELS / longest_mm for step in volume.spacing_mm)
    return (
        _upright(scaled(volume.data[box[0], box[1], z]), right, front),
        _upright(scaled(volume.data[box[0], y, box[2]]), right, top),
        _upright(scaled(volume.data[x, box[1], box[2]]), front, top),
    )


def _box(mask: BoolArray, spacing_mm: tuple[float, float, float]) -> Box:
    """The box around the head with a margin, within the volume."""
    (tight,) = ndimage.find_objects(mask.astype(np.int8))
    margins = (round(_MARGIN_MM / step) for step in spacing_mm)
    x, y, z = (
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, margin, size in zip(tight, margins, mask.shape, strict=True)
    )
    return x, y, z


def _scale(data: FloatArray, mask: BoolArray) -> Scale:
    low, high = float(np.percentile(data, LOW_PERCENTILE)), float(np.percentile(data[mask], HIGH_PERCENTILE))
    if high <= low:
        low, high = float(data.min()), float(data.max())
    return Scale.linear(low, high if high > low else low + abs(low) + 1)


def _upright(plane: FloatArray, across: float, up: float) -> FloatArray:
    """A plane as an image (rows, columns): its first axis goes to the right, its second up, in pixels a voxel."""
    from PIL import Image

    size = (max(round(plane.shape[0] * across), 1), max(round(plane.shape[1] * up), 1))
    image = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _edges(planes: Planes) -> Edges:
    from skimage.feature import canny

    axial, coronal, sagittal = (canny(plane, _EDGE_SIGMA_PIXELS, *_thresholds(plane)) for plane in planes)
    return axial, coronal, sagittal


def _thresholds(plane: FloatArray) -> tuple[float, float]:
    """Canny's thresholds from the slopes deep within the head, so that skull and outline do not hide those inside."""
    smooth = ndimage.gaussian_filter(plane, _EDGE_SIGMA_PIXELS)
    slope = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
    head = ndimage.binary_fill_holes(smooth > _DARK)
    inside = ndimage.binary_erosion(head, iterations=_RIM_PIXELS)
    low, high = np.quantile(slope[inside] if inside.any() else slope, _EDGE_QUANTILES)
    return float(low), float(high)


def _png(planes: Planes, edges: Edges | None = None) -> bytes:
    """The planes side by side on black, as a PNG whose palette holds the greys and the edges' colour."""
    from PIL import Image

    height = max(plane.shape[0] for plane in planes)
    width = sum(plane.shape[1] + _GAP_PIXELS for plane in planes) - _GAP_PIXELS
    canvas: npt.NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
    left = 0
    for number, plane in enumerate(planes):
        rows, columns = plane.shape
        top = (height - rows) // 2
        place = canvas[top : top + rows, left : left + columns]
        place[:] = np.rint(((plane + 1) / 2) ** _GAMMA * (_GREYS - 1))
        if edges is not None:
            place[edges[number]] = _EDGE_INDEX
        left += columns + _GAP_PIXELS
    image = Image.frombytes("P", (width, height), canvas.tobytes())
    greys = [round(255 * level / (_GREYS - 1)) for level in range(_GREYS)]
    image.putpalette([*(grey for grey in greys for _ in range(3)), *EDGE_COLOUR])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=4, compress_level=9)
    return buffer.getvalue()
