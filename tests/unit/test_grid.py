"""From a volume's grid to slices and back, with numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pflsynth.data.grid import SliceGrid, resampling_matrix
from pflsynth.errors import DataError


def test_halving_four_samples_by_hand() -> None:
    # Centres at 0.5 and 2.5, a triangle of half-width 2: weights 1/4, 3/4, 3/4, 1/4, halved to sum to 1; the one
    # at position -1 (and at 4) lies outside and is left out.
    matrix = resampling_matrix(4, 2, ratio=2, offset=0.5).toarray()
    assert matrix.tolist() == [[0.375, 0.375, 0.125, 0], [0, 0.125, 0.375, 0.375]]


def test_doubling_two_samples_by_hand() -> None:
    matrix = resampling_matrix(2, 4, ratio=0.5, offset=-0.25).toarray()
    assert matrix.tolist() == [[0.75, 0], [0.75, 0.25], [0.25, 0.75], [0, 0.75]]


def test_a_plane_of_4_by_4_becomes_2_by_2_by_hand() -> None:
    volume = np.zeros((4, 4, 1), np.float32)
    volume[0, 3, 0] = 1  # left, front: first row, first column
    grid = SliceGrid((4, 4, 1), (1, 1), 2, 2)
    assert grid.to_slices(volume, background=0).tolist() == [[[0.375**2, 0], [0, 0]]]
    # The plane covers 0.875 of each pixel's triangle along an axis; the rest is background.
    assert grid.to_slices(np.zeros((4, 4, 1), np.float32), background=-1)[0, 0, 0] == pytest.approx(0.875**2 - 1)


def test_rows_run_from_front_to_back_and_columns_along_x() -> None:
    volume = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
    slices = SliceGrid((2, 2, 3), (1, 1), 2, None).to_slices(volume, 0)
    for z in range(3):
        assert slices[z].tolist() == [[volume[0, 1, z], volume[1, 1, z]], [volume[0, 0, z], volume[1, 0, z]]]


def test_padding_is_background_and_cropping_keeps_the_middle() -> None:
    line = np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1)
    assert SliceGrid((6, 1, 1), (1, 1), 4, None).to_slices(line, -1)[0].max(axis=0).tolist() == [2, 3, 4, 5]
    padded = SliceGrid((6, 1, 1), (1, 1), 8, None).to_slices(line, -1)[0].max(axis=0)
    assert padded.tolist() == [-1, 1, 2, 3, 4, 5, 6, -1]


def test_antialiasing_takes_the_mean_of_fine_stripes() -> None:
    stripes = np.tile([0.0, 1.0], 32).astype(np.float32)[:, None, None] * np.ones((1, 64, 1), np.float32)
    inner = SliceGrid((64, 64, 1), (1, 1), 16, 4).to_slices(stripes, 0.5)[0]
    assert np.allclose(inner[1:-1, 1:-1], 0.5, atol=1e-6)


def test_a_smooth_volume_survives_the_way_there_and_back() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 90), np.linspace(-1, 1, 100), indexing="ij")
    volume = (np.exp(-6 * (x**2 + y**2)) - 1)[..., None].astype(np.float32)
    grid = SliceGrid((90, 100, 1), (1.1, 0.9), 64, 1.8)
    back = grid.to_volume(grid.to_slices(volume, -1), -1)
    assert back.shape == volume.shape
    assert np.abs(back - volume).max() < 0.02


def test_spacing_that_differs_by_rounding_counts_as_native() -> None:
    volume = np.random.default_rng(0).random((5, 6, 2)).astype(np.float32)
    grid = SliceGrid((5, 6, 2), (1.0000001, 0.9999999), 8, 1.0)
    assert np.array_equal(grid.to_volume(grid.to_slices(volume, -1), -1), volume)


def test_a_head_that_would_be_cut_is_refused_with_a_cure_that_works() -> None:
    mask = np.zeros((100, 120, 3), bool)
    mask[10:90, 5:115, :] = True
    grid = SliceGrid((100, 120, 3), (1, 1), 80, None)
    with pytest.raises(DataError) as caught:
        grid.check_head_fits(mask, "site here, subject sub-01")
    text = str(caught.value)
    assert text.startswith("site here, subject sub-01: the head is 80 x 110 mm")
    assert "slices hold 80 x 80 mm" in text
    assert "image.size = 112" in text
    assert "image.spacing_mm = 1.37" in text
    assert SliceGrid((100, 120, 3), (1, 1), 112, None).head_fits(mask)
    assert not SliceGrid((100, 120, 3), (1, 1), 108, None).head_fits(mask)
    assert SliceGrid((100, 120, 3), (1, 1), 80, 1.37).head_fits(mask)


def test_a_head_off_the_centre_needs_more_room_on_its_side() -> None:
    mask = np.zeros((40, 40, 1), bool)
    mask[0:20, 10:30, 0] = True
    assert not SliceGrid((40, 40, 1), (1, 1), 24, None).head_fits(mask)
    assert SliceGrid((40, 40, 1), (1, 1), 40, None).head_fits(mask)
