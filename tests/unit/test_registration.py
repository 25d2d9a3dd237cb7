"""Registration recovers known offsets; resampling interpolates once, at the right places."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pflsynth.data.registration import IDENTITY, Registration, grid_with_voxels, register, resample
from pflsynth.data.volumes import Volume, VoxelGrid, load_volume
from pflsynth.errors import DataError

pytest.importorskip("SimpleITK")


def volume(data: np.ndarray, affine: np.ndarray, name: str = "x.nii") -> Volume:
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(np.asarray(data, np.float32), affine.astype(np.float64), (float(x), float(y), float(z)), Path(name))


def grid(
    shape: tuple[int, int, int], voxels: tuple[float, float, float], turn: tuple[float, float, float] = (0, 0, 0)
) -> VoxelGrid:
    """A grid about the origin, turned by a rotation vector in degrees."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix() * voxels
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return VoxelGrid(shape, affine)


def brain(tissues: tuple[float, float, float]) -> Volume:
    """An ellipsoid of 120 x 150 x 110 mm whose random folds have three brightnesses, on a black background."""
    own = grid((50, 60, 28), (2.8, 2.8, 5.0))
    folds = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=own.shape), (2.9, 2.9, 1.8))
    x, y, z = np.moveaxis(places(own).reshape(*own.shape, 3), -1, 0)
    inside = (x / 60) ** 2 + (y / 75) ** 2 + (z / 55 - 0.002 * y) ** 2 < 1
    values = np.select([folds < -0.02, folds < 0.02], tissues[:2], tissues[2])
    return volume(np.where(inside, values, 0), own.affine)


def places(of: VoxelGrid) -> np.ndarray:
    """Where the voxels lie, (N, 3) millimetres."""
    return np.indices(of.shape).reshape(3, -1).T @ of.affine[:3, :3].T + of.affine[:3, 3]


def offset(
    degrees: float, shift: tuple[float, float, float], axis: tuple[float, float, float] = (1, 2, -1)
) -> np.ndarray:
    matrix = np.eye(4)
    direction = np.array(axis) / np.linalg.norm(axis)
    matrix[:3, :3] = Rotation.from_rotvec(degrees * direction, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def error_mm(found: Registration, truth: np.ndarray, fixed: Volume) -> float:
    """Mean distance, over the brain, of where a place is said to lie from where it does."""
    inside = places(fixed.grid)[fixed.data.ravel() > 0]
    difference = np.array(found.matrix) - truth
    return float(np.linalg.norm(inside @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def moved(contrast: Volume, truth: np.ndarray, onto: VoxelGrid) -> Volume:
    """The volume as it looks once its places have moved by ``truth``, the middle of ``onto`` with them."""
    affine = onto.affine.copy()
    affine[:3, 3] += truth[:3, 3] + 4
    return resample(contrast, VoxelGrid(onto.shape, affine), np.linalg.inv(truth))


@pytest.fixture(scope="module")
def t1w() -> Volume:
    return brain((40, 70, 100))


@pytest.fixture(scope="module")
def t2w() -> Volume:
    return brain((100, 60, 45))


@pytest.fixture(scope="module")
def shifted(t2w: Volume) -> tuple[Volume, np.ndarray]:
    """T2w on an oblique grid of other voxels, a long way off, and the truth."""
    truth = offset(28, (25, -20, 15))
    return moved(t2w, truth, grid((65, 75, 35), (2.0, 2.2, 3.1), (8, -5, 10))), truth


@pytest.fixture(scope="module")
def found(t1w: Volume, shifted: tuple[Volume, np.ndarray]) -> Registration:
    return register(t1w, shifted[0], "rigid", "x")


def test_a_large_offset_between_contrasts_on_oblique_grids_is_found(
    t1w: Volume, shifted: tuple[Volume, np.ndarray], found: Registration
) -> None:
    assert error_mm(found, shifted[1], t1w) < 0.5
    assert found.kind == "rigid"
    assert found.metric_after < found.metric_before
    assert found.converged
    assert found.iterations > 0
    assert found.stop.startswith("Step too small")
    linear = np.array(found.matrix)[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)


def test_twice_gives_the_same_bits_for_any_number_of_threads(
    t1w: Volume, shifted: tuple[Volume, np.ndarray], found: Registration
) -> None:
    import SimpleITK

    process = SimpleITK.ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(before + 2)
    try:
        assert register(t1w, shifted[0], "rigid", "x") == found
        assert process.GetGlobalDefaultNumberOfThreads() == before + 2
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)


def test_the_same_volume_stays_where_it_is(t1w: Volume) -> None:
    found = register(t1w, t1w, "rigid", "x")
    assert error_mm(found, IDENTITY, t1w) < 0.05
    assert found.metric_after <= found.metric_before


def test_the_matrix_leads_from_fixed_to_moving_millimetres_in_ras(t1w: Volume, t2w: Volume) -> None:
    affine = t2w.affine.copy()
    affine[:3, 3] += (5, -7, 11)  # to the right, back and up
    found = register(t1w, volume(t2w.data, affine), "rigid", "x")
    np.testing.assert_allclose(np.array(found.matrix)[:3, 3], (5, -7, 11), atol=0.5)


def test_affine_finds_a_stretch(t1w: Volume, t2w: Volume) -> None:
    truth = offset(10, (5, 0, -8)) @ np.diag([1.06, 0.95, 1.03, 1])
    moving = moved(t2w, truth, grid((65, 75, 45), (2.4, 2.4, 3.1)))
    found = register(t1w, moving, "affine", "x")
    assert error_mm(found, truth, t1w) < 0.5
    assert found.kind == "affine"


def test_few_thick_slices_are_aligned(t1w: Volume, t2w: Volume) -> None:
    slab = grid((50, 60, 5), (2.8, 2.8, 7.0))
    truth = offset(-25, (20, -30, 0), axis=(0, 0, 1))
    affine = slab.affine.copy()
    affine[:3, 3] += truth[:3, 3]
    moving = resample(t2w, VoxelGrid(slab.shape, affine), np.linalg.inv(truth))
    fixed = resample(t1w, slab)
    assert error_mm(register(fixed, moving, "rigid", "x"), truth, fixed) < 1.5


def test_a_volume_without_a_head_is_refused(t1w: Volume) -> None:
    empty = volume(np.full(t1w.data.shape, 7), t1w.affine, "empty.nii")
    for fixed, moving in ((t1w, empty), (empty, t1w)):
        with pytest.raises(DataError, match=r"site a, subject b: no head .* in empty\.nii"):
            register(fixed, moving, "rigid", "site a, subject b")


def test_too_few_slices_are_refused(t1w: Volume) -> None:
    thin = volume(t1w.data[:, :, 12:15], t1w.affine, "thin.nii")
    with pytest.raises(DataError, match=r"site a: thin\.nii has 50 x 60 x 3 voxels, and registration needs 4"):
        register(t1w, thin, "rigid", "site a")


def test_without_simpleitk_the_error_says_what_to_install(t1w: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for call in (lambda: register(t1w, t1w, "rigid", "x"), lambda: resample(t1w, t1w.grid)):
        with pytest.raises(DataError, match=r'pip install "pflsynth\[imaging\]"'):
            call()


def test_onto_its_own_grid_the_values_stay(t1w: Volume) -> None:
    noisy = replace(t1w, data=np.random.default_rng(0).random(t1w.data.shape, dtype=np.float32), path=Path("a.nii"))
    turned = replace(noisy, affine=grid(t1w.grid.shape, t1w.spacing_mm, (20, -10, 33)).affine)
    for one in (noisy, turned):
        same = resample(one, one.grid)
        np.testing.assert_allclose(same.data, one.data, atol=1e-5)
        assert same.data.dtype == np.float32
        assert same.path == one.path
        np.testing.assert_allclose(same.spacing_mm, one.spacing_mm)
        np.testing.assert_array_equal(same.affine, one.affine)


def test_linear_interpolation_by_hand() -> None:
    # Voxels of 12, 4 and 20 at x = 0, 2 and 4 mm reach from -1 to 5 mm; beyond is the lowest value.
    three = volume(np.reshape([12, 4, 20], (3, 1, 1)), np.diag([2.0, 1, 1, 1]))
    affine = np.diag([0.5, 1, 1, 1])
    affine[0, 3] = -1.5
    result = resample(three, VoxelGrid((15, 1, 1), affine))
    # x is                 -1.5 -1  -.5  0  .5  1  1.5  2  2.5  3   3.5  4   4.5  5  5.5
    expected = np.array([4, 12, 12, 12, 10, 8, 6, 4, 8, 12, 16, 20, 20, 20, 4])
    inside = [0, *range(2, 13), 14]  # the ends themselves, -1 and 5 mm, are a matter of rounding
    np.testing.assert_allclose(result.data[inside, 0, 0], expected[inside], atol=1e-5)
    nearest = resample(three, VoxelGrid((3, 1, 1), np.diag([1.6, 1, 1, 1])), nearest=True)
    assert nearest.data[:, 0, 0].tolist() == [12, 4, 20]  # x is 0, 1.6, 3.2


def test_the_matrix_is_applied_in_ras() -> None:
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    source = volume(data, np.eye(4))
    step = np.eye(4)
    step[:3, 3] = (1, 2, 1)
    np.testing.assert_allclose(
        resample(source, VoxelGrid((2, 2, 4), np.eye(4)), step).data, data[1:, 2:, 1:], atol=1e-5
    )
    turn = np.eye(4)  # the x axis of the result runs along the y axis of the source, its y axis to the left
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turn[0, 3] = 2
    turned = resample(source, VoxelGrid((4, 3, 5), np.eye(4)), turn).data
    np.testing.assert_allclose(turned, data[::-1].transpose(1, 0, 2), atol=1e-5)


def test_other_voxels_keep_centre_directions_and_field_of_view() -> None:
    old = grid((30, 41, 12), (1.0, 0.9, 5.0), (10, -20, 30))
    old.affine[:3, 3] += (3, -60, 20)
    for voxels in ((1.0, 1.0, 1.0), (2.0, 0.7, 3.3), (1.0, 0.9, 5.0), (90.0, 90.0, 90.0)):
        new = grid_with_voxels(old, voxels)
        np.testing.assert_allclose(places(new).mean(axis=0), places(old).mean(axis=0), atol=1e-9)
        sizes = np.linalg.norm(new.affine[:3, :3], axis=0)
        np.testing.assert_allclose(sizes, voxels)
        np.testing.assert_allclose(new.affine[:3, :3] / sizes, old.affine[:3, :3] / (1.0, 0.9, 5.0))
        assert min(new.shape) >= 1
        if max(voxels) < 90:
            assert np.all(
                np.abs(np.array(new.shape) * voxels - np.array(old.shape) * (1.0, 0.9, 5.0)) <= sizes / 2 + 1e-9
            )
    same = grid_with_voxels(old, (1.0, 0.9, 5.0))
    assert same.shape == old.shape
    np.testing.assert_allclose(same.affine, old.affine)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "axis", "shift", "limit"),
    [("lju3t", (1, 1, 1), (25, 25, -18), 1.0), ("tcga_du", (0, 0, 1), (30, -25, 0), 1.0)],
)
def test_real_volumes_are_brought_back(
    realdata: Path,
    site: str,
    axis: tuple[float, float, float],
    shift: tuple[float, float, float],
    limit: float,
) -> None:
    folder = sorted((realdata / site).glob("sub-*"))[0] / "anat"
    fixed, moving = (load_volume(next(folder.glob(f"*_{name}.nii.gz")), site) for name in ("T1w", "FLAIR"))
    middle = places(fixed.grid).mean(axis=0)
    truth = offset(30, (0, 0, 0), axis)
    truth[:3, 3] = middle + shift - truth[:3, :3] @ middle
    affine = np.diag([1.3, 1.1, fixed.spacing_mm[2], 1])
    shape = (150, 190, fixed.data.shape[2])
    affine[:3, 3] = middle + shift - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    offset_moving = resample(moving, VoxelGrid(shape, affine), np.linalg.inv(truth))
    assert error_mm(register(fixed, offset_moving, "rigid", site), truth, fixed) < limit
