"""Properties of scaling, grids and splits over many inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pflsynth.config import Task
from pflsynth.config_sections import SplitConfig
from pflsynth.data.grid import SliceGrid, resampling_matrix
from pflsynth.data.scaling import Scale
from pflsynth.data.split import split_subjects

VALUES = st.floats(-1e4, 1e4, width=32)
SIDES = st.integers(1, 24)


@given(low=VALUES, width=st.floats(0.1, 1e4), fractions=arrays.arrays(np.float64, 20, elements=st.floats(0, 1)))
def test_inverting_the_scale_gives_the_values_back(low: float, width: float, fractions: np.ndarray) -> None:
    scale = Scale.linear(low, low + width)
    values = low + fractions * width
    tolerance = 2e-7 * (abs(low) + width)
    assert np.abs(scale.invert(scale.apply(values)) - values).max() <= tolerance


@given(low=VALUES, width=st.floats(0.1, 1e4), values=arrays.arrays(np.float32, 20, elements=VALUES))
def test_scaled_values_are_in_range_and_in_order(low: float, width: float, values: np.ndarray) -> None:
    scaled = Scale.linear(low, low + width).apply(np.sort(values))
    assert scaled.min() >= -1
    assert scaled.max() <= 1
    assert (np.diff(scaled) >= 0).all()


@given(
    shape=st.tuples(SIDES, SIDES, st.integers(1, 4)),
    extra=st.integers(0, 9),
    background=st.floats(-1, 1, width=32),
    seed=st.integers(0, 99),
)
def test_native_spacing_there_and_back_changes_no_bit(
    shape: tuple[int, int, int], extra: int, background: float, seed: int
) -> None:
    data = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    grid = SliceGrid(shape, (0.7, 1.3), max(shape[:2]) + extra, None)
    slices = grid.to_slices(data, background)
    assert np.array_equal(grid.to_volume(slices, background), data)
    assert (slices == np.float32(background)).sum() >= slices.size - data.size


@given(
    shape=st.tuples(SIDES, SIDES, st.integers(1, 3)),
    spacing=st.tuples(st.floats(0.4, 4), st.floats(0.4, 4)),
    size=st.integers(4, 40),
    spacing_mm=st.floats(0.4, 6),
)
def test_a_constant_volume_stays_constant_and_nothing_leaves_its_range(
    shape: tuple[int, int, int], spacing: tuple[float, float], size: int, spacing_mm: float
) -> None:
    grid = SliceGrid(shape, spacing, size, spacing_mm)
    flat = grid.to_slices(np.full(shape, 0.25, np.float32), 0.25)
    assert np.allclose(flat, 0.25, atol=1e-6)
    assert np.allclose(grid.to_volume(flat, 0.25), 0.25, atol=1e-6)
    ones = grid.to_slices(np.ones(shape, np.float32), -1)
    assert ones.min() >= -1 - 1e-6
    assert ones.max() <= 1 + 1e-6


@given(n_in=SIDES, n_out=SIDES, ratio=st.floats(0.2, 5), offset=st.floats(-10, 10))
def test_rows_of_the_resampling_matrix_are_part_of_a_mean(n_in: int, n_out: int, ratio: float, offset: float) -> None:
    matrix = resampling_matrix(n_in, n_out, ratio, offset).toarray()
    assert matrix.shape == (n_out, n_in)
    assert (matrix >= 0).all()
    assert (matrix.sum(axis=1) <= 1 + 1e-6).all()


@given(
    shape=st.tuples(SIDES, SIDES, st.integers(1, 3)),
    size=st.integers(4, 24),
    spacing_mm=st.floats(0.5, 3),
    seed=st.integers(0, 99),
)
def test_a_head_that_fits_is_never_cut(shape: tuple[int, int, int], size: int, spacing_mm: float, seed: int) -> None:
    mask = np.zeros(shape, bool)
    mask[tuple(np.random.default_rng(seed).integers(0, shape))] = True
    grid = SliceGrid(shape, (1, 1), size, spacing_mm)
    if grid.head_fits(mask):
        assert grid.to_slices(mask.astype(np.float32), 0).sum() > 0


@given(
    names=st.sets(st.from_regex(r"sub-[a-z0-9]{1,6}", fullmatch=True), max_size=40),
    test=st.floats(0, 0.45),
    validation=st.floats(0, 0.45),
    seed=st.integers(0, 5),
)
def test_every_subject_is_in_exactly_one_split(names: set[str], test: float, validation: float, seed: int) -> None:
    config = SplitConfig(test=test, validation=validation, seed=seed)
    splits = split_subjects({name: {Task.parse("T1w->T2w")} for name in names}, config, "here")
    assert set(splits) == names
    counts = {split: list(splits.values()).count(split) for split in ("train", "validation", "test")}
    assert sum(counts.values()) == len(names)
    if len(names) >= 4:
        assert (counts["test"] > 0) == (test > 0)
        assert (counts["validation"] > 0) == (validation > 0)
    if 1 <= len(names) < 4:
        assert counts["train"] >= 1
