"""Everything that a data folder can throw at the reader: each refused case says what, where, the values, the cure."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pflsynth.data import volumes
from pflsynth.data.volumes import load_volume
from pflsynth.errors import DataError
from tests.data_builders import head
from tests.raw_nifti import RawNifti, raw_nifti

WHERE = "site here, subject sub-02, contrast T2w"
AFFINE = np.array([[1.0, 0, 0, -12], [0, 1.0, 0, -14], [0, 0, 3.0, -9], [0, 0, 0, 1]])


def raw(dtype: str = "int16", **fields: Any) -> RawNifti:
    """A small head; fields are set in its header."""
    file = raw_nifti(head().astype(dtype), AFFINE)
    for name, value in fields.items():
        file.put(name, *(value if isinstance(value, tuple) else (value,)))
    return file


def pixdim(*sizes: float) -> dict[str, tuple[float, ...]]:
    return {"pixdim": (1, *sizes, 0, 0, 0, 0)}


def qform(shift_mm: float, sform_code: int = 4, **quatern: tuple[float, ...]) -> RawNifti:
    """A head whose qform puts it ``shift_mm`` beside its sform."""
    file = raw(qform_code=1, sform_code=sform_code, qoffset=(-12 + shift_mm, -14, -9), **pixdim(1, 1, 3))
    return file.put("quatern", *quatern.get("quatern", (0, 0, 0)))


def sheared(cosine: float) -> RawNifti:
    affine = AFFINE.copy()
    affine[:3, 1] = (cosine, np.sqrt(1 - cosine**2), 0)
    return raw_nifti(head().astype("int16"), affine)


def values(data: np.ndarray, **fields: float) -> RawNifti:
    file = raw_nifti(data, AFFINE)
    for name, value in fields.items():
        file.put(name, value)
    return file


def spoiled(value: float, dtype: str = "float32") -> np.ndarray:
    data = head().astype(dtype)
    data[12, 14, 3] = value
    return data


def reduced(file: RawNifti, count: int) -> bytes:
    return file.content[:-count]


SIZE = 24 * 28 * 6 * 2
REFUSED: dict[str, tuple[Callable[[], RawNifti | bytes], str]] = {
    "nothing": (lambda: b"", r"not a NIfTI file \(it starts with nothing\)"),
    "three bytes": (lambda: b"\x5c\x01\x00", r"it starts with 5c 01 00"),
    "cut within the header": (lambda: raw().content[:200], "cut short within its header .200 of 348 bytes"),
    "cut short": (lambda: reduced(raw(), 100), rf"cut short .100 of the {352 + SIZE} bytes .*24 x 28 x 6, int16"),
    "too long": (lambda: raw().content + b"\0", rf"is longer than the {352 + SIZE} bytes of its header"),
    "cut gzip": (lambda: gzip.compress(raw().content)[:-500], "its compressed data ends early.; copy or export"),
    "gzip without its last bytes": (lambda: gzip.compress(raw().content)[:-4], "compressed data ends early"),
    "gzip too long": (lambda: gzip.compress(raw().content + bytes(10)), "is longer than the"),
    "rubbish after gzip": (lambda: gzip.compress(raw().content) + b"rubbish", "damaged"),
    "Analyze": (lambda: raw(magic=b"\0\0\0\0"), "its magic is .*Analyze files have none.; convert"),
    "header of a pair": (
        lambda: raw(magic=b"ni1\0"),
        r"is the header of a pair of files \(.hdr and .img\); convert both",
    ),
    "data within the header": (lambda: raw(vox_offset=0), "puts the data at byte 0, which cannot be"),
    "data at NaN": (lambda: raw(vox_offset=float("nan")), "puts the data at byte nan"),
    "no axes": (lambda: raw(dim=(0, *[1] * 7)), "tells of 0 axes"),
    "wrong number of axes": (lambda: raw(dim=(9, 24, 28, 6, 1, 1, 1, 1)), "tells of 9 axes"),
    "negative length": (lambda: raw(dim=(3, 24, -28, 6, 1, 1, 1, 1)), "shape 24 x -28 x 6, which cannot be"),
    "empty": (lambda: raw(dim=(3, 24, 0, 6, 1, 1, 1, 1)), r"is empty \(shape 24 x 0 x 6\); export it again"),
    "two axes": (lambda: raw(dim=(2, 24, 28, 1, 1, 1, 1, 1)), r"has 2 axes \(shape 24 x 28\)"),
    "frames": (lambda: raw(dim=(4, 24, 28, 3, 2, 1, 1, 1)), r"has 4 axes \(shape 24 x 28 x 3 x 2\).*keep the one"),
    "vectors": (lambda: raw(dim=(5, 24, 28, 3, 1, 2, 1, 1)), "has 5 axes"),
    "huge": (lambda: raw(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)), "32767 x 32767 x 32767, too large"),
    "large but cut": (lambda: raw(dim=(3, 1000, 1000, 1000, 1, 1, 1, 1)), "is cut short"),
    "complex": (lambda: raw(datatype=32), "holds complex64 values.*its magnitude"),
    "RGB": (lambda: raw(datatype=128), "holds RGB values.*colours to grey"),
    "unknown type": (lambda: raw(datatype=3), r"holds unknown \(datatype 3\) values"),
    "zero voxel": (lambda: raw(**pixdim(1, 0, 3)), r"voxel size 1 x 0 x 3 \(pixdim\) must be positive"),
    "negative voxel": (lambda: raw(**pixdim(-1, 1, 3)), "voxel size -1 x 1 x 3"),
    "NaN voxel": (lambda: raw(**pixdim(1, 1, float("nan"))), "voxel size 1 x 1 x nan"),
    "pixdim is not the affine's": (
        lambda: raw(**pixdim(1, 1, 3.1)),
        "affine has voxels of 1 x 1 x 3 mm, its pixdim of 1 x 1 x 3.1 mm; find out",
    ),
    "unknown unit": (lambda: raw(xyzt_units=5), "unit of length .xyzt_units 5. is unknown; set it to mm"),
    "metres that are millimetres": (lambda: raw(xyzt_units=1), "voxels are 1000 x 1000 x 3000 mm, which cannot be"),
    "microns that are millimetres": (lambda: raw(xyzt_units=3), "voxels are 0.001 x 0.001 x 0.003 mm"),
    "far away": (lambda: raw(srow_y=(0, 1, 0, 1e7)), "first voxel lies at -12 x 1e.07 x -9 mm"),
    "no orientation": (lambda: raw(sform_code=0), "sform_code and qform_code are 0.*left and right are unknown"),
    "unknown code": (lambda: raw(sform_code=17), "sform_code 17 and qform_code 0 are not among 0 to 5"),
    "sform and qform apart": (
        lambda: qform(40),
        r"sform and qform put voxels up to 40 mm apart: sform \(code 4, MNI space\) \[\[1.0, .*qform \(code 1, scanner "
        r"space\) \[\[1.0, .*copy it over the other or set the other's code to 0",
    ),
    "qform is no rotation": (
        lambda: qform(0, sform_code=0, quatern=(0.9, 0.9, 0)),
        "qform is no rotation .quaternion 0.9 x 0.9 x 0, handedness 1.",
    ),
    "singular": (lambda: raw(srow_z=(0, 0, 0, 0)), "is not invertible; export it again"),
    "parallel axes": (lambda: raw(srow_x=(0, 0, 0, 0), srow_y=(1, 1, 0, 0)), "is not invertible"),
    "NaN in the affine": (lambda: raw(srow_z=(0, 0, float("nan"), 0)), "is not invertible"),
    "sheared": (lambda: sheared(0.05), r"\(sform\) are not at right angles \(off by 2.9 degrees\); resample it"),
    "infinite slope": (lambda: raw(scl_slope=float("inf")), "scl_slope inf and scl_inter 0 give no values"),
    "NaN intercept": (lambda: raw(scl_slope=1, scl_inter=float("nan")), "scl_slope 1 and scl_inter nan"),
    "beyond float32": (
        lambda: values(head().astype("float64"), scl_slope=3e38),
        r"0 voxels are NaN and \d+ are infinite, of 4032 \(float64 values, scl_slope 3e\+38, scl_inter 0\)",
    ),
    "beyond any scanner": (
        lambda: raw(scl_slope=1e20),
        r"values go from 0 to .*e\+22 \(int16 values, scl_slope 1e\+20",
    ),
    "NaN inside": (lambda: values(spoiled(np.nan)), "1 voxels are NaN and 0 are infinite, of 4032"),
    "Inf": (lambda: values(spoiled(np.inf)), "0 voxels are NaN and 1 are infinite"),
    "nothing but NaN": (lambda: values(np.full((24, 28, 6), np.nan)), "4032 voxels are NaN"),
    "constant": (lambda: values(np.full((24, 28, 6), 7, np.int16)), "every voxel is 7, so it holds no image"),
    "constant by its slope": (lambda: raw(scl_slope=1e-30, scl_inter=5), "every voxel is 5"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_file_is_one_sentence_with_site_subject_contrast_and_file(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    made = make()
    path = tmp_path / "ein Bild ü.nii.gz"
    path.write_bytes(made if isinstance(made, bytes) else made.content)
    with pytest.raises(DataError, match=words) as caught:
        load_volume(path, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: {path}: ")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    folder, loop, fifo, dangling = (tmp_path / f"{name}.nii.gz" for name in ("folder", "loop", "fifo", "dangling"))
    folder.mkdir()
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "gone")
    os.mkfifo(fifo)
    for path, words in (
        (folder, "is a folder or a device, not a file"),
        (fifo, "is a folder or a device, not a file"),
        (loop, r"cannot be read \(Too many levels of symbolic links\); check its disk or link"),
        (dangling, "there is no such file"),
        (tmp_path / "absent.nii", "there is no such file"),
    ):
        with pytest.raises(DataError, match=words):
            load_volume(path, WHERE)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(raw().content)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so the system would not refuse
    with pytest.raises(DataError, match="no permission to read it; ask for read access"):
        load_volume(path, WHERE)


@pytest.mark.parametrize(("length", "words"), [(6, "is longer than"), (10**4, "too large for an MRI volume")])
def test_a_bomb_is_not_inflated(tmp_path: Path, length: int, words: str) -> None:
    file = raw(dim=(3, 24, 28, length, 1, 1, 1, 1)) if length == 6 else raw(dim=(3, *[length] * 3, 1, 1, 1, 1))
    megabyte = bytes(2**20)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as bomb:
        bomb.write(file.content)
        for _ in range(64):
            bomb.write(megabyte)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            load_volume(tmp_path / "bomb.nii.gz", WHERE)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_header_of_a_large_volume_does_not_take_its_memory(tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_bytes(raw(dim=(3, 1000, 1000, 1000, 1, 1, 1, 1)).content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="cut short"):
            load_volume(tmp_path / "x.nii", WHERE)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_volume_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(raw().content)

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(volumes, "read_nifti", full)
    with pytest.raises(DataError, match="too large for the memory of this machine"):
        load_volume(path, WHERE)
