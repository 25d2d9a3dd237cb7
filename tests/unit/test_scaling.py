"""Robust scaling and the head mask."""

from __future__ import annotations

import numpy as np
import pytest

from pflsynth.data.head import head_mask
from pflsynth.data.scaling import Scale, find_head
from pflsynth.errors import DataError
from tests.data_builders import head


def ball(radius: float = 0.8, shape: tuple[int, int, int] = (64, 64, 11)) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return x**2 + y**2 + 0.2 * z**2 < radius**2


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice coefficient."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_scale_by_hand() -> None:
    scale = Scale.linear(100, 300)
    values = np.array([50, 100, 150, 200, 300, 400], dtype=np.float32)
    assert scale.apply(values).tolist() == [-1, -1, -0.5, 0, 1, 1]
    assert scale.apply(values).dtype == np.float32
    assert scale.invert(np.array([-1, -0.5, 0, 1])).tolist() == [100, 150, 200, 300]


def test_a_scale_of_three_knots_by_hand() -> None:
    scale = Scale((0, 10, 110), (-1, 0, 1))
    assert scale.apply([-5, 0, 5, 10, 60, 110, 200]).tolist() == [-1, -1, -0.5, 0, 0.5, 1, 1]
    assert scale.invert([-1, -0.5, 0, 0.5, 1]).tolist() == [0, 5, 10, 60, 110]


def test_percentiles_of_a_skull_stripped_volume_by_hand() -> None:
    # Background 0; the head is a box of the values 501..1500, each as often, so its 99.5th percentile is near 1495.
    data = np.zeros((40, 40, 4), np.float32)
    data[10:35, 10:30, :] = 500 + np.tile(np.arange(1, 1001), 2).reshape(25, 20, 4)
    found = find_head(data, "x")
    mask = found.mask
    assert found.low == 0
    assert overlap(mask, data > 0) > 0.92  # a box of 25 x 20: one voxel of blur around it
    assert found.high == np.percentile(data[mask], 99.5)
    assert found.high == pytest.approx(1495, abs=2)


@pytest.mark.parametrize("noise", [0.0, 3.0, 10.0])
def test_the_mask_is_the_ball_with_and_without_noise(noise: float) -> None:
    truth = ball()
    random = np.random.default_rng(0)
    real, imaginary = (random.normal(0, noise, truth.shape) if noise else np.zeros(truth.shape) for _ in range(2))
    data = np.hypot(100 * truth + real, imaginary).astype(np.float32)
    assert overlap(head_mask(data), truth) > 0.95


def test_dark_fluid_inside_and_a_dark_skull_gap_are_in_the_mask() -> None:
    data = 100.0 * ball(0.9)
    data[ball(0.75)] = 2  # the gap between scalp and brain
    data[ball(0.6)] = 80
    data[ball(0.2)] = 0  # ventricles on FLAIR
    assert overlap(head_mask(data.astype(np.float32)), ball(0.9)) > 0.95


def test_a_gap_that_opens_only_at_the_border_of_the_image_is_filled() -> None:
    data = 100.0 * ball(0.9)
    data[ball(0.75)] = 2  # the gap between scalp and brain
    data[ball(0.5)] = 80
    cropped = data[:, :54]  # the field of view cuts scalp and gap
    assert overlap(head_mask(cropped.astype(np.float32)), ball(0.9)[:, :54]) > 0.95


def test_what_is_apart_from_the_head_is_out() -> None:
    data = 100.0 * ball(0.6)
    data[2:5, 2:5, :] = 200  # a marker beside the head
    assert not head_mask(data.astype(np.float32))[:8, :8].any()


def test_a_head_that_touches_the_border_is_not_eroded() -> None:
    data = np.full((30, 30, 4), 100, np.float32)
    data[:, 25:] = 0
    assert overlap(head_mask(data), data > 0) > 0.95


def test_a_few_very_bright_voxels_do_not_move_the_scale() -> None:
    data = head((48, 56, 8)).astype(np.float32)
    spiked = data.copy()
    spiked[24, 28, 4] = 1e6
    assert find_head(spiked, "x").high == pytest.approx(find_head(data, "x").high, rel=0.02)


def test_a_background_that_is_not_dark_is_refused() -> None:
    inside = ball()
    z_scored = np.where(inside, np.random.default_rng(0).normal(0, 1, inside.shape), 0).astype(np.float32)
    with pytest.raises(DataError, match=r"site a: the background \(0\) is not dark.*z-scored"):
        find_head(z_scored, "site a")


def test_same_input_same_numbers() -> None:
    data = head(noise=3).astype(np.float32)
    one, two = find_head(data, "x"), find_head(data.copy(), "x")
    assert (one.low, one.high) == (two.low, two.high)
    assert np.array_equal(one.mask, two.mask)
