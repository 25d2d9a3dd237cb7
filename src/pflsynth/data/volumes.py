"""Read NIfTI volumes into RAS orientation, and write synthetic ones back on their input's own grid."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from pflsynth.data.nifti import Nifti, read_header, read_nifti
from pflsynth.data.nifti_header import shape_text
from pflsynth.errors import DataError
from pflsynth.files import write_atomic

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_DESCRIPTION_BYTES = 79
_LARGEST_VALUE = 1e10


@dataclass(frozen=True)
class VoxelGrid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: (X, Y, Z).
        affine: float64 (4, 4), voxel to millimetres, RAS.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """One three-dimensional image in RAS orientation.

    Attributes:
        data: float32 (X, Y, Z), scanner units; X grows to the right, Y to the front, Z to the top. In memory X varies
            fastest, so that an axial slice lies in one piece.
        affine: float64 (4, 4), voxel of ``data`` to millimetres.
        spacing_mm: voxel size along X, Y and Z.
        path: the file it came from.
        sha256: of the file's bytes (hex); empty if the volume was made here.
    """

    data: FloatArray
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    path: Path
    sha256: str = ""

    @property
    def grid(self) -> VoxelGrid:
        """Where its voxels lie."""
        x, y, z = self.data.shape
        return VoxelGrid((x, y, z), self.affine)


def load_volume(path: Path, where: str) -> Volume:
    """Read a NIfTI file (``.nii`` or ``.nii.gz``) and turn it to RAS, without resampling.

    NaN that reaches the sides of the slices is what a resampling left outside its field of view: it becomes the
    lowest value.

    Args:
        path: the file.
        where: what it is, for errors, such as "site ixi, subject sub-01, contrast T1w".

    Raises:
        DataError: missing, damaged, not one volume, or without one clear geometry (:func:`read_nifti`); NaN or
            infinite inside, constant, or with values that no scanner gives.
    """
    place = f"{where}: {path}"
    try:
        return _loaded(path, place)
    except MemoryError:
        raise DataError(f"{place}: is too large for the memory of this machine; use one with more") from None


def save_synthetic(path: Path, data: FloatArray, like: Path, description: str) -> None:
    """Write a RAS volume on the grid of another file: its shape, affine, orientation, codes and units.

    The file holds float32 without a scaling slope; same input, same bytes. Header extensions of ``like`` (which can
    carry personal data) are not copied.

    Args:
        path: file to write, ``.nii`` or ``.nii.gz``; written atomically.
        data: (X, Y, Z) in the RAS orientation that :func:`load_volume` gives for ``like``.
        like: the NIfTI file whose grid is taken.
        description: text of the header's ``descrip``, at most 79 bytes.

    Raises:
        DataError: ``like`` cannot be read, or its grid has another shape.
        ValueError: the description is too long.
        OSError: disk full, no permission.
    """
    if len(description.encode()) > _DESCRIPTION_BYTES:
        raise ValueError(f"description has {len(description.encode())} bytes, NIfTI holds {_DESCRIPTION_BYTES}")
    original = read_header(like, str(like))
    kind: Any = nibabel.Nifti2Image if len(original.raw) == nibabel.Nifti2Header.sizeof_hdr else nibabel.Nifti1Image
    header = kind.header_class(original.raw, endianness=original.byte_order, check=False)
    if header["pixdim"][0] not in (-1, 1):  # the handedness of the qform; nibabel wants what the standard forgives
        header["pixdim"][0] = 1
    affine = header.get_best_affine()
    stored = np.asarray(apply_orientation(data.astype(np.float32), ornt_transform(_RAS, io_orientation(affine))))
    if original.shape[:3] != stored.shape:
        raise DataError(
            f"{like}: its grid is {shape_text(original.shape)}, the volume to write has {shape_text(stored.shape)}"
        )
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 0
    header["descrip"] = description.encode()
    header["cal_min"] = header["cal_max"] = 0
    content = kind(stored.reshape(original.shape), affine, header).to_bytes()
    write_atomic(path, gzip.compress(content, compresslevel=1, mtime=0) if path.name.endswith(".gz") else content)


def _loaded(path: Path, place: str) -> Volume:
    nifti = read_nifti(path, place)
    orientation = io_orientation(nifti.header.affine)
    turned: FloatArray = np.asfortranarray(apply_orientation(_values(nifti), orientation))
    _check_values(turned, nifti, place)
    affine = nifti.header.affine @ inv_ornt_aff(orientation, nifti.stored.shape)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(turned, affine, (float(sizes[0]), float(sizes[1]), float(sizes[2])), path, nifti.sha256)


def _values(nifti: Nifti) -> FloatArray:
    """Voxel values as float32 (X, Y, Z), in the stored orientation."""
    header, stored = nifti.header, nifti.stored
    with np.errstate(all="ignore"):
        if (header.slope, header.inter) == (1, 0):
            return stored.astype(np.float32, order="F", copy=False)
        values = np.empty(stored.shape, np.float32, order="F")
        for z in range(stored.shape[2]):
            values[:, :, z] = header.slope * stored[:, :, z].astype(np.float64) + header.inter
    return values


def _check_values(data: FloatArray, nifti: Nifti, place: str) -> None:
    """Fill NaN rims, and refuse what cannot be an image."""
    whole_numbers = nifti.header.dtype.kind in "iu" and (nifti.header.slope, nifti.header.inter) == (1, 0)
    low, high = _range(nifti.stored if whole_numbers else data)
    if np.isnan(low):
        _fill_rim(data)
        low, high = _range(data)
    scaling = f"scl_slope {nifti.header.slope:g}, scl_inter {nifti.header.inter:g}"
    if not (np.isfinite(low) and np.isfinite(high)):
        nan, infinite = int(np.isnan(data).sum()), int(np.isinf(data).sum())
        raise DataError(
            f"{place}: {nan} voxels are NaN and {infinite} are infinite, of {data.size} ({nifti.header.dtype.name} "
            f"values, {scaling}); export it again, or set them to 0 if they are background"
        )
    if low == high:
        raise DataError(f"{place}: every voxel is {low:g}, so it holds no image; export it again")
    if max(-low, high) > _LARGEST_VALUE:
        raise DataError(
            f"{place}: its values go from {low:g} to {high:g} ({nifti.header.dtype.name} values, {scaling}), which no "
            "scanner gives; export it again"
        )


def _range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """The lowest and the highest value, as float32 tells them."""
    return float(np.float32(values.min())), float(np.float32(values.max()))


def _fill_rim(data: FloatArray) -> None:
    """Set NaN that is connected to a side of the slices to the lowest finite value."""
    finite = np.isfinite(data)
    if not finite.any():
        return
    pieces, _ = ndimage.label(np.isnan(data))
    sides = np.concatenate([side.ravel() for side in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])])
    data[np.isin(pieces, sides[sides > 0])] = data[finite].min()
