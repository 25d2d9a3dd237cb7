"""What is measured of a volume's intensities and of a subject's geometry, and which of it is called suspicious."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.names import contrast_of
from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import FloatArray, Volume, load_volume
from pflsynth.quality.findings import Finding
from pflsynth.quality.geometry import geometry_findings
from pflsynth.quality.intensity import intensity_findings, measure_intensity

SHAPE = (72, 88, 24)
WHERE = "site here, subject sub-01"


def volume(data: np.ndarray, affine: np.ndarray | None = None, name: str = "sub-01_T1w.nii.gz") -> Volume:
    affine = np.diag([2.0, 2.0, 4.0, 1.0]) if affine is None else affine
    size = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(data.astype(np.float32), affine, (float(size[0]), float(size[1]), float(size[2])), Path(name))


def coordinates(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))


def head(noise: float = 0.0, seed: int = 0) -> FloatArray:
    """An ellipsoid of about 100 with fine texture and a core of about 200; Rician noise of ``noise``, or no air."""
    x, y, z = coordinates()
    radius = x**2 + y**2 + 0.6 * z**2
    random = np.random.default_rng(seed)
    data = np.where(radius < 0.2, 200.0, 100.0) + random.normal(0, 3, SHAPE)
    data = np.where(radius < 0.64, data, 0.0)
    if noise:
        data = np.hypot(data + random.normal(0, noise, SHAPE), random.normal(0, noise, SHAPE))
    return data.astype(np.float32)


def found(data: np.ndarray) -> list[Finding]:
    image = volume(data)
    return intensity_findings(measure_intensity(image, head_mask(image.data)), image, WHERE, "sub-01", "T1w")


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_a_clean_head_is_silent(noise: float) -> None:
    assert found(head(noise)) == []
    assert geometry_findings({"T1w": volume(head(noise)), "T2w": volume(2 * head(noise))}, WHERE, "sub-01") == []


def grey_background(data: FloatArray) -> FloatArray:
    """Background brighter than the fluid in the middle."""
    middle = np.square(coordinates()).sum(axis=0) < 0.1
    return np.where(middle, 0, np.where(data > 0, data, 35))


def blank_slice(data: FloatArray) -> FloatArray:
    data[:, :, 11] = 0
    return data


def repeated_slice(data: FloatArray) -> FloatArray:
    data[:, :, 12] = data[:, :, 11]
    return data


def dim_slice(data: FloatArray) -> FloatArray:
    data[:, :, 13] *= 0.6
    return data


@pytest.mark.parametrize(
    ("plant", "noise", "check", "says"),
    [
        (lambda data: np.minimum(data, 195), 0, "clipping", "of the head has the highest value 195"),
        (grey_background, 0, "background", "above the darkest values"),
        (lambda data: data + 60, 4, "background", "away from 0"),
        (lambda data: data - 60, 4, "background", "-2"),
        (blank_slice, 0, "constant slices", "1 slice (11, counted from 0 at the bottom)"),
        (repeated_slice, 0, "constant slices", "1 slice (12, counted from 0 at the bottom)"),
        (dim_slice, 0, "slice gaps", "1 slice (13, counted from 0 at the bottom) brighter or darker"),
        (lambda data: data * np.exp(1.2 * coordinates()[1]), 0, "bias", "over the head"),
        (lambda data: data, 17, "noise", "signal over noise is"),
    ],
)
def test_a_planted_fault_is_the_one_finding(
    plant: Callable[[FloatArray], FloatArray], noise: float, check: str, says: str
) -> None:
    (finding,) = found(plant(head(noise)))
    assert (finding.level, finding.check, finding.subject, finding.contrasts) == (
        "suspicious",
        check,
        "sub-01",
        ("T1w",),
    )
    assert finding.text.startswith("site here, subject sub-01, contrast T1w (sub-01_T1w.nii.gz): ")
    assert says in finding.text


def test_measures_by_hand() -> None:
    data = np.zeros((4, 5, 3))
    data[1:3, 1:4] = 10
    data[1, 1] = 4
    data[2, 2:4, :2] = 20
    mask = data > 0
    measures = measure_intensity(volume(data), mask)
    assert measures.clipped == 0  # 4 voxels of 20, 11 of 10: nothing piles up
    assert measures.background == measures.offset == 0
    assert (measures.bias, measures.snr) == (None, None)
    assert measures.constant_slices == (1,)  # equal to slice 0; slice 2 differs
    assert measures.largest_jump == 0
    data[2, 2:4, 1] = 30
    assert measure_intensity(volume(data), mask).jumps == ()  # the slice's median stays 10
    data[1:3, 1:4, 1] = 15
    measures = measure_intensity(volume(data), mask)
    assert measures.largest_jump == pytest.approx(0.5)  # 15 between medians of 10, where the head's median is 10
    assert measures.jumps == (1,)


@pytest.mark.parametrize("part", [np.s_[:, :, 12:13], np.s_[20:23, 30:33, 10:12]])
def test_one_slice_and_tiny_volumes_are_measured(part: tuple[slice, ...]) -> None:
    image = volume(head()[part])
    measures = measure_intensity(image, head_mask(image.data))
    assert intensity_findings(measures, image, WHERE, "sub-01", "T1w") == []
    assert geometry_findings({"T1w": image}, WHERE, "sub-01") == []


def test_clipping_is_a_pile_of_values_not_few_values() -> None:
    levels = np.tile(np.arange(1.0, 11.0), 100).reshape(10, 10, 10)
    mask = np.ones(levels.shape, bool)
    assert measure_intensity(volume(levels), mask).clipped == 0
    assert measure_intensity(volume(np.minimum(levels, 5)), mask).clipped == pytest.approx(0.6)
    assert measure_intensity(volume(np.minimum(levels, 5)), mask).background is None


def test_noise_and_background_are_what_was_put_in() -> None:
    image = volume(head(noise=5.0))
    measures = measure_intensity(image, head_mask(image.data))
    assert measures.snr == pytest.approx(100 / 5, rel=0.1)  # median of the head: about 100
    assert measures.offset == pytest.approx(5 * 1.1774 / 210, rel=0.1)
    assert measure_intensity(volume(head()), head_mask(head())).snr is None
    shifted = volume(head(noise=5.0) + 1000)
    again = measure_intensity(shifted, head_mask(shifted.data))
    assert again.snr == pytest.approx(measures.snr, rel=0.01)
    assert again.background == pytest.approx(measures.background, abs=0.001)


def test_bias_grows_with_the_field() -> None:
    x = coordinates()[0]
    fields = [np.exp(strength * x) for strength in (0.0, 0.3, 0.6)]
    measured = []
    for field in fields:
        image = volume(head() * field)
        measured.append(measure_intensity(image, head_mask(image.data)).bias)
    inside = head() > 0
    true = [float(field[inside].std() / field[inside].mean()) for field in fields]
    assert measured == pytest.approx(true, abs=0.03)


def rotated(degrees: float, size: tuple[float, float, float] = (2.0, 2.0, 4.0)) -> np.ndarray:
    """Turned about the left-right axis."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= size
    return affine


SHEARED = np.diag([2.0, 2.0, 4.0, 1.0])
SHEARED[0, 1] = 0.2


@pytest.mark.parametrize(
    ("affine", "check", "says"),
    [
        (rotated(40), "orientation", "its front-back axis is 40 degrees oblique"),
        (SHEARED, "orientation", "6 degrees off right angles"),
        (np.diag([5.0, 1.0, 1.0, 1.0]), "orientation", "its slices are 5 mm thick left-right"),
        (np.diag([1.0, 1.0, 9.0, 1.0]), "spacing", "1 x 1 x 9 mm"),
        (np.diag([0.1, 0.1, 0.1, 1.0]), "spacing", "0.1 x 0.1 x 0.1 mm"),
        (np.diag([0.4, 0.4, 6.0, 1.0]), "spacing", "0.4 x 0.4 x 6 mm"),
    ],
)
def test_odd_geometry_is_found_once_for_all_contrasts(affine: np.ndarray, check: str, says: str) -> None:
    volumes = {"T1w": volume(head(), affine), "T2w": volume(head(seed=1), affine, "other.nii.gz")}
    (finding,) = geometry_findings(volumes, WHERE, "sub-01")
    assert (finding.check, finding.contrasts) == (check, ("T1w", "T2w"))
    assert finding.text.startswith("site here, subject sub-01, T1w (sub-01_T1w.nii.gz), T2w (other.nii.gz): ")
    assert says in finding.text


def test_a_slight_tilt_is_usual() -> None:
    assert geometry_findings({"T1w": volume(head(), rotated(15))}, WHERE, "sub-01") == []


@pytest.mark.parametrize("rim", [0, 3])
def test_a_cut_head_is_found_with_its_side(rim: int) -> None:
    cut = np.pad(head()[:, :-25], ((0, 0), (0, rim), (0, 0)))
    (finding,) = geometry_findings({"T1w": volume(cut), "T2w": volume(np.pad(head(), 3))}, WHERE, "sub-01")
    assert (finding.check, finding.contrasts) == ("field of view", ("T1w",))
    assert "the head ends at the front in a plane over " in finding.text


def test_fields_of_view_that_differ_much_are_found() -> None:
    aside = np.diag([2.0, 2.0, 4.0, 1.0])
    aside[2, 3] = 48
    (one, other) = geometry_findings({"T1w": volume(head()), "T2w": volume(head(), aside)}, WHERE, "sub-01")
    assert (one.check, one.contrasts, other.contrasts) == ("field of view", ("T1w", "T2w"), ("T2w", "T1w"))
    assert "T2w (sub-01_T1w.nii.gz) covers 5" in one.text


CUT = {("tcga_cs", subject) for subject in ("sub-05", "sub-06")} | {
    ("tcga_fg", subject) for subject in ("sub-01", "sub-06", "sub-08", "sub-09")
}
"""Heads that the scan's field of view cut, seen on the images: tcga_cs at the front, tcga_fg at the back."""


@pytest.mark.slow
@pytest.mark.realdata
def test_on_real_data_only_what_is_there_is_found(realdata: Path) -> None:
    said = set()
    for folder in sorted(realdata.glob("*/sub-*")):
        place = (folder.parent.name, folder.name)
        volumes = {str(contrast_of(path)): load_volume(path, "real") for path in sorted(folder.glob("anat/*.nii.gz"))}
        findings = geometry_findings(volumes, WHERE, folder.name)
        for contrast, image in volumes.items():
            measures = measure_intensity(image, head_mask(image.data))
            findings += intensity_findings(measures, image, WHERE, folder.name, contrast)
        said |= {(*place, finding.check) for finding in findings}
    assert said == {(*place, "field of view") for place in CUT} | {("tcga_fg", "sub-06", "bias")}
