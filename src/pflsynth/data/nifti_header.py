"""What a NIfTI header says, by the letter of the standard: what is not one clear volume and geometry is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import header_dtype as nifti1_dtype
from nibabel.nifti2 import header_dtype as nifti2_dtype
from nibabel.quaternions import fillpositive, quat2mat

from pflsynth.errors import DataError

Affine = npt.NDArray[np.float64]
ByteOrder = Literal["<", ">"]

MOST_VOXELS = 2**30
"""1024 x 1024 x 1024: no MRI volume has more, and a damaged header may tell of any number."""

_LAYOUTS = {348: nifti1_dtype, 540: nifti2_dtype}
_ORDERS: tuple[ByteOrder, ...] = ("<", ">")
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
_PAIR_MAGIC = (b"ni1", b"ni2")
_REAL = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NOT_REAL = {
    1: "1-bit",
    32: "complex64",
    128: "RGB",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA",
}
_SPACES = ("no", "scanner", "aligned", "Talairach", "MNI", "other template")
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_QUATERNION_ROUNDING = 3 * float(np.finfo(np.float32).eps)
_FORMS_APART_MM = 1.0
_PIXDIM_TOLERANCE = 0.01
_SHEAR_TOLERANCE = 1e-3
_VOXEL_MM = (0.01, 100.0)
_FARTHEST_MM = 1e5


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says of one volume, checked.

    Attributes:
        raw: the header itself, 348 bytes (NIfTI-1) or 540 (NIfTI-2).
        byte_order: of header and data, "<" or ">".
        shape: axes as stored; three, and further axes of length 1.
        dtype: type of a stored value, with its byte order.
        offset: bytes before the first voxel.
        slope: a value is ``slope * stored + inter``.
        inter: see ``slope``.
        affine: float64 (4, 4), stored voxel to millimetres, RAS.
    """

    raw: bytes
    byte_order: ByteOrder
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Affine


def parse_header(read: Callable[[int], bytes | bytearray], place: str) -> NiftiHeader:
    """Read and check a header.

    Args:
        read: gives the next so many bytes of the file, fewer at its end.
        place: what the file is, for errors.

    Raises:
        DataError: not NIfTI in one file, not one volume of real numbers, or without one clear geometry: codes that
            say nothing, sform and qform over 1 mm apart, axes that are not invertible or not at right angles, or
            voxel sizes that are not positive, that the affine contradicts, or that cannot be.
    """
    start = bytes(read(4))
    sizes = {order: int(np.frombuffer(start, f"{order}i4")[0]) for order in _ORDERS} if len(start) == 4 else {}
    order = next((order for order, size in sizes.items() if size in _LAYOUTS), None)
    if order is None:
        raise DataError(
            f"{place}: is cut short, damaged, or not a NIfTI file (it starts with {start.hex(' ') or 'nothing'}); copy "
            "or export it again"
        )
    size = sizes[order]
    raw = start + bytes(read(size - 4))
    if len(raw) < size:
        raise DataError(f"{place}: is cut short within its header ({len(raw)} of {size} bytes); copy it again")
    fields = np.frombuffer(raw, _LAYOUTS[size].newbyteorder(order))[0]
    _check_magic(raw, place)
    shape = _shape(fields, place)
    dtype = _dtype(fields, order, place)
    offset = float(fields["vox_offset"])
    if not (offset.is_integer() and size + 4 <= offset <= 2**31):
        raise DataError(f"{place}: its header puts the data at byte {offset:g}, which cannot be; export it again")
    slope, inter = _scaling(fields, place)
    with np.errstate(all="ignore"):
        affine = _affine_mm(fields, shape[:3], place)
    return NiftiHeader(raw, order, shape, dtype, int(offset), slope, inter, affine)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for errors, such as "240 x 256 x 20"."""
    return " x ".join(map(str, shape))


def _check_magic(raw: bytes, place: str) -> None:
    offset, expected = _MAGIC[len(raw)]
    magic = raw[offset : offset + len(expected)]
    if magic[:3] in _PAIR_MAGIC:
        raise DataError(f"{place}: is the header of a pair of files (.hdr and .img); convert both to one .nii.gz")
    if magic != expected:
        raise DataError(
            f"{place}: is damaged or not a NIfTI file (its magic is {magic!r}, not {expected!r}; Analyze files have "
            "none); convert it to .nii.gz"
        )


def _shape(fields: Any, place: str) -> tuple[int, ...]:
    axes = int(fields["dim"][0])
    if not 1 <= axes <= 7:
        raise DataError(f"{place}: its header tells of {axes} axes (dim[0]), which cannot be; export it again")
    shape = tuple(int(length) for length in fields["dim"][1 : axes + 1])
    if 0 in shape:
        raise DataError(f"{place}: is empty (shape {shape_text(shape)}); export it again")
    if min(shape) < 0:
        raise DataError(f"{place}: its header tells of shape {shape_text(shape)}, which cannot be; export it again")
    if len(shape) < 3 or math.prod(shape[3:]) != 1:
        raise DataError(
            f"{place}: has {len(shape)} axes (shape {shape_text(shape)}), but one volume of three is wanted; "
            "keep the one volume that you mean in a file of its own"
        )
    if math.prod(shape) > MOST_VOXELS:
        raise DataError(
            f"{place}: its header tells of shape {shape_text(shape)}, too large for an MRI volume (at most "
            f"{MOST_VOXELS} voxels); export it again"
        )
    return shape


def _dtype(fields: Any, order: ByteOrder, place: str) -> np.dtype[Any]:
    code = int(fields["datatype"])
    if code not in _REAL:
        name = _NOT_REAL.get(code, f"unknown (datatype {code})")
        raise DataError(
            f"{place}: holds {name} values, but one real number a voxel is wanted; convert it (a complex volume to "
            "its magnitude, colours to grey, other types to float32)"
        )
    return np.dtype(order + _REAL[code])


def _scaling(fields: Any, place: str) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none."""
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataError(f"{place}: its scl_slope {slope:g} and scl_inter {inter:g} give no values; export it again")
    return slope, inter


def _affine_mm(fields: Any, shape: tuple[int, ...], place: str) -> Affine:
    """The sform if there is one, else the qform; refused if what the header says of the geometry is not one thing."""
    voxel = fields["pixdim"][1:4].astype(np.float64)
    if not (np.isfinite(voxel) & (voxel > 0)).all():
        raise DataError(f"{place}: its voxel size {_numbers(voxel)} (pixdim) must be positive; export it again")
    unit = _MILLIMETRES.get(int(fields["xyzt_units"]) & 7)
    if unit is None:
        raise DataError(
            f"{place}: its unit of length (xyzt_units {int(fields['xyzt_units'])}) is unknown; set it to mm"
        )
    forms = [(name, int(fields[f"{name}_code"])) for name in ("sform", "qform")]
    if any(not 0 <= code < len(_SPACES) for _, code in forms):
        codes = " and ".join(f"{name}_code {code}" for name, code in forms)
        raise DataError(f"{place}: its {codes} are not among 0 to {len(_SPACES) - 1}; export it again")
    read = {"sform": _sform, "qform": _qform}
    given = {name: _in_mm(read[name](fields, place), unit, name, place) for name, code in forms if code}
    if not given:
        raise DataError(
            f"{place}: does not say which way its axes point (sform_code and qform_code are 0), so left and right are "
            "unknown; convert it again from its DICOM files, or set its sform"
        )
    if len(given) == 2:
        _check_forms_agree(given, dict(forms), shape, place)
    affine = next(iter(given.values()))
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(size / (voxel * unit) - 1) > _PIXDIM_TOLERANCE).any():
        raise DataError(
            f"{place}: its affine has voxels of {_numbers(size)} mm, its pixdim of {_numbers(voxel * unit)} mm; "
            "find out which is right and export it again"
        )
    if size.min() < _VOXEL_MM[0] or size.max() > _VOXEL_MM[1]:
        raise DataError(
            f"{place}: its voxels are {_numbers(size)} mm, which cannot be; correct pixdim, affine, or the unit "
            f"(xyzt_units {int(fields['xyzt_units'])})"
        )
    if np.abs(affine[:3, 3]).max() > _FARTHEST_MM:
        raise DataError(
            f"{place}: its first voxel lies at {_numbers(affine[:3, 3])} mm, which cannot be; export it again"
        )
    return affine


def _sform(fields: Any, place: str) -> Affine:
    return np.array([*(fields[f"srow_{axis}"] for axis in "xyz"), (0, 0, 0, 1)], dtype=np.float64)


def _qform(fields: Any, place: str) -> Affine:
    handedness = float(fields["pixdim"][0])
    quaternion = np.array([fields[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    if handedness not in (-1, 0, 1) or not quaternion @ quaternion <= 1 + _QUATERNION_ROUNDING:
        raise DataError(
            f"{place}: its qform is no rotation (quaternion {_numbers(quaternion)}, handedness {handedness:g}); "
            "export it again"
        )
    affine = np.eye(4)
    rotation = quat2mat(fillpositive(quaternion, _QUATERNION_ROUNDING))
    affine[:3, :3] = rotation * fields["pixdim"][1:4].astype(np.float64) * (1, 1, handedness or 1)
    affine[:3, 3] = [fields[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _in_mm(affine: Affine, unit: float, name: str, place: str) -> Affine:
    """The affine in millimetres, if its axes are at right angles; they may be oblique to the scanner's."""
    affine = np.vstack((affine[:3] * unit, affine[3]))
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(size).all() or size.min() == 0:
        raise DataError(f"{place}: its affine {affine[:3].tolist()} ({name}) is not invertible; export it again")
    axes = affine[:3, :3] / size
    if abs(np.linalg.det(axes)) < _SHEAR_TOLERANCE:
        raise DataError(f"{place}: its affine {affine[:3].tolist()} ({name}) is not invertible; export it again")
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > _SHEAR_TOLERANCE:
        raise DataError(
            f"{place}: the axes of its affine {affine[:3].tolist()} ({name}) are not at right angles (off by "
            f"{math.degrees(math.asin(min(shear, 1.0))):.2g} degrees); resample it onto a grid without shear"
        )
    return affine


def _check_forms_agree(forms: dict[str, Affine], codes: dict[str, int], shape: tuple[int, ...], place: str) -> None:
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, length - 1) for length in shape))])
    apart = (forms["sform"] - forms["qform"]) @ corners.T
    distance = float(np.linalg.norm(apart, axis=0).max())
    if not distance <= _FORMS_APART_MM:
        told = "; ".join(
            f"{name} (code {codes[name]}, {_SPACES[codes[name]]} space) {affine[:3].round(4).tolist()}"
            for name, affine in forms.items()
        )
        raise DataError(
            f"{place}: its sform and qform put voxels up to {distance:.3g} mm apart: {told}; find out which is right "
            "for every contrast of the subject, and copy it over the other or set the other's code to 0"
        )


def _numbers(values: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
