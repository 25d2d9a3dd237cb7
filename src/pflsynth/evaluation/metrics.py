"""PSNR and SSIM of synthesised images, over the slice and within the head mask, by scikit-image.

Images are mapped from [-1, 1] to [0, 1] and clipped; the data range is 1. The SSIM setting has one name,
``wang2004``: Gaussian window of standard deviation 1.5, population covariance (Wang et al., IEEE TIP 2004).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from skimage.metrics import structural_similarity

SSIM_SETTING = "wang2004"
SSIM_ARGUMENTS: Mapping[str, object] = MappingProxyType(
    {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
)


def to_unit(image: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to [0, 1] in float64, clipping what lies outside."""
    unit: np.ndarray = np.clip((image.astype(np.float64) + 1) / 2, 0, 1)
    return unit


def psnr(reference: np.ndarray, image: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB for data range 1; infinite for equal images.

    Args:
        reference: (H, W) in [0, 1].
        image: (H, W) in [0, 1].
        mask: (H, W) bool; pixels to count, all without it.
    """
    squared = (reference - image) ** 2
    error = float(squared.mean() if mask is None else squared[mask].mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(reference: np.ndarray, image: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Structural similarity, at most 1: scikit-image's mean, or the mean of the SSIM map inside ``mask``.

    Args:
        reference: (H, W) in [0, 1].
        image: (H, W) in [0, 1].
        mask: (H, W) bool; pixels to count. Without it, scikit-image's mean, which leaves out a border of 5 pixels.
    """
    mean, similarity = structural_similarity(reference, image, full=True, **SSIM_ARGUMENTS)
    return float(mean if mask is None else similarity[mask].mean())


METRICS = MappingProxyType({"psnr": psnr, "ssim": ssim})
