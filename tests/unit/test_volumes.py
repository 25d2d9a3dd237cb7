"""NIfTI in and out."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.data.volumes import load_volume, save_synthetic
from pflsynth.errors import DataError
from tests.data_builders import AFFINE, head, write_nifti
from tests.raw_nifti import TYPES, independent_reading, raw_nifti

WHERE = "site here, subject sub-01, contrast T1w"


def test_a_ras_volume_is_read_as_it_is(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "x.nii.gz", head())
    volume = load_volume(path, WHERE)
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, head().astype(np.float32))
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.spacing_mm == (1, 1, 3)


def test_a_stored_orientation_is_turned_to_ras_voxel_by_voxel(tmp_path: Path) -> None:
    # Stored axes: 0 = inferior, 1 = left, 2 = anterior.
    affine = np.array([[0, -1.0, 0, 5], [0, 0, 2.0, -7], [-3.0, 0, 0, 9], [0, 0, 0, 1]])
    stored = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    volume = load_volume(write_nifti(tmp_path / "x.nii", stored, affine), WHERE)
    assert volume.data.shape == (3, 4, 2)
    assert volume.spacing_mm == (1, 2, 3)
    for voxel in np.ndindex(stored.shape):
        millimetres = affine @ (*voxel, 1)
        x, y, z = np.linalg.solve(volume.affine, millimetres)[:3].round().astype(int)
        assert volume.data[x, y, z] == stored[voxel]


def test_trailing_axes_of_one_and_a_scaling_slope_are_accepted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "x.nii.gz")
    volume = load_volume(tmp_path / "x.nii.gz", WHERE)
    assert volume.data.shape == (2, 3, 4)
    expected = np.asanyarray(nibabel.load(tmp_path / "x.nii.gz").dataobj).reshape(2, 3, 4)
    assert np.allclose(volume.data, expected)


def test_header_units_other_than_millimetres_are_converted(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head().astype(np.float32), np.diag([0.001, 0.001, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "x.nii")
    assert load_volume(tmp_path / "x.nii", WHERE).spacing_mm == pytest.approx((1, 1, 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_byte_order_and_version(tmp_path: Path, dtype: str, version: int, order: str) -> None:
    data = head().clip(0, 120).astype(dtype)
    (tmp_path / "x.nii").write_bytes(raw_nifti(data, AFFINE, version, order).content)
    volume = load_volume(tmp_path / "x.nii", WHERE)
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, data.astype(np.float32))
    assert np.array_equal(volume.affine, AFFINE)


def test_gzip_is_known_by_its_bytes_and_may_have_members_and_padding(tmp_path: Path) -> None:
    content = raw_nifti(head().astype(np.int16), AFFINE).content
    pieces = gzip.compress(content[:1000]) + gzip.compress(content[1000:]) + bytes(512)
    for name, stored in (("plain.nii.gz", content), ("compressed.nii", gzip.compress(content)), ("two.nii.gz", pieces)):
        (tmp_path / name).write_bytes(stored)
        volume = load_volume(tmp_path / name, WHERE)
        assert np.array_equal(volume.data, head().astype(np.float32))
        assert volume.sha256 == hashlib.sha256(stored).hexdigest()


def test_an_oblique_volume_keeps_its_oblique_axes(tmp_path: Path) -> None:
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    affine = np.array([[cos, sin, 0, 4], [-sin, cos, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]]) @ np.diag([-1, 1.2, 3, 1])
    volume = load_volume(write_nifti(tmp_path / "x.nii", head(), affine), WHERE)
    assert np.array_equal(volume.data, head()[::-1].astype(np.float32))
    assert volume.affine[:, 3] == pytest.approx(affine @ (23, 0, 0, 1))
    assert volume.affine[:, 0] == pytest.approx(-affine[:, 0])
    assert volume.spacing_mm == pytest.approx((1, 1.2, 3))


def test_a_qform_alone_gives_the_geometry(tmp_path: Path) -> None:
    half = np.radians(15)
    raw = raw_nifti(head().astype(np.int16)).put("sform_code", 0).put("qform_code", 1)
    raw.put("quatern", 0, 0, np.sin(half)).put("qoffset", 7, 8, 9).put("pixdim", 0, 1, 1, 3, 0, 0, 0, 0)
    (tmp_path / "x.nii").write_bytes(raw.content)
    volume = load_volume(tmp_path / "x.nii", WHERE)
    cos, sin = np.cos(2 * half), np.sin(2 * half)
    assert volume.affine == pytest.approx(np.array([[cos, -sin, 0, 7], [sin, cos, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]]))
    save_synthetic(tmp_path / "out.nii", volume.data, tmp_path / "x.nii", "x")  # nibabel wants pixdim[0] to be -1 or 1
    assert np.array_equal(load_volume(tmp_path / "out.nii", WHERE).affine, volume.affine)


def test_slope_and_intercept_by_hand(tmp_path: Path) -> None:
    raw = raw_nifti(np.array([[[0, 1000], [-4, 3]]], np.int16)).put("scl_slope", 0.5).put("scl_inter", 10)
    (tmp_path / "x.nii").write_bytes(raw.content)
    assert load_volume(tmp_path / "x.nii", WHERE).data.tolist() == [[[10, 510], [8, 11.5]]]
    for slope in (0, float("nan")):  # the standard: there is no scaling
        (tmp_path / "x.nii").write_bytes(raw.put("scl_slope", slope).content)
        assert load_volume(tmp_path / "x.nii", WHERE).data.tolist() == [[[0, 1000], [-4, 3]]]


def test_one_slice_and_one_frame(tmp_path: Path) -> None:
    assert load_volume(write_nifti(tmp_path / "x.nii", head()[:, :, 2:3]), WHERE).data.shape == (24, 28, 1)
    assert load_volume(write_nifti(tmp_path / "y.nii", head()[..., None]), WHERE).data.shape == (24, 28, 6)


def test_a_rim_of_nan_becomes_background(tmp_path: Path) -> None:
    data = head() - 7
    data[:3] = data[:, -2:] = data[20:, :, 5] = np.nan
    volume = load_volume(write_nifti(tmp_path / "x.nii", data), WHERE)
    assert np.array_equal(volume.data, np.nan_to_num(data, nan=-7).astype(np.float32))
    data[12, 14, 0] = np.nan  # in the head: at the lowest slice, but not at a side of it
    with pytest.raises(DataError, match="1 voxels are NaN"):
        load_volume(write_nifti(tmp_path / "x.nii", data), WHERE)


def test_a_slice_lies_in_one_piece_of_memory_and_few_copies_are_made(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (128, 128, 64)).astype(np.float32)
    for affine in (AFFINE, AFFINE[[2, 0, 1, 3]]):
        path = write_nifti(tmp_path / "x.nii.gz", data, affine)
        tracemalloc.start()
        volume = load_volume(path, WHERE)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert volume.data[:, :, 0].flags.f_contiguous
        assert volume.data.flags.writeable
        assert peak < 3 * data.nbytes


def test_real_volumes_are_read_as_two_other_readers_read_them(realdata: Path) -> None:
    for site in sorted(path for path in realdata.iterdir() if path.is_dir()):
        path = next(iter(sorted(site.glob("*/anat/*.nii.gz"))))
        volume, image = load_volume(path, WHERE), nibabel.load(path)
        reading = independent_reading(gzip.decompress(path.read_bytes()))
        assert np.array_equal(volume.data, image.get_fdata(dtype=np.float32))
        assert np.array_equal(volume.data, reading.values)
        assert np.array_equal(volume.affine, image.affine)
        assert np.array_equal(volume.affine, reading.affine)
        assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "ILA", "PSR"])
def test_a_synthetic_volume_lies_on_its_inputs_grid(tmp_path: Path, ending: str, codes: str) -> None:
    orientation = nibabel.orientations.axcodes2ornt(tuple(codes))
    ras = nibabel.Nifti1Image(head().astype(np.int16), AFFINE)
    stored = ras.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(AFFINE), orientation))
    stored.header.set_xyzt_units("mm", "sec")
    stored.set_sform(stored.affine, code=4)
    stored.set_qform(stored.affine, code=1)
    like, out = tmp_path / f"like{ending}", tmp_path / f"out{ending}"
    nibabel.save(stored, like)

    volume = load_volume(like, WHERE)
    save_synthetic(out, 2 * volume.data, like, "made by a test")
    first = out.read_bytes()
    save_synthetic(out, 2 * volume.data, like, "made by a test")
    assert out.read_bytes() == first

    written, original = nibabel.load(out), nibabel.load(like)
    assert nibabel.aff2axcodes(written.affine) == tuple(codes)
    assert np.array_equal(written.get_fdata(), 2 * original.get_fdata())
    assert np.array_equal(written.affine, original.affine)
    assert written.get_data_dtype() == np.float32
    for key in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "quatern_b"):
        assert np.array_equal(written.header[key], original.header[key])
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"made by a test"
    assert np.array_equal(load_volume(out, WHERE).data, 2 * volume.data)


def test_synthetic_output_drops_extensions_and_keeps_trailing_axes(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(head().astype(np.float32)[..., None], AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "like.nii")
    save_synthetic(tmp_path / "out.nii.gz", head().astype(np.float32), tmp_path / "like.nii", "x")
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.shape == (*head().shape, 1)
    assert len(written.header.extensions) == 0
    assert b"Jane" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


def test_a_wrong_shape_or_a_long_description_is_refused(tmp_path: Path) -> None:
    like = write_nifti(tmp_path / "like.nii", head())
    with pytest.raises(DataError, match="24 x 28 x 6"):
        save_synthetic(tmp_path / "out.nii", np.zeros((2, 2, 2), np.float32), like, "x")
    with pytest.raises(ValueError, match="80 bytes"):
        save_synthetic(tmp_path / "out.nii", head().astype(np.float32), like, "x" * 80)
    assert not (tmp_path / "out.nii").exists()
