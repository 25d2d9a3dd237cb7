"""The anatomy of a phantom subject: ICBM-152 tissue maps, a random diffeomorphic deformation and a random lesion.

Coordinates are millimetres, x to the right, y to the front, z up. In the atlas the origin is the anterior
commissure. The deformation maps a point of the subject to the point of the atlas that it shows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.signal import FloatArray
from pflsynth.errors import DataError

HEALTHY_TISSUES = ("wm", "gm", "csf")

#: Knot spacing (mm) and largest absolute coefficient (mm) of the two B-spline lattices of the deformation. A cubic
#: B-spline displacement cannot fold while coefficient / spacing < 0.403 (Choi & Lee, 2000); the ratios sum to 0.39.
_LATTICES = ((48.0, 12.5), (24.0, 3.1))
_VENTRICLE_CENTRE = (0.0, -12.0, 12.0)
_VENTRICLE_RADIUS = 26.0
#: Half-width (mm) of the cube that the lattices cover; the subject grid lies inside it.
_EXTENT = 144.0


@dataclass(frozen=True)
class Atlas:
    """Tissue maps of the ICBM-152 template on a 1 mm grid.

    Attributes:
        gm: grey matter fraction, float32 (X, Y, Z), in [0, 1].
        wm: white matter fraction, same shape.
        brain: 1 inside the brain including its CSF, 0 outside. CSF is ``brain − gm − wm``, never negative.
        origin: millimetre coordinates of voxel (0, 0, 0).
    """

    gm: FloatArray
    wm: FloatArray
    brain: FloatArray
    origin: tuple[float, float, float]


@functools.lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Return the atlas from the files inside the installed nilearn package, read once; no network is used.

    The brain mask is closed and grown by 2 mm so that the cortex is covered by a film of CSF, as in a scan from
    which the skull was removed.

    Raises:
        DataError: nilearn is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

            images = [
                load(resolution=1)
                for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
            ]
    except ImportError as error:
        raise DataError(
            'The phantom is made from the ICBM-152 anatomy in nilearn: pip install "pflsynth[demo]"'
        ) from error
    gm, wm, mask = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    closed = ndimage.binary_closing(np.pad(mask > 0, 8), iterations=6)[8:-8, 8:-8, 8:-8]
    brain = ndimage.binary_dilation(ndimage.binary_fill_holes(closed), iterations=2)
    box = ndimage.find_objects(ndimage.binary_dilation(brain).astype(np.uint8))[0]
    gm, wm, inside = gm[box] * brain[box], wm[box] * brain[box], brain[box].astype(np.float32)
    total = np.maximum(gm + wm, 1)
    origin = images[0].affine[:3, 3] + [part.start for part in box]
    atlas = Atlas(gm / total, wm / total, inside, (float(origin[0]), float(origin[1]), float(origin[2])))
    for array in (atlas.gm, atlas.wm, atlas.brain):
        array.setflags(write=False)
    return atlas


def _spline_weights(axis: FloatArray, spacing: float) -> FloatArray:
    """Return the cubic B-spline weights (points, knots) of ``axis`` (mm) for knots that cover ±``_EXTENT``."""
    knots = np.arange(-_EXTENT - spacing, _EXTENT + 1.5 * spacing, spacing)
    distance = np.abs(axis[:, None] - knots[None, :]) / spacing
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.clip(2 - distance, 0, None) ** 3 / 6
    weights: FloatArray = np.where(distance < 1, inner, outer).astype(np.float32)
    return weights


def _knot_count(spacing: float) -> int:
    return len(_spline_weights(np.zeros(1, np.float32), spacing)[0])


def _spline_field(axes: Sequence[FloatArray], coefficients: FloatArray, spacing: float) -> FloatArray:
    """Return the tensor-product spline of cubic ``coefficients`` on the grid of ``axes``; shape (X, Y, Z)."""
    wx, wy, wz = (_spline_weights(axis, spacing) for axis in axes)
    field: FloatArray = np.einsum("ai,bj,ck,ijk->abc", wx, wy, wz, coefficients, optimize=True)
    return field


@dataclass(frozen=True)
class Deformation:
    """A smooth invertible map from subject to atlas: B-spline displacement, then affine, then ventricle size.

    Attributes:
        coefficients: one float32 array (3, knots, knots, knots) in mm for each lattice, coarse to fine.
        matrix: 3 × 3, rotation, scaling and shear.
        shift: millimetres.
        ventricle: relative growth of the ventricles about their centre; 0 keeps them, 0.3 makes them larger.
    """

    coefficients: tuple[FloatArray, ...]
    matrix: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    ventricle: float

    def atlas_points(self, axes: Sequence[FloatArray]) -> FloatArray:
        """Return the atlas coordinates (mm), float32 (3, X, Y, Z), of the subject grid with these x, y and z (mm)."""
        points: FloatArray = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        for (spacing, _), lattice in zip(_LATTICES, self.coefficients, strict=True):
            for component in range(3):
                points[component] += _spline_field(axes, lattice[component], spacing)
        points = np.einsum("ij,jxyz->ixyz", self.matrix.astype(np.float32), points, optimize=True)
        points += self.shift.astype(np.float32)[:, None, None, None]
        offset = points - np.asarray(_VENTRICLE_CENTRE, np.float32)[:, None, None, None]
        squared = np.einsum("ixyz,ixyz->xyz", offset, offset)
        offset *= np.float32(self.ventricle) * np.exp(squared * np.float32(-0.5 / _VENTRICLE_RADIUS**2))
        points -= offset
        return points


def draw_deformation(rng: np.random.Generator) -> Deformation:
    """Return a random deformation without folds.

    Spline displacement up to about 10 mm, head rotated by a few degrees and shifted by a few millimetres, axes
    scaled by up to ±6 %, ventricles between slightly smaller and clearly larger than in the atlas.
    """
    coefficients = tuple(
        rng.uniform(-limit, limit, size=(3, *(_knot_count(spacing),) * 3)).astype(np.float32)
        for spacing, limit in _LATTICES
    )
    ax, ay, az = np.deg2rad(np.clip(rng.normal(0, 3, size=3), -6, 6))
    about_x = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    about_y = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    about_z = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    scaling = np.diag(1 + np.clip(rng.normal(0, 0.03, size=3), -0.06, 0.06))
    shift = np.clip(rng.normal(0, 2.5, size=3), -5, 5)
    return Deformation(coefficients, scaling @ about_x @ about_y @ about_z, shift, float(rng.uniform(-0.1, 0.4)))


def healthy_fractions(atlas: Atlas, points: FloatArray) -> dict[str, FloatArray]:
    """Return the fractions of ``HEALTHY_TISSUES`` at atlas ``points`` (3, X, Y, Z): float32 (X, Y, Z) in [0, 1].

    They sum to 1 inside the brain, to less in the voxels at its border and to 0 in air.
    """
    voxels = points - np.asarray(atlas.origin, np.float32)[:, None, None, None]
    gm, wm, brain = (
        ndimage.map_coordinates(array, voxels, order=1, mode="constant", cval=0.0)
        for array in (atlas.gm, atlas.wm, atlas.brain)
    )
    return {"wm": wm, "gm": gm, "csf": np.maximum(brain - gm - wm, 0)}


def add_lesion(
    fractions: dict[str, FloatArray], axes: Sequence[FloatArray], rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Return ``fractions`` with one glioma-like lesion: necrosis inside a core inside oedema.

    The centre is drawn in the white matter of one hemisphere, the outer radius is 20–34 mm, and the shape is an
    ellipsoid with a smooth random surface. Core and necrosis replace whatever is there; oedema follows the white
    matter and enters grey matter little and CSF not at all. The sum of the fractions does not change.

    Args:
        fractions: the fractions of ``HEALTHY_TISSUES`` on the grid of ``axes``.
        axes: x, y and z of the grid in mm.
        rng: source of the position, size and shape.
    """
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    possible = (fractions["wm"] > 0.9) & (np.abs(x) > 18) & (np.abs(x) < 50) & (z > 0) & (z < 45)
    candidates = np.argwhere(possible)
    centre = [float(axis[i]) for axis, i in zip(axes, candidates[rng.integers(len(candidates))], strict=True)]
    stretch = np.exp(rng.uniform(-0.2, 0.2, size=3))
    spacing = 16.0
    surface = _spline_field(axes, rng.normal(size=(_knot_count(spacing),) * 3).astype(np.float32), spacing)
    offsets = (((axis - c) * s) ** 2 for axis, c, s in zip((x, y, z), centre, stretch, strict=True))
    radius = np.sqrt(sum(offsets)) * np.exp(0.6 * surface)
    outer = rng.uniform(20, 34)
    core_radius = outer * rng.uniform(0.45, 0.65)
    whole, mass, centre_part = (
        (1 / (1 + np.exp(np.clip((radius - r) / 0.8, -30, 30)))).astype(np.float32)
        for r in (outer, core_radius, core_radius * rng.uniform(0.4, 0.7))
    )
    spread = whole * np.where(mass < 1, 1 - mass, 0)
    oedema_wm, oedema_gm = 0.9 * spread * fractions["wm"], 0.25 * spread * fractions["gm"]
    brain = fractions["wm"] + fractions["gm"] + fractions["csf"]
    return {
        "wm": (1 - mass) * fractions["wm"] - oedema_wm,
        "gm": (1 - mass) * fractions["gm"] - oedema_gm,
        "csf": (1 - mass) * fractions["csf"],
        "core": np.maximum(mass - centre_part, 0) * brain,
        "necrosis": np.minimum(centre_part, mass) * brain,
        "oedema": oedema_wm + oedema_gm,
    }
