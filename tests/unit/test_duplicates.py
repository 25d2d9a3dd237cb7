"""Images that lie in a site twice are found, and images that are only alike are not."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pflsynth.data.names import contrast_of
from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import FloatArray, Volume, load_volume
from pflsynth.quality.duplicates import NEARLY_EQUAL, Signature, Twin, find_twins, signature, twin_findings
from pflsynth.quality.signature import box_average

SHAPE = (40, 48, 16)


def brain(seed: int) -> FloatArray:
    """An ellipsoid with smooth random structures, another one for each seed."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    structure = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), (3, 3, 1))
    inside = x**2 + y**2 + 0.6 * z**2 < 0.8
    return np.where(inside, 400 + 100 * structure / structure.std(), 0).astype(np.float32)


def sign(data: np.ndarray) -> Signature:
    image = Volume(np.ascontiguousarray(data, dtype=np.float32), np.eye(4), (1.0, 1.0, 1.0), Path("image.nii.gz"))
    return signature(image, head_mask(image.data))


def test_box_averages_by_hand() -> None:
    data = np.zeros((5, 4, 2), np.float32)
    data[1:4, :2] = np.array([3, 6, 9])[:, None, None]
    mask = data > 0  # 3 x 2 x 2 voxels
    assert box_average(data, mask, (1, 1, 1)) == pytest.approx(np.full((1, 1, 1), 6))
    assert box_average(data, mask, (2, 1, 1))[:, 0, 0] == pytest.approx([(3 + 0.5 * 6) / 1.5, (9 + 0.5 * 6) / 1.5])
    assert box_average(data, mask, (6, 1, 1))[:, 0, 0] == pytest.approx([3, 3, 6, 6, 9, 9])


@pytest.mark.parametrize(
    "altered",
    [
        lambda data: np.round(data * 255 / data.max()),
        lambda data: (3.7 * data + 120).astype(np.int16),
        lambda data: np.pad(data, 1),
        lambda data: data[1:, :-1],
        lambda data: data + np.random.default_rng(9).normal(0, 4, SHAPE) * (data > 0),
    ],
    ids=["8 bits", "other units", "padded", "cropped", "noisy"],
)
def test_an_altered_copy_is_a_near_twin_and_no_one_else_is(altered: object) -> None:
    assert callable(altered)
    signatures = {(f"sub-{number:02d}", "T1w"): sign(brain(number)) for number in range(1, 9)}
    assert find_twins(signatures) == []
    signatures["sub-20", "T2w"] = sign(altered(brain(3)))
    (twin,) = find_twins(signatures)
    assert (twin.one, twin.other, twin.identical) == (("sub-03", "T1w"), ("sub-20", "T2w"), False)
    assert NEARLY_EQUAL <= twin.similarity <= 1


def test_identical_images_are_told_once_each_as_twins_of_the_first() -> None:
    copy = sign(brain(1))
    signatures = {(f"sub-{number:02d}", "T1w"): copy for number in (3, 1, 2)}
    signatures["sub-04", "T1w"] = sign(brain(1)[:, :, ::-1])
    assert find_twins(signatures) == [
        Twin(("sub-01", "T1w"), ("sub-02", "T1w"), identical=True, similarity=1.0),
        Twin(("sub-01", "T1w"), ("sub-03", "T1w"), identical=True, similarity=1.0),
    ]


def test_the_same_values_in_another_shape_are_not_identical() -> None:
    assert sign(brain(1)).sha256 == sign(brain(1)).sha256
    assert sign(brain(1)).sha256 != sign(brain(1).reshape(SHAPE[0], SHAPE[1] // 2, -1)).sha256


def test_a_head_of_one_value_is_nobodys_twin() -> None:
    box = np.pad(np.full((20, 20, 14), 5.0), 4)
    one, other = (
        signature(Volume(data, np.eye(4), (1.0, 1.0, 1.0), Path("box.nii.gz")), data > 0)
        for data in (box.astype(np.float32), 2 * box.astype(np.float32))
    )
    assert not one.vector.any()
    assert find_twins({("sub-01", "T1w"): one, ("sub-02", "T1w"): other}) == []


def mixed(similarity: float) -> dict[tuple[str, str], Signature]:
    """Two contrasts of sub-01_ses-1 and one of each of two other sessions, all of the given similarity."""
    vectors = np.linalg.cholesky(np.full((4, 4), similarity) + (1 - similarity) * np.eye(4)).astype(np.float32)
    keys = [("sub-01_ses-1", "T1w"), ("sub-01_ses-1", "T1ce"), ("sub-01_ses-2", "T1w"), ("sub-02", "T1w")]
    return {key: Signature(str(i), vectors[i]) for i, key in enumerate(keys)}


PERSONS = {"sub-01_ses-1": "sub-01", "sub-01_ses-2": "sub-01", "sub-02": "sub-02"}


def test_contrasts_and_sessions_of_one_person_may_be_more_alike() -> None:
    findings = twin_findings(find_twins(mixed(0.98)), PERSONS)
    assert [finding.subject for finding in findings] == ["sub-02", "sub-02", "sub-02"]
    assert {finding.level for finding in findings} == {"suspicious"}
    assert len(twin_findings(find_twins(mixed(0.998)), PERSONS)) == 6
    assert twin_findings(find_twins(mixed(0.92)), PERSONS) == []


@pytest.mark.parametrize(
    ("one", "other", "level", "advice"),
    [
        (("sub-01_ses-1", "T1w"), ("sub-02", "T1w"), "wrong", "stands in two splits"),
        (("sub-01_ses-1", "T1w"), ("sub-01_ses-1", "T2w"), "wrong", "put in the right file"),
        (("sub-01_ses-1", "T1w"), ("sub-01_ses-2", "T1w"), "suspicious", "exported twice"),
    ],
)
def test_what_identical_images_mean(one: tuple[str, str], other: tuple[str, str], level: str, advice: str) -> None:
    (finding,) = twin_findings([Twin(one, other, identical=True, similarity=1.0)], PERSONS)
    assert (finding.level, finding.check, finding.subject) == (level, "duplicate", other[0])
    assert f"subject {one[0]}, contrast {one[1]}, and subject {other[0]}, contrast {other[1]}" in finding.text
    assert "have the same value in every voxel" in finding.text
    assert advice in finding.text


@pytest.mark.slow
@pytest.mark.realdata
def test_real_images_are_nobodys_twin_until_one_is_copied(realdata: Path) -> None:
    signatures = {}
    for path in sorted(realdata.glob("brats*/sub-*/anat/*.nii.gz")):
        image = load_volume(path, "real")
        mask = head_mask(image.data)
        key = (f"{path.parts[-4]}/{path.parts[-3]}", str(contrast_of(path)))
        signatures[key] = signature(image, mask)
        if key == ("brats4/sub-02", "T2w"):
            altered = replace(image, data=np.pad(np.round(image.data * 0.11) + 7, 1, constant_values=7))
    assert find_twins(signatures) == []
    pairs = combinations(signatures, 2)
    closest = max(
        float(signatures[one].vector @ signatures[other].vector) for one, other in pairs if one[0] != other[0]
    )
    signatures["brats4/sub-99", "T1w"] = signature(altered, head_mask(altered.data))
    (twin,) = find_twins(signatures)
    assert (twin.one, twin.other) == (("brats4/sub-02", "T2w"), ("brats4/sub-99", "T1w"))
    assert twin.similarity - closest > 0.08
