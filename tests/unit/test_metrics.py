"""PSNR and SSIM equal scikit-image's, and within a mask the plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pflsynth.evaluation.metrics import METRICS, SSIM_ARGUMENTS, SSIM_SETTING, psnr, ssim, to_unit


def pair(seed: int, shape: tuple[int, int] = (40, 36)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth reference in [0, 1], a noisy copy, and a mask."""
    random = np.random.default_rng(seed)
    reference = gaussian_filter(random.random(shape), 2)
    reference = (reference - reference.min()) / (reference.max() - reference.min())
    image = np.clip(reference + random.normal(0, 0.1, shape), 0, 1)
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = (y - 20) ** 2 + (x - 14) ** 2 < 120
    return reference, image, mask


@pytest.mark.parametrize("seed", range(5))
def test_psnr_equals_scikit_image(seed: int) -> None:
    reference, image, _ = pair(seed)
    wanted = peak_signal_noise_ratio(reference, image, data_range=1)
    assert psnr(reference, image) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_ssim_equals_scikit_image(seed: int) -> None:
    reference, image, _ = pair(seed)
    wanted = structural_similarity(
        reference, image, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(reference, image) == pytest.approx(wanted, rel=1e-12)
    assert SSIM_SETTING == "wang2004"
    assert dict(SSIM_ARGUMENTS) == {
        "data_range": 1.0,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }


@pytest.mark.parametrize("seed", range(3))
def test_psnr_within_a_mask_is_the_formula_over_its_pixels(seed: int) -> None:
    reference, image, mask = pair(seed)
    squares = [(reference[place] - image[place]) ** 2 for place in zip(*np.nonzero(mask), strict=True)]
    assert psnr(reference, image, mask) == pytest.approx(10 * math.log10(1 / (sum(squares) / len(squares))), rel=1e-12)
    assert psnr(reference, image, mask) != pytest.approx(psnr(reference, image), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ssim_within_a_mask_is_the_mean_of_the_map_inside(seed: int) -> None:
    reference, image, mask = pair(seed)

    def window(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5)

    mean_r, mean_i = window(reference), window(image)
    var_r, var_i = window(reference**2) - mean_r**2, window(image**2) - mean_i**2
    both = window(reference * image) - mean_r * mean_i
    c1, c2 = 0.01**2, 0.03**2
    formula = (2 * mean_r * mean_i + c1) * (2 * both + c2) / ((mean_r**2 + mean_i**2 + c1) * (var_r + var_i + c2))
    assert ssim(reference, image, mask) == pytest.approx(formula[mask].mean(), rel=1e-9)


def test_equal_images() -> None:
    reference, _, mask = pair(0)
    assert psnr(reference, reference) == math.inf
    assert ssim(reference, reference) == pytest.approx(1.0)
    assert ssim(reference, reference, mask) == pytest.approx(1.0)


def test_only_the_mask_counts() -> None:
    reference, image, mask = pair(0)
    outside = np.where(mask, reference, image)
    assert psnr(reference, outside, mask) == math.inf
    assert psnr(reference, np.where(mask, image, reference), mask) == psnr(reference, image, mask)


def test_a_known_error_has_a_known_psnr() -> None:
    reference = np.full((16, 16), 0.5)
    assert psnr(reference, reference + 0.1) == pytest.approx(20.0)
    assert psnr(reference, reference - 0.01) == pytest.approx(40.0)


def test_gain_and_offset_are_seen() -> None:
    """The public code divides each image by its own maximum, which hides a wrong gain."""
    reference, _, mask = pair(1)
    for wrong in (0.8 * reference, 0.9 * reference + 0.1):
        assert psnr(reference, wrong) < 25
        assert psnr(reference, wrong, mask) < 25
        assert ssim(reference, wrong) < 0.99


def test_images_are_mapped_to_the_unit_interval_and_clipped() -> None:
    values = np.array([[-3.0, -1.0, -0.5], [0.0, 1.0, 1.5]], dtype=np.float32)
    assert to_unit(values).tolist() == [[0.0, 0.0, 0.25], [0.5, 1.0, 1.0]]
    assert to_unit(values).dtype == np.float64


def test_the_names_of_the_metrics() -> None:
    assert dict(METRICS) == {"psnr": psnr, "ssim": ssim}
