"""Read NIfTI volumes into RAS orientation, and write synthetic ones back on their input's own grid."""

from __future__ import annotations

import contextlib
import gzip
import logging
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from pflsynth.errors import DataError
from pflsynth.files import write_atomic

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_DESCRIPTION_BYTES = 79
_BROKEN = (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, TypeError, OverflowError, zlib.error)


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
        data: float32 (X, Y, Z), scanner units; X grows to the right, Y to the front, Z to the top.
        affine: float64 (4, 4), voxel of ``data`` to millimetres.
        spacing_mm: voxel size along X, Y and Z.
        path: the file it came from.
    """

    data: FloatArray
    affine: npt.NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    path: Path

    @property
    def grid(self) -> VoxelGrid:
        """Where its voxels lie."""
        x, y, z = self.data.shape
        return VoxelGrid((x, y, z), self.affine)


def load_volume(path: Path, where: str) -> Volume:
    """Read a NIfTI file (``.nii`` or ``.nii.gz``) and turn it to RAS, without resampling.

    Args:
        path: the file.
        where: what it is, for errors, such as "site ixi, subject sub-01, contrast T1w".

    Raises:
        DataError: missing, cut short, not NIfTI, not one volume, empty, NaN or Inf, constant, or a broken affine.
    """
    place = f"{where}: {path}"
    image = _open(path, place)
    data = _read(image, place)
    affine = _affine_mm(image, place)
    orientation = io_orientation(affine)
    turned: FloatArray = np.ascontiguousarray(apply_orientation(data, orientation))
    _check_values(turned, place)
    affine = affine @ inv_ornt_aff(orientation, data.shape)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(turned, affine, (float(sizes[0]), float(sizes[1]), float(sizes[2])), path)


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
    image = _open(like, str(like))
    orientation = io_orientation(image.affine)
    stored = np.asarray(apply_orientation(data.astype(np.float32), ornt_transform(_RAS, orientation)))
    if _squeezed(image.shape) != stored.shape:
        raise DataError(f"{like}: its grid is {_text(image.shape)}, the volume to write has {_text(stored.shape)}")
    header = image.header.copy()
    header.extensions.clear()
    header.set_data_dtype(np.float32)
    header["descrip"] = description.encode()
    header["cal_min"] = header["cal_max"] = 0
    with _quiet():
        content = type(image)(stored.reshape(image.shape), image.affine, header).to_bytes()
    write_atomic(path, gzip.compress(content, compresslevel=1, mtime=0) if path.name.endswith(".gz") else content)


def _open(path: Path, place: str) -> Any:
    """The nibabel image (Nifti1Image or Nifti2Image), its data not yet read."""
    if not path.is_file():
        raise DataError(f"{place}: there is no such file")
    try:
        with _quiet():
            image = nibabel.load(path)
    except _BROKEN as failure:
        raise _unreadable(place, failure) from None
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one too
        raise DataError(f"{place}: is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    return image


def _read(image: Any, place: str) -> FloatArray:
    """Voxel values as float32 (X, Y, Z), in the stored orientation."""
    shape = _squeezed(image.shape)
    if 0 in shape:
        raise DataError(f"{place}: is empty (shape {_text(image.shape)}); export it again")
    if len(shape) != 3:
        raise DataError(
            f"{place}: has {len(shape)} axes (shape {_text(image.shape)}), but one volume of three is wanted; "
            "keep the one volume that you mean in a file of its own"
        )
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(f"{place}: holds {image.get_data_dtype()} values, but one real number a voxel is wanted")
    try:
        with _quiet():
            data: FloatArray = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
    except MemoryError:
        raise DataError(f"{place}: its header tells of shape {_text(image.shape)}, too large for memory") from None
    except _BROKEN as failure:
        raise _unreadable(place, failure) from None
    return data


def _unreadable(place: str, failure: Exception) -> DataError:
    if isinstance(failure, PermissionError):
        return DataError(f"{place}: no permission to read it; ask for read access to the file")
    reason = " ".join(str(failure).split())
    return DataError(f"{place}: is cut short, damaged, or not a NIfTI file ({reason[:200]}); copy or export it again")


def _affine_mm(image: Any, place: str) -> npt.NDArray[np.float64]:
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{place}: its affine {affine[:3].tolist()} is not invertible; export it again")
    return affine


def _check_values(data: FloatArray, place: str) -> None:
    finite = np.isfinite(data)
    if not finite.all():
        nan = int(np.isnan(data).sum())
        infinite = int(data.size - finite.sum() - nan)
        raise DataError(
            f"{place}: {nan} voxels are NaN and {infinite} are infinite, of {data.size}; "
            "export it again, or set them to 0 if they are background"
        )
    if data.min() == data.max():
        raise DataError(f"{place}: every voxel is {data.flat[0]:g}, so it holds no image; export it again")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` without trailing axes of length 1 beyond the third."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep nibabel's warnings and log lines off the terminal: what matters is checked here and raised."""
    logger = logging.getLogger("nibabel.global")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
