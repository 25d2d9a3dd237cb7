"""Contrasts of a subject come onto one grid: left alone, moved or refused, and each says which."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pflsynth.config_sections import RegistrationConfig
from pflsynth.data import align
from pflsynth.data.align import align_volumes, reference_contrast
from pflsynth.data.alignment import Alignment
from pflsynth.data.volumes import BoolArray, Volume
from pflsynth.errors import DataError

SHAPE = (60, 70, 24)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
RIGID = RegistrationConfig()


def volume(contrast: str, shift: tuple[float, float, float] = (0, 0, 0)) -> Volume:
    """A head of random tissue, dark where the other contrast is bright; its content is moved by ``shift`` voxels."""
    axes = np.meshgrid(*(np.linspace(-1.25, 1.25, size) for size in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), (3, 3, 1.5))
    tissue = ndimage.zoom(np.where(field > 0, 1.0, 0.4), 1)
    data = inside * (300 * tissue if contrast == "T1w" else 500 * (1.5 - tissue))
    data += inside * np.random.default_rng(len(contrast)).normal(0, 8, SHAPE)
    moved = ndimage.shift(ndimage.gaussian_filter(data, 0.7), shift, order=1)
    return Volume(moved.clip(0).astype(np.float32), AFFINE, (1.5, 1.5, 3.0), Path(f"sub-01_{contrast}.nii.gz"))


def test_the_reference_is_the_wanted_one_or_t1w_or_the_first() -> None:
    contrasts = {"T2w": None, "T1w": None, "FLAIR": None}
    assert reference_contrast(contrasts, RIGID) == "T1w"
    assert reference_contrast(contrasts, RegistrationConfig(reference="FLAIR")) == "FLAIR"
    assert reference_contrast(contrasts, RegistrationConfig(reference="PDw")) == "T1w"
    assert reference_contrast({"FLAIR": None, "T2w": None}, RIGID) == "FLAIR"


def test_what_lies_well_is_left_as_it_is() -> None:
    volumes = {"T1w": volume("T1w"), "T2w": volume("T2w")}
    aligned, placements = align_volumes(volumes, RIGID, "here")
    assert all(aligned[name] is volumes[name] for name in volumes)
    assert [own.step for own in placements.values()] == ["reference", "untouched"]
    assert placements["T2w"].reason.startswith("already aligned (NMI 1.")


def test_a_shifted_contrast_on_the_same_grid_is_mended() -> None:
    truth = volume("T2w")
    aligned, placements = align_volumes({"T1w": volume("T1w"), "T2w": volume("T2w", (3, -2, 0))}, RIGID, "here")
    placement = placements["T2w"]
    assert placement.step == "registered"
    assert "when moved by -4.5, +3.0, " in placement.reason
    assert placement.matrix is not None
    assert np.allclose(np.array(placement.matrix)[:3, 3], (4.5, -3, 0), atol=0.7)
    inside = truth.data > 0
    error = np.abs(aligned["T2w"].data - truth.data)[inside].mean()
    assert error < 0.5 * np.abs(volume("T2w", (3, -2, 0)).data - truth.data)[inside].mean()
    assert aligned["T2w"].grid.shape == SHAPE


def test_a_contrast_on_another_grid_is_registered_and_found_again_without_a_search() -> None:
    other = volume("T2w")
    turned = AFFINE.copy()
    angle = np.radians(12)
    turned[:2, :2] = 1.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned[:3, 3] = (15, -10, 9)
    other = replace(other, affine=turned, data=other.data[4:-4])
    volumes = {"T1w": volume("T1w"), "T2w": other}
    aligned, placements = align_volumes(volumes, RIGID, "here")
    assert (placements["T2w"].step, placements["T2w"].kind) == ("registered", "rigid")
    assert placements["T2w"].metric_after < placements["T2w"].metric_before  # type: ignore[operator]
    truth = volume("T2w").data[6:-6]
    assert np.abs(aligned["T2w"].data[6:-6] - truth)[truth > 0].mean() < 0.15 * truth[truth > 0].mean()
    again, same = align_volumes(volumes, RIGID, "here", placements)
    assert same == placements
    assert again["T2w"].data.tobytes() == aligned["T2w"].data.tobytes()


def test_other_grids_are_refused_if_registration_is_off() -> None:
    volumes = {"T1w": volume("T1w"), "T2w": replace(volume("T2w"), affine=AFFINE @ np.diag([1, 1, 1.01, 1]))}
    with pytest.raises(DataError, match=r"site a, subject b: its contrasts do not share one grid .* set it to rigid"):
        align_volumes(volumes, RegistrationConfig(transform="none"), "site a, subject b")


@pytest.mark.parametrize("transform", ["none", "rigid"])
def test_all_contrasts_come_to_the_wanted_voxel_size(transform: str) -> None:
    config = RegistrationConfig.model_validate({"transform": transform, "voxel_mm": [2, 2, 4]})
    aligned, _ = align_volumes({"T1w": volume("T1w"), "T2w": volume("T2w")}, config, "here")
    for own in aligned.values():
        assert own.spacing_mm == pytest.approx((2, 2, 4))
        assert own.data.shape == (45, 52, 18)


def test_without_simpleitk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    aligned, _ = align_volumes({"T1w": volume("T1w"), "T2w": volume("T2w")}, RIGID, "here")
    assert len(aligned) == 2
    with pytest.raises(DataError, match=r"pip install \"pflsynth\[imaging\]\""):
        align_volumes({"T1w": volume("T1w"), "T2w": volume("T2w", (3, 0, 0))}, RIGID, "here")


def test_a_registration_that_makes_it_worse_is_not_used_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = align.measure_alignment, []

    def worse_and_worse(fixed: Volume, moving: Volume, mask: BoolArray) -> Alignment:
        calls.append(moving)
        return replace(real(fixed, moving, mask), nmi=2 - 0.1 * len(calls))

    monkeypatch.setattr(align, "measure_alignment", worse_and_worse)
    volumes = {"T1w": volume("T1w"), "T2w": volume("T2w", (3, 0, 0))}
    aligned, placements = align_volumes(volumes, RIGID, "here")
    assert len(calls) == 3  # as it lies, registered, and shifted alone
    assert aligned["T2w"] is volumes["T2w"]
    assert (placements["T2w"].step, placements["T2w"].doubtful) == ("untouched", True)
    assert placements["T2w"].reason.endswith("no registration made it better: look at it")
