"""Misaligned contrasts are found, with sign and size, and well-aligned ones are not called so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pflsynth.data import alignment
from pflsynth.data.alignment import (
    SHIFT_GAIN,
    TURN_GAIN,
    Alignment,
    likely_misplaced,
    measure_alignment,
    normalised_mutual_information,
    overlap,
)
from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import BoolArray, Volume, load_volume
from tests.data_builders import head

SHAPE = (56, 64, 16)
SPACING = (1.0, 1.0, 3.0)


def volume(data: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Volume:
    return Volume(data.astype(np.float32), np.diag([*spacing, 1.0]), spacing, Path("x.nii"))


def brain(shape: Sequence[int] = SHAPE) -> tuple[np.ndarray, BoolArray]:
    """A textured ellipsoid of 100 to 200 or so, and its mask."""
    texture = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), (2, 2, 1))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    mask = x**2 + y**2 + 0.5 * z**2 < 0.7
    return np.where(mask, 150 + 20 * texture / texture.std(), 0.0), mask


def other_contrast(data: np.ndarray, noise: float = 3.0) -> np.ndarray:
    """The same head with bright and dark exchanged, and noise."""
    random = np.random.default_rng(6)
    return np.where(data > 0, 300 - data + random.normal(0, noise, data.shape), 0.0)


def verdict(aligned: bool) -> Alignment:
    return Alignment(1.1, (0.0, 0.0, 0.0), 1.1, 0.0, 0.0, evidence=True, aligned=aligned)


@pytest.mark.parametrize(
    ("joint", "expected"),
    [
        ([[2, 0], [0, 2]], 2.0),  # each tells the other
        ([[0, 7], [7, 0]], 2.0),  # also when dark and bright are exchanged
        ([[1, 1], [1, 1]], 1.0),  # neither tells anything
        ([[2, 1], [0, 1]], (0.8112781 + 1.0) / 1.5),  # entropies in bits: rows, columns, both
        ([[4, 0], [0, 0]], 1.0),  # both constant
    ],
)
def test_normalised_mutual_information_by_hand(joint: list[list[int]], expected: float) -> None:
    assert normalised_mutual_information(joint) == pytest.approx(expected, abs=1e-6)


def test_histogram_of_a_shift_counts_the_right_pairs() -> None:
    data = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=SHAPE), 1)
    pair = alignment._sample(volume(data), volume(np.roll(data, 2, 0)), np.ones(SHAPE, dtype=bool))
    assert pair is not None
    joint = pair.histogram((-2, 0, 0)).sum(axis=0)
    assert joint.sum() == 2 * len(pair.places)
    assert sum(np.trace(joint, offset) for offset in (-1, 0, 1)) == joint.sum()  # the bins' edges differ a little
    assert np.trace(joint) > 0.9 * joint.sum()
    assert np.trace(pair.histogram((2, 0, 0)).sum(axis=0)) < 0.5 * joint.sum()


@pytest.mark.parametrize(
    ("moved", "back_mm"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((2, 0, 0), (-2, 0, 0)),
        ((0, -3, 0), (0, 3, 0)),
        ((0, 0, 1), (0, 0, -3)),
        ((-1, 2, -1), (1, -2, 3)),
        ((4, 0, 0), (-4, 0, 0)),
    ],
)
def test_the_shift_that_aligns_is_found_with_sign_and_millimetres(
    moved: tuple[int, int, int], back_mm: tuple[float, float, float]
) -> None:
    data, mask = brain()
    fixed, moving = volume(data), volume(np.roll(other_contrast(data), moved, (0, 1, 2)))
    found = measure_alignment(fixed, moving, mask)
    assert found.best_shift_mm == pytest.approx(back_mm, abs=0.3)
    assert found.evidence
    assert found.aligned == (moved == (0, 0, 0))
    assert (found.gain > SHIFT_GAIN) == (moved != (0, 0, 0))
    assert found.gain == pytest.approx((found.best_nmi - found.nmi) / (found.nmi - 1))
    swapped = measure_alignment(moving, fixed, mask)
    assert swapped.best_shift_mm == pytest.approx([-shift for shift in found.best_shift_mm])
    assert swapped.gain == pytest.approx(found.gain)


def test_a_shift_between_voxels_is_estimated() -> None:
    data, mask = brain()
    moving = ndimage.shift(other_contrast(data), (0, 1.4, 0), order=1)
    assert measure_alignment(volume(data), volume(moving), mask).best_shift_mm[1] == pytest.approx(-1.4, abs=0.35)


def test_a_turn_is_found_where_no_shift_helps() -> None:
    data, mask = brain((96, 112, 16))
    turned = ndimage.rotate(other_contrast(data), 5, axes=(0, 1), reshape=False, order=1)
    found = measure_alignment(volume(data), volume(turned), mask & (turned > 0))
    assert found.gain <= SHIFT_GAIN
    assert found.turn_gain > TURN_GAIN
    assert not found.aligned
    assert measure_alignment(volume(data), volume(other_contrast(data)), mask).turn_gain == 0


def test_too_little_to_judge_is_aligned_without_evidence() -> None:
    data, mask = brain()
    random = np.random.default_rng(0)
    noise = [volume(random.normal(size=SHAPE)) for _ in range(2)]
    few = np.zeros_like(mask)
    few[20:24, 20:24] = True
    cases = [
        (volume(data), volume(np.where(mask, 7.0, 0.0)), mask),
        (volume(data), volume(np.roll(data, 2, 0)), few),
        (volume(data), volume(np.roll(data, 2, 0)), np.zeros_like(mask)),
        (*noise, mask),
    ]
    for fixed, moving, where in cases:
        found = measure_alignment(fixed, moving, where)
        assert (found.aligned, found.evidence) == (True, False)


@pytest.mark.parametrize("noise", [0.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize("shape", [(24, 28, 6), (48, 56, 12)])
def test_small_noisy_heads_raise_no_alarm(shape: tuple[int, int, int], noise: float) -> None:
    for seed in range(6):
        one, other = head(shape, 200, 2 * seed, noise), head(shape, 60, 2 * seed + 1, noise)
        assert measure_alignment(volume(one), volume(other), head_mask(one) & head_mask(other)).aligned


def test_large_volumes_are_thinned_out_and_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    data, mask = brain()
    fixed, moving = volume(data), volume(np.roll(other_contrast(data), 2, 1))
    monkeypatch.setattr(alignment, "_MOST_SAMPLES", 5000)
    pair = alignment._sample(fixed, moving, mask)
    assert pair is not None
    assert 2500 <= len(pair.places) <= 5000
    found = measure_alignment(fixed, moving, mask)
    assert found.best_shift_mm == pytest.approx((0, -2, 0), abs=0.3)
    assert not found.aligned


def test_other_shapes_are_refused() -> None:
    data, mask = brain()
    with pytest.raises(ValueError, match="shapes differ"):
        measure_alignment(volume(data), volume(data[:-1]), mask)


def test_overlap_is_the_share_of_the_larger_head() -> None:
    whole = np.zeros((4, 4, 4), dtype=bool)
    whole[1:3] = True
    cut = whole.copy()
    cut[:, :, 3] = False
    assert overlap(whole, whole) == 1
    assert overlap(whole, cut) == overlap(cut, whole) == 0.75
    assert overlap(whole, ~whole) == 0
    assert overlap(np.zeros_like(whole), np.zeros_like(whole)) == 0


@pytest.mark.parametrize(
    ("misaligned", "blamed"),
    [
        ([], {}),
        (["AB", "AC", "AD"], {"A": ("B", "C", "D")}),
        (["AB"], {"A": ("B",), "B": ("A",)}),
        (["BD", "CD"], {"D": ("B", "C")}),
        (["AB", "CD"], {"A": ("B",), "B": ("A",), "C": ("D",), "D": ("C",)}),
        (["AC", "AD", "BC", "BD", "CD"], {"C": ("A", "B", "D"), "D": ("A", "B", "C")}),
    ],
)
def test_the_contrast_in_most_misaligned_pairs_is_blamed(
    misaligned: list[str], blamed: dict[str, tuple[str, ...]]
) -> None:
    pairs = {(one, other): verdict(one + other not in misaligned) for one, other in itertools.combinations("ABCD", 2)}
    found = likely_misplaced(pairs)
    assert found == blamed
    assert list(found) == sorted(found)


def test_what_the_first_blame_does_not_explain_is_blamed_next() -> None:
    names = "ABCDEF"
    pairs = {
        (one, other): verdict(one + other not in ("AB", "AC", "EF")) for one, other in itertools.combinations(names, 2)
    }
    assert likely_misplaced(pairs) == {"A": ("B", "C"), "E": ("F",), "F": ("E",)}


def measured(folder: Path) -> tuple[dict[str, Volume], dict[str, BoolArray], dict[tuple[str, str], Alignment]]:
    """Volumes, head masks and every pair of a subject of the real data."""
    files = sorted((folder / "anat").glob("*.nii.gz"))
    volumes = {path.name.split("_")[-1].removesuffix(".nii.gz"): load_volume(path, folder.name) for path in files}
    masks = {contrast: head_mask(own.data) for contrast, own in volumes.items()}
    pairs = {
        (one, other): measure_alignment(volumes[one], volumes[other], masks[one] & masks[other])
        for one, other in itertools.combinations(volumes, 2)
    }
    return volumes, masks, pairs


@pytest.mark.realdata
@pytest.mark.slow
def test_the_two_misplaced_contrasts_of_real_data_are_found_and_no_other(realdata: Path) -> None:
    found = {}
    folders = [folder for site in sorted(realdata.glob("*/")) for folder in sorted(site.glob("sub-*"))[:4]]
    assert len({folder.parent for folder in folders}) == 8
    for folder in folders:
        _, _, pairs = measured(folder)
        assert all(pair.evidence for pair in pairs.values())
        if blamed := likely_misplaced(pairs):
            found[f"{folder.parent.name} {folder.name}"] = blamed
        if (folder.parent.name, folder.name) == ("brats4", "sub-01"):
            assert pairs["FLAIR", "T1w"].best_shift_mm[1] == pytest.approx(1.3, abs=0.5)
        if (folder.parent.name, folder.name) == ("brats4", "sub-02"):
            assert pairs["T1w", "T2w"].best_shift_mm[2] == pytest.approx(3, abs=0.7)
    assert found == {
        "brats4 sub-01": {"T1w": ("FLAIR", "T1ce", "T2w")},
        "brats4 sub-02": {"T1w": ("T2w",), "T2w": ("T1w",)},  # one pair does not tell which of the two moved
    }


@pytest.mark.realdata
@pytest.mark.slow
def test_displaced_real_contrasts_are_found(realdata: Path) -> None:
    for name in ("brats2013/sub-02", "tcga_ht/sub-03"):
        volumes, masks, _ = measured(realdata / name)
        for (one, fixed), (other, moving) in itertools.combinations(volumes.items(), 2):
            for moved in ((2, 0, 0), (0, -2, 0), (0, 0, 1)):
                displaced = replace(moving, data=np.roll(moving.data, moved, (0, 1, 2)))
                mask = masks[one] & np.roll(masks[other], moved, (0, 1, 2))
                found = measure_alignment(fixed, displaced, mask)
                back = [-step * size for step, size in zip(moved, fixed.spacing_mm, strict=True)]
                assert not found.aligned, (name, one, other, moved)
                assert found.best_shift_mm == pytest.approx(back, abs=0.7 * max(fixed.spacing_mm) / 3 + 0.7)
            turned = ndimage.rotate(moving.data, 5, axes=(0, 1), reshape=False, order=1)
            assert not measure_alignment(fixed, replace(moving, data=turned), masks[one] & head_mask(turned)).aligned
