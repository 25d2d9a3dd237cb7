"""NIfTI files byte by byte, and a reading of them by the letter of the standard that shares no code with pflsynth."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

# nifti1.h and nifti2.h: where each field lies, and its type as struct writes it.
NIFTI1 = {
    "sizeof_hdr": (0, "i"), "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"),
    "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"), "xyzt_units": (123, "B"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"), "qoffset": (268, "3f"),
    "srow_x": (280, "4f"), "srow_y": (296, "4f"), "srow_z": (312, "4f"), "magic": (344, "4s"),
}  # fmt: skip
NIFTI2 = {
    "sizeof_hdr": (0, "i"), "magic": (4, "8s"), "datatype": (12, "h"), "bitpix": (14, "h"), "dim": (16, "8q"),
    "pixdim": (104, "8d"), "vox_offset": (168, "q"), "scl_slope": (176, "d"), "scl_inter": (184, "d"),
    "qform_code": (344, "i"), "sform_code": (348, "i"), "quatern": (352, "3d"), "qoffset": (376, "3d"),
    "srow_x": (400, "4d"), "srow_y": (432, "4d"), "srow_z": (464, "4d"), "xyzt_units": (500, "i"),
}  # fmt: skip
TYPES = {
    "uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512, "uint32": 768,
    "int64": 1024, "uint64": 1280,
}  # fmt: skip
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass
class RawNifti:
    """A header, as bytes to be changed, and what follows it."""

    header: bytearray
    rest: bytes

    @property
    def order(self) -> str:
        return "<" if struct.unpack_from("<i", self.header)[0] in (348, 540) else ">"

    @property
    def fields(self) -> dict[str, tuple[int, str]]:
        return NIFTI1 if struct.unpack_from(f"{self.order}i", self.header)[0] == 348 else NIFTI2

    def get(self, name: str) -> Any:
        offset, form = self.fields[name]
        values = struct.unpack_from(self.order + form, self.header, offset)
        return values if len(values) > 1 else values[0]

    def put(self, name: str, *values: Any) -> RawNifti:
        offset, form = self.fields[name]
        struct.pack_into(self.order + form, self.header, offset, *values)
        return self

    def put_at(self, name: str, index: int, value: Any) -> RawNifti:
        values = list(self.get(name))
        values[index] = value
        return self.put(name, *values)

    def put_affine(self, affine: np.ndarray, code: int = 1) -> RawNifti:
        """Set the sform, and pixdim with it."""
        for axis, row in zip("xyz", affine, strict=False):
            self.put(f"srow_{axis}", *row)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        return self.put("sform_code", code).put("pixdim", 1, *sizes, 0, 0, 0, 0)

    @property
    def content(self) -> bytes:
        return bytes(self.header) + self.rest


def raw_nifti(data: np.ndarray, affine: np.ndarray | None = None, version: int = 1, order: str = "<") -> RawNifti:
    """A NIfTI file of ``data`` with an sform (code 1, millimetres) and no qform."""
    size = {1: 348, 2: 540}[version]
    raw = RawNifti(bytearray(size), b"")
    struct.pack_into(f"{order}i", raw.header, 0, size)
    raw.put("magic", {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}[version])
    raw.put("dim", data.ndim, *data.shape, *[1] * (7 - data.ndim)).put("datatype", TYPES[data.dtype.name])
    raw.put("bitpix", 8 * data.dtype.itemsize).put("vox_offset", size + 4).put("xyzt_units", 2)
    raw.put_affine(np.eye(4) if affine is None else affine)
    raw.rest = bytes(4) + data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    return raw


@dataclass
class Reading:
    """What a file says: stored shape, affine to millimetres (RAS), and values after scaling, as stored.

    ``forms_apart_mm`` is the largest distance between the two places that sform and qform give a voxel, 0 with one.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    values: np.ndarray
    forms_apart_mm: float


def independent_reading(content: bytes) -> Reading:
    """Read a valid file of one volume."""
    little = struct.unpack_from("<i", content)[0] in (348, 540)
    size = struct.unpack_from("<i" if little else ">i", content)[0]
    raw = RawNifti(bytearray(content[:size]), content[size:])
    axes, *lengths = raw.get("dim")
    shape = tuple(lengths[:axes])
    assert all(length == 1 for length in shape[3:])
    name = next(name for name, code in TYPES.items() if code == raw.get("datatype"))
    dtype = np.dtype(name).newbyteorder(raw.order)
    offset, count = int(raw.get("vox_offset")), math.prod(shape)
    assert len(content) == offset + count * dtype.itemsize
    values = np.frombuffer(content, dtype, count, offset).astype(np.float64)
    slope, inter = raw.get("scl_slope"), raw.get("scl_inter")
    if slope != 0 and not math.isnan(slope):
        values = slope * values + inter
    unit = UNITS_MM[raw.get("xyzt_units") & 7]
    forms = [read(raw) for read, code in ((_sform, "sform_code"), (qform, "qform_code")) if raw.get(code) > 0]
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, length - 1) for length in shape[:3]))])
    apart = unit * np.linalg.norm((forms[0] - forms[-1]) @ corners.T, axis=0).max()
    affine = np.diag([unit, unit, unit, 1]) @ forms[0]
    return Reading(shape[:3], affine, values.reshape(shape[:3], order="F"), float(apart))


def _sform(raw: RawNifti) -> np.ndarray:
    return np.array([raw.get("srow_x"), raw.get("srow_y"), raw.get("srow_z"), (0, 0, 0, 1)], dtype=float)


def qform(raw: RawNifti) -> np.ndarray:
    """Method 2 of nifti1.h."""
    b, c, d = raw.get("quatern")
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    qfac, x, y, z = raw.get("pixdim")[:4]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([x, y, z if qfac >= 0 else -z])
    affine[:3, 3] = raw.get("qoffset")
    return affine
