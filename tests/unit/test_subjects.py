"""Subjects and contrasts in BIDS-like folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.data.subjects import contrast_of, find_subjects
from pflsynth.errors import DataError

CONTRASTS = ("T1w", "T1ce", "T2w", "FLAIR")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-01_T1w.nii.gz", "T1w"),
        ("sub-01_ses-2_acq-mprage_run-1_T1w.nii", "T1w"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "T1ce"),
        ("sub-01_T1ce.nii.gz", "T1ce"),
        ("sub-01_PDw.nii.gz", "PDw"),
        ("sub-01_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_ce-gadolinium_FLAIR.nii.gz", None),
        ("sub-01_T2star.nii.gz", None),
        ("sub-01_T1w.json", None),
        ("sub-01_T1w_mask.nii.gz", None),
    ],
)
def test_the_contrast_is_read_from_the_bids_name(name: str, contrast: str | None) -> None:
    assert contrast_of(Path("anat") / name) == contrast


def test_all_layouts_are_found_and_sorted(tmp_path: Path) -> None:
    files = [
        touch(tmp_path / "sub-02/anat/sub-02_T1w.nii.gz"),
        touch(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii"),
        touch(tmp_path / "sub-01/ses-a/sub-01_ses-a_ce-gd_T1w.nii.gz"),
        touch(tmp_path / "sub-01/sub-01_T2w.nii.gz"),
    ]
    touch(tmp_path / "sub-01/anat/sub-01_PDw.nii.gz")  # not asked for
    touch(tmp_path / "sub-01/anat/sub-02_FLAIR.nii.gz")  # another subject's name
    touch(tmp_path / "sub-01/anat/._sub-01_FLAIR.nii.gz")  # what macOS leaves
    touch(tmp_path / "derivatives/sub-03/anat/sub-03_T1w.nii.gz")
    (tmp_path / "sub-03").mkdir()
    subjects = find_subjects(tmp_path, CONTRASTS, "here")
    assert [subject.name for subject in subjects] == ["sub-01", "sub-02", "sub-03"]
    assert subjects[0].volumes == {"T1w": files[1], "T1ce": files[2], "T2w": files[3]}
    assert subjects[1].volumes == {"T1w": files[0]}
    assert subjects[2].volumes == {}


def test_two_candidates_of_a_contrast_are_both_listed_for_all_subjects(tmp_path: Path) -> None:
    for name in ("sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz", "sub-01_T2w.nii", "sub-01_T2w.nii.gz"):
        touch(tmp_path / "sub-01/anat" / name)
    for session in ("a", "b"):
        touch(tmp_path / f"sub-02/ses-{session}/anat/sub-02_ses-{session}_T1w.nii.gz")
    with pytest.raises(DataError) as caught:
        find_subjects(tmp_path, CONTRASTS, "here")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "subject sub-01, contrast T1w: 2 files fit" in lines[0]
    assert "sub-01_run-1_T1w.nii.gz and anat/sub-01_run-2_T1w.nii.gz; keep the one" in lines[0]
    assert "sub-01_T2w.nii and anat/sub-01_T2w.nii.gz" in lines[1]
    assert "site here, subject sub-02, contrast T1w" in lines[2]


def test_no_folder_and_no_subjects_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site here: there is no folder .*absent; set sites\.here\.data"):
        find_subjects(tmp_path / "absent", CONTRASTS, "here")
    touch(tmp_path / "01_T1w.nii.gz")
    with pytest.raises(DataError, match="has no subjects; looked for folders sub-<name>"):
        find_subjects(tmp_path, CONTRASTS, "here")
