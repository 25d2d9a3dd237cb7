"""Contrasts that were mixed up are suspected, and those in order are not."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.names import contrast_of
from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import FloatArray, Volume, load_volume
from pflsynth.quality.mixups import Key, contrast_features, mixup_findings

SHAPE = (60, 72, 12)
#: Brightness of scalp, grey matter, white matter and fluid.
TISSUES = {"T1w": (250, 110, 150, 40), "T2w": (120, 110, 80, 220), "FLAIR": (160, 130, 100, 30)}


def image(contrast: str, seed: int, gain: float = 1.0) -> Volume:
    """A head of four tissues with folds, whose sizes differ between seeds, and noise."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    x, y = x * random.uniform(0.95, 1.05), y * random.uniform(0.95, 1.05)
    radius = np.sqrt(x**2 + y**2 + 0.4 * z**2)
    folds = np.sin(random.integers(9, 13) * np.arctan2(x, y) + random.uniform(0, 6)) > 0.2
    scalp, grey, white, fluid = TISSUES[contrast]
    data = np.select(
        [radius > 0.92, radius > 0.82, (radius > 0.7) & folds, radius > 0.6, radius > random.uniform(0.18, 0.25)],
        [0.0, scalp, fluid, grey, white],
        fluid,
    )
    data = gain * np.hypot(data + random.normal(0, 5, SHAPE), random.normal(0, 5, SHAPE))
    return Volume(data.astype(np.float32), np.eye(4), (2.0, 2.0, 6.0), Path(f"{contrast}.nii.gz"))


def features(contrast: str, seed: int, gain: float = 1.0) -> FloatArray:
    volume = image(contrast, seed, gain)
    return contrast_features(volume, head_mask(volume.data))


@pytest.fixture(scope="module")
def site() -> dict[Key, FloatArray]:
    """Six subjects of three contrasts."""
    return {
        (f"sub-{subject:02d}", contrast): features(contrast, 10 * subject + place, gain=1 + subject)
        for subject in range(1, 7)
        for place, contrast in enumerate(TISSUES)
    }


def test_features_know_neither_gain_nor_offset_of_the_scanner() -> None:
    volume = image("T1w", 1)
    mask = head_mask(volume.data)
    other = Volume(volume.data * 4 + 64, volume.affine, volume.spacing_mm, volume.path)
    one = contrast_features(volume, mask)
    assert one.shape == (605,)
    assert one.dtype == np.float32
    assert contrast_features(other, mask) == pytest.approx(one, abs=2e-3)


def test_features_of_a_tiny_head_are_finite() -> None:
    data = np.zeros((6, 6, 2), np.float32)
    data[2:4, 2:4, 1] = 1
    tiny = Volume(data, np.eye(4), (1.0, 1.0, 1.0), Path("tiny.nii.gz"))
    assert np.isfinite(contrast_features(tiny, data > 0)).all()


def test_a_site_in_order_is_silent(site: dict[Key, FloatArray]) -> None:
    assert mixup_findings(site, "here") == []
    assert mixup_findings({}, "here") == []


@pytest.mark.parametrize("pair", list(combinations(sorted(TISSUES), 2)))
def test_swapped_contrasts_are_found(site: dict[Key, FloatArray], pair: tuple[str, str]) -> None:
    one, two = (("sub-03", contrast) for contrast in pair)
    (finding,) = mixup_findings({**site, one: site[two], two: site[one]}, "here")
    assert (finding.level, finding.check) == ("suspicious", "contrast mix-up")
    assert (finding.subject, finding.contrasts) == ("sub-03", pair)
    assert finding.text.startswith(f"site here, subject sub-03: {pair[0]} and {pair[1]} look swapped (their difference")


def test_two_swapped_subjects_are_both_found(site: dict[Key, FloatArray]) -> None:
    mixed = dict(site)
    for subject in ("sub-02", "sub-05"):
        mixed[subject, "T1w"], mixed[subject, "T2w"] = site[subject, "T2w"], site[subject, "T1w"]
    assert [finding.subject for finding in mixup_findings(mixed, "here")] == ["sub-02", "sub-05"]


def test_one_image_of_another_contrast_is_found(site: dict[Key, FloatArray]) -> None:
    mixed = {**site, ("sub-04", "T1w"): features("T2w", 77)}
    (finding,) = mixup_findings(mixed, "here")
    assert finding.subject == "sub-04"
    assert "T1w" in finding.contrasts
    assert "seen against the site's other subjects, " in finding.text
    assert "T1w looks like T2w (by " in finding.text


@pytest.mark.parametrize(("subjects", "told"), [(3, False), (4, True)])
def test_too_few_subjects_say_nothing(site: dict[Key, FloatArray], subjects: int, told: bool) -> None:
    few = {key: vector for key, vector in site.items() if key[0] <= f"sub-{subjects:02d}"}
    few["sub-02", "T1w"], few["sub-02", "FLAIR"] = few["sub-02", "FLAIR"], few["sub-02", "T1w"]
    assert bool(mixup_findings(few, "here")) == told


@pytest.mark.slow
@pytest.mark.realdata
def test_on_real_sites_swaps_are_found_and_nothing_else(realdata: Path) -> None:
    sites: dict[str, dict[Key, FloatArray]] = {"brats4": {}, "tcga_ht": {}}
    for name, images in sites.items():
        for path in sorted(realdata.glob(f"{name}/sub-*/anat/*.nii.gz")):
            volume = load_volume(path, "real")
            key = (path.parts[-3], str(contrast_of(path)))
            images[key] = contrast_features(volume, head_mask(volume.data))
        assert mixup_findings(images, name) == []
    images = sites["tcga_ht"]
    found = []
    for subject in sorted({subject for subject, _ in images}):
        one, two = (subject, "T1w"), (subject, "FLAIR")
        swapped = mixup_findings({**images, one: images[two], two: images[one]}, "tcga_ht")
        found.append(any(finding.subject == subject for finding in swapped))
    assert len(found) == 9
    assert np.mean(found) > 0.8
