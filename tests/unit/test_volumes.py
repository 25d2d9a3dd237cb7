"""NIfTI in and out."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.data.volumes import load_volume, save_synthetic
from pflsynth.errors import DataError
from tests.data_builders import AFFINE, head, write_nifti

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
