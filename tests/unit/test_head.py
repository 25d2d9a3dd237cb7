"""The head mask, connected pieces and percentiles, against plain ways to find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from pflsynth.data.head import head_mask
from pflsynth.data.percentiles import percentile
from pflsynth.data.pieces import Runs
from pflsynth.data.volumes import load_volume
from tests.data_builders import head


def plain_mask(data: np.ndarray) -> np.ndarray:
    """The head mask slice by slice, with scipy's and scikit-image's own functions."""
    floor, ceiling = np.percentile(data, (0.5, 99.5))
    if floor == ceiling:
        floor, ceiling = data.min(), data.max()
    smooth = ndimage.gaussian_filter(np.clip(data.astype(np.float64), floor, ceiling), (1, 1, 0))
    pieces, _ = ndimage.label(smooth > floor + 0.5 * (threshold_otsu(smooth.ravel()) - floor))
    sizes = np.bincount(pieces.ravel())
    mask = (pieces == 1 + sizes[1:].argmax()) if len(sizes) > 1 else pieces > 0
    steps = np.arange(-3, 4)
    disk = steps[:, None] ** 2 + steps**2 <= 9
    for z in range(mask.shape[2]):
        closed = np.pad(ndimage.binary_closing(np.pad(mask[:, :, z], 9), disk)[9:-9, 9:-9], 1)
        for turned in (closed, closed[::-1], closed.T, closed.T[::-1]):
            reached = np.flatnonzero(turned[1])
            if reached.size:
                turned[0, reached[0] : reached[-1] + 1] = True
        mask[:, :, z] = ndimage.binary_fill_holes(closed)[1:-1, 1:-1]
    return mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def blobs(shape: tuple[int, int, int], seed: int, smoothing: float) -> np.ndarray:
    """Noise that is smooth enough to have pieces, holes, and parts that touch the border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, (smoothing, smoothing, 0.5)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.5, 1.5, 4])
@pytest.mark.parametrize("shape", [(40, 33, 9), (17, 64, 1), (5, 6, 20), (1, 30, 3), (24, 24, 8)])
def test_the_mask_is_that_of_the_plain_way(shape: tuple[int, int, int], smoothing: float) -> None:
    for seed in range(4):
        data = blobs(shape, seed, smoothing)
        for image in (data, np.maximum(data, 0), np.asfortranarray(data)):
            assert np.array_equal(head_mask(image), plain_mask(image))


def test_the_masks_of_real_heads_are_nearly_those_of_the_plain_way(realdata: Path) -> None:
    for site in ("tcga_cs", "tcga_fg", "lju3t", "brats2013"):
        data = load_volume(min((realdata / site).glob("*/anat/*_FLAIR.nii.gz")), "").data
        assert dice(head_mask(data), plain_mask(data)) > 0.985


@pytest.mark.parametrize("shape", [(128, 128, 3), (151, 140, 2), (130, 173, 4)])
def test_a_large_head_has_a_smooth_outline_at_the_right_place(shape: tuple[int, int, int]) -> None:
    x, y, _ = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    radius = np.hypot(x / (0.4 * shape[0]), y / (0.43 * shape[1]))
    data = (100.0 * (radius < 1) * (radius > 0.4)).astype(np.float32)
    mask = head_mask(data)
    assert dice(mask, plain_mask(data)) > 0.99
    for image in (mask, mask.transpose(1, 0, 2)):
        first = image[:, :, 0].argmax(axis=1)[image[:, :, 0].any(axis=1)]
        flanks = np.abs(np.diff(first, 2))[15:-15]
        assert flanks.max() <= 2  # no stairs of boxes


@pytest.mark.parametrize("shape", [(140, 129, 3), (129, 160, 2)])
def test_a_large_head_that_the_border_cuts_reaches_the_border(shape: tuple[int, int, int]) -> None:
    data = np.full(shape, 100, np.float32)
    data[:, :40] = 0
    data[30:60, 60:90] = 0  # a hole
    mask = head_mask(data)
    assert mask[:, 41:].all()
    assert not mask[:, :39].any()


def test_large_noise_is_dealt_with_like_any_other() -> None:
    for seed in range(3):
        data = blobs((141, 132, 4), seed, 12)
        mask = head_mask(data)
        assert dice(mask, plain_mask(data)) > 0.97
        assert np.array_equal(mask, head_mask(data * np.float32(4)))


@pytest.mark.parametrize("value", [0, 100])
def test_a_volume_of_one_value_has_no_head(value: float) -> None:
    assert not head_mask(np.full((9, 8, 4), value, np.float32)).any()


def test_values_up_to_the_largest_that_are_read() -> None:
    data = head().astype(np.float32)
    scaled = data * np.float32(2.0**25)
    assert np.array_equal(head_mask(scaled), head_mask(data))


@given(seed=st.integers(0, 10**6), size=st.integers(1, 20000), q=st.floats(0, 100), zeros=st.floats(0, 1))
def test_percentiles_are_those_of_numpy(seed: int, size: int, q: float, zeros: float) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(100, 20, size).astype(np.float32) * (random.random(size) >= zeros)
    values = values.astype(np.float32)
    assert percentile(values, q) == pytest.approx(np.percentile(values.astype(np.float64), q), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("order", ["ascending", "descending", "periodic"])
def test_percentiles_where_the_sample_is_no_likeness(order: str) -> None:
    values = np.arange(100_000, dtype=np.float32)
    if order == "periodic":
        values = np.where(np.arange(100_000) % (100_000 // 4096) == 0, 1e6, values).astype(np.float32)
    elif order == "descending":
        values = values[::-1].copy()
    for q in (0, 0.5, 50, 99.5, 100):
        assert percentile(values, q) == np.percentile(values.astype(np.float64), q)


@given(seed=st.integers(0, 10**6), fraction=st.floats(0.1, 0.9), within_planes=st.booleans())
def test_pieces_are_those_of_scipy(seed: int, fraction: float, within_planes: bool) -> None:
    random = np.random.default_rng(seed)
    planes, rows, columns = random.integers(1, 9, 3)
    mask = random.random((planes, rows, columns)) < fraction
    stack = np.zeros((planes, rows + 1, columns + 1), bool)
    stack[:, :-1, :-1] = mask
    runs = Runs.of(stack)
    faces = ndimage.generate_binary_structure(3, 1)
    if within_planes:
        faces[0] = faces[2] = False
    expected, count = ndimage.label(stack, faces)
    row, plane = columns + 1, (rows + 1) * (columns + 1)
    number, labels = runs.pieces(row) if within_planes else runs.pieces(row, plane)
    assert number == count
    for piece in range(number):
        voxels = runs.voxels(labels == piece)
        assert np.array_equal(voxels, np.flatnonzero(expected == expected.ravel()[voxels[0]]))
