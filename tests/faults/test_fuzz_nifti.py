"""Mutated NIfTI headers: each is refused with a DataError, or read as an independent reading reads it."""

from __future__ import annotations

import copy
import gzip
import itertools
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.volumes import Volume, load_volume, save_synthetic
from pflsynth.errors import DataError
from tests.raw_nifti import RawNifti, independent_reading, qform, raw_nifti

SHAPE = (5, 4, 3)
EXTREME_INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 255, 512, 1024, 32767, -32768)
EXTREME_FLOATS = (0.0, -0.0, 1.0, -1.0, 2.5, 1e-38, 1e38, -1e38, 1e10, float("nan"), float("inf"), float("-inf"))
GEOMETRY = ("pixdim", "quatern", "qoffset", "srow_x", "srow_y", "srow_z")
MOST_MEGABYTES = 32


def values(dtype: str) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 100, SHAPE).astype(dtype)


def rotated(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cos, -sin, 0, 3], [sin, cos, 0, -20], [0, 0, 1, 7.5], [0, 0, 0, 1]])
    return turn @ np.diag([1.0, 1.5, 3.0, 1.0])


def with_qform(raw: RawNifti, sform_code: int) -> RawNifti:
    """A file whose qform is a turn by 20 degrees about x; the sform is the same, and is off with code 0."""
    half = np.radians(10)
    raw.put("qform_code", 1).put("quatern", np.sin(half), 0, 0).put("qoffset", -3, 4, 5)
    raw.put("pixdim", -1, 1, 1.5, 3, 0, 0, 0, 0)
    for axis, row in zip("xyz", qform(raw), strict=False):
        raw.put(f"srow_{axis}", *row)
    return raw.put("sform_code", sform_code)


def own_files() -> list[RawNifti]:
    """Small valid files of every kind that is read."""
    return [
        raw_nifti(values("int16"), rotated(0)),
        raw_nifti(values("float32"), rotated(30)),
        raw_nifti(values("uint16"), rotated(-70), order=">"),
        raw_nifti(values("float64"), rotated(10) @ np.diag([-1.0, 1.0, 1.0, 1.0]), version=2),
        raw_nifti(values("int64")[..., None], rotated(5)[[2, 0, 1, 3]], version=2, order=">"),
        raw_nifti(values("uint8"), rotated(15)).put("scl_slope", 0.25).put("scl_inter", -3),
        with_qform(raw_nifti(values("int32")), sform_code=0),
        with_qform(raw_nifti(values("int8")), sform_code=4),
    ]


def real_files(realdata: Path) -> list[RawNifti]:
    """The header of one real volume of each site, with the values and the shape of a small one."""
    files = []
    for site in sorted(path for path in realdata.iterdir() if path.is_dir()):
        content = gzip.decompress(next(iter(sorted(site.glob("*/anat/*.nii.gz")))).read_bytes())
        raw = RawNifti(bytearray(content[:348]), bytes(4) + values("int16").tobytes(order="F"))
        files.append(raw.put("dim", 3, *SHAPE, 1, 1, 1, 1))
    return files


def mutants(files: list[RawNifti], count: int, seed: int) -> Iterator[bytes]:
    """Files with something wrong in them."""
    chance = random.Random(seed)
    kinds = (flip_bytes, extreme_field, swapped_fields, nudged_geometry, other_length, damaged_gzip)
    for number in range(count):
        raw = copy.deepcopy(files[number % len(files)])
        yield chance.choice(kinds)(raw, chance)


def flip_bytes(raw: RawNifti, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        raw.header[chance.randrange(len(raw.header))] ^= 1 << chance.randrange(8)
    return raw.content


def extreme_field(raw: RawNifti, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 2)):
        offset, form = raw.fields[chance.choice([name for name in raw.fields if name not in ("sizeof_hdr", "magic")])]
        step = struct.calcsize(form[-1])
        place = offset + step * chance.randrange(int(form[:-1] or 1))
        value = chance.choice(EXTREME_FLOATS if form[-1] in "fd" else EXTREME_INTEGERS)
        struct.pack_into(raw.order + form[-1], raw.header, place, value % 256 if form[-1] == "B" else value)
    return raw.content


def swapped_fields(raw: RawNifti, chance: random.Random) -> bytes:
    same = [name for name in raw.fields if raw.fields[name][1] == raw.fields["srow_x"][1]]
    one, other = chance.sample([*same, "srow_y"], 2) if chance.random() < 0.5 else ("qform_code", "sform_code")
    first, second = raw.get(one), raw.get(other)
    for name, value in ((one, second), (other, first)):
        raw.put(name, *(value if isinstance(value, tuple) else (value,)))
    if chance.random() < 0.3:
        i, j = chance.sample((1, 2, 3), 2)
        dim = list(raw.get("dim"))
        dim[i], dim[j] = dim[j], dim[i]
        raw.put("dim", *dim)
    return raw.content


def nudged_geometry(raw: RawNifti, chance: random.Random) -> bytes:
    name = chance.choice(GEOMETRY)
    index = chance.randrange(len(raw.get(name)))
    return raw.put_at(name, index, raw.get(name)[index] * (1 + 10 ** chance.uniform(-7, 0))).content


def other_length(raw: RawNifti, chance: random.Random) -> bytes:
    content = raw.content
    if chance.random() < 0.7:
        return content[: chance.randrange(len(content))]
    return content + chance.randbytes(chance.randint(1, 5000))


def damaged_gzip(raw: RawNifti, chance: random.Random) -> bytes:
    content = bytearray(gzip.compress(raw.content, mtime=0))
    if chance.random() < 0.5:
        return bytes(content[: chance.randrange(len(content))])
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def assert_read_as_written(volume: Volume, content: bytes) -> None:
    """Every voxel has the place and the value that the file itself gives it."""
    if content[:2] == b"\x1f\x8b":
        content = zlib.decompress(content, wbits=31)
    reading = independent_reading(content)
    assert reading.forms_apart_mm <= 1.0001
    assert sorted(volume.data.shape) == sorted(reading.shape)
    voxels = np.array(list(np.ndindex(volume.data.shape)))
    places = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    stored = np.linalg.solve(reading.affine[:3, :3], (places - reading.affine[:3, 3]).T).T
    indices = stored.round().astype(int)
    assert np.abs(stored - indices).max() < 0.01
    assert len(np.unique(indices, axis=0)) == len(voxels)
    with np.errstate(over="ignore"):
        expected = reading.values[tuple(indices.T)].astype(np.float32)
    found = volume.data[tuple(voxels.T)]
    rim = np.isnan(expected)
    assert np.array_equal(found[~rim], expected[~rim])
    assert (found[rim] == expected[~rim].min()).all()
    assert_ras(volume)


def assert_ras(volume: Volume) -> None:
    """No other order or direction of the axes is closer to RAS."""
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    best = max(
        sum(abs(axes[row, column]) for column, row in enumerate(order)) for order in itertools.permutations(range(3))
    )
    assert np.trace(axes) > best - 0.5
    assert (np.diag(axes) > -1e-6).all()


def assert_written_on_the_same_grid(volume: Volume, out: Path) -> None:
    """What is synthesised for a file that is read can be read too, and lies where the file lies."""
    save_synthetic(out, volume.data, like=volume.path, description="made by a test")
    made = load_volume(out, "")
    assert np.array_equal(made.data, volume.data)
    assert np.array_equal(made.affine, volume.affine)


def loaded_or_error(path: Path) -> Volume | str:
    try:
        return load_volume(path, "site here")
    except DataError as error:
        return str(error)


def assert_holds(files: list[RawNifti], folder: Path, count: int, seed: int) -> None:
    loaded = refused = 0
    tracemalloc.start()
    try:
        for content in mutants(files, count, seed):
            path = folder / "mutant.nii.gz"
            path.write_bytes(content)
            outcome = loaded_or_error(path)
            if isinstance(outcome, Volume):
                loaded += 1
                assert_read_as_written(outcome, content)
                assert_written_on_the_same_grid(outcome, folder / "made.nii")
            else:
                refused += 1
                assert outcome.startswith(f"site here: {path}: ")
                assert "\n" not in outcome
                assert len(outcome) < 1500
        assert tracemalloc.get_traced_memory()[1] < MOST_MEGABYTES * 2**20
    finally:
        tracemalloc.stop()
    assert loaded > count // 10
    assert refused > count // 4


def test_the_files_that_are_mutated_are_read_as_they_are(tmp_path: Path, realdata: Path) -> None:
    for raw in (*own_files(), *real_files(realdata)):
        (tmp_path / "x.nii").write_bytes(raw.content)
        assert_read_as_written(load_volume(tmp_path / "x.nii", ""), raw.content)


def test_a_fixed_sample_of_mutants(tmp_path: Path, realdata: Path) -> None:
    assert_holds([*own_files(), *real_files(realdata)], tmp_path, count=160, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_mutants(tmp_path: Path, realdata: Path, seed: int) -> None:
    assert_holds([*own_files(), *real_files(realdata)], tmp_path, count=1000, seed=seed)
