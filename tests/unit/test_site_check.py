"""What ``check`` finds in a site's data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.quality.site import check_site, copies_between
from tests.data_builders import AFFINE, federation, head, image_path, tree, write_nifti, write_site


def test_a_good_site_has_only_good_findings_and_nothing_is_written(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 4)
    before = tree(tmp_path)
    calls: list[tuple[int, int]] = []
    check = check_site(federation(tmp_path), "here", progress=lambda *call: calls.append(call))
    assert [finding.level for finding in check.every_finding] == ["ok"]
    assert check.findings[-1].text == "site here, task T1w->T2w: 2 train, 1 validation, 1 test"
    assert [own.subject.name for own in check.subjects] == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert check.subjects[0].facts == "24 x 28 x 6 voxels of 1 x 1 x 3 mm; 4 slices"
    assert all(own.usable and own.images == () for own in check.subjects)
    assert sorted(check.splits.values()) == ["test", "train", "train", "validation"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert tree(tmp_path) == before


def test_workers_find_the_same(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 3)
    image_path(site, "sub-02", "T1w").write_text("no image")
    one, two = (check_site(federation(tmp_path, workers=workers), "here", pictures=True) for workers in (1, 2))
    assert one.every_finding == two.every_finding
    assert [own.images for own in one.subjects] == [own.images for own in two.subjects]


def test_everything_that_is_wrong_is_listed_and_the_good_are_kept(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 5)
    broken = head()
    broken[12, 14, 3] = np.nan
    write_nifti(image_path(site, "sub-01", "T1w"), broken)
    write_nifti(image_path(site, "sub-01", "T2w"), np.full((4, 4, 4), 7.0))
    image_path(site, "sub-02", "T1w").write_text("no image")
    write_nifti(image_path(site, "sub-03", "acq-tse_T1w"), head())  # a second candidate
    check = check_site(federation(tmp_path), "here")
    wrong = [finding for finding in check.every_finding if finding.level == "wrong"]
    assert [(finding.subject, finding.contrasts) for finding in wrong] == [
        ("sub-03", ()),
        ("sub-01", ("T1w",)),
        ("sub-01", ("T2w",)),
        ("sub-02", ("T1w",)),
    ]
    assert "1 voxels are NaN" in wrong[1].text
    assert "every voxel is 7" in wrong[2].text
    assert sorted(check.splits) == ["sub-04", "sub-05"]
    assert [own.subject.name for own in check.subjects if own.usable] == ["sub-04", "sub-05"]


def test_bad_sites_give_findings_not_errors(tmp_path: Path) -> None:
    config = federation(tmp_path, {"here": ["T1w->T2w", "T1w->PDw"]})
    (absent,) = check_site(config, "here").every_finding
    assert (absent.level, absent.check) == ("wrong", "files")
    assert "there is no folder" in absent.text
    write_site(tmp_path / "here", 2)
    (finding,) = check_site(config, "here").every_finding
    assert "task T1w->PDw: no subject has PDw (found: T1w, T2w)" in finding.text
    write_site(tmp_path / "here", {"sub-03": ("T1w", "PDw")}, first_seed=300)
    image_path(tmp_path / "here", "sub-03", "PDw").write_text("no image")
    assert any(
        finding.level == "wrong" and "task T1w->PDw: 0 train, 0 validation, 0 test: no training" in finding.text
        for finding in check_site(config, "here").every_finding
    )


def test_other_grids_are_wrong_only_if_registration_is_off(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 4)
    moved = AFFINE.copy()
    moved[0, 3] += 5
    write_nifti(image_path(site, "sub-02", "T2w"), head(seed=9), moved)
    check = check_site(federation(tmp_path), "here", pictures=True)
    assert all(finding.level != "wrong" for finding in check.every_finding)
    assert check.subjects[1].facts.endswith("; to be registered: T2w")
    assert len(check.subjects[1].images) == 2
    check = check_site(federation(tmp_path, registration={"transform": "none"}), "here")
    (wrong,) = [finding for finding in check.every_finding if finding.level == "wrong"]
    assert (wrong.check, wrong.subject) == ("grid", "sub-02")


def test_one_image_under_two_names_is_found_in_a_site_and_between_sites(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 4)
    shutil.copy(image_path(site, "sub-01", "T2w"), image_path(site, "sub-03", "T2w"))
    check = check_site(federation(tmp_path), "here")
    (wrong,) = [finding for finding in check.every_finding if finding.level == "wrong"]
    assert wrong.check == "duplicate"
    assert "sub-01" in wrong.text
    assert "sub-03" in wrong.text
    other = write_site(tmp_path / "there", 4, first_seed=500)
    shutil.copy(image_path(site, "sub-02", "T1w"), image_path(other, "sub-04", "T1w"))
    config = federation(tmp_path, {"here": ["T1w->T2w"], "there": ["T1w->T2w"]})
    data = nibabel.load(image_path(site, "sub-04", "T2w")).get_fdata()
    write_nifti(image_path(other, "sub-01", "T2w"), (data / 2).round(), dtype=np.uint8)
    same, near = copies_between([check_site(config, name) for name in config.site_names])
    assert "site there, subject sub-04, contrast T1w: is the same image as site here, subject sub-02" in same.text
    assert (same.level, near.level) == ("wrong", "suspicious")
    assert "site there, subject sub-01, contrast T2w: is nearly the same image (similarity " in near.text
    assert copies_between([check_site(config, "here")]) == []


def test_the_page_has_a_strip_for_every_subject(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    page = check_site(federation(tmp_path), "here", pictures=True).page()
    assert [strip.subject for strip in page.strips] == ["sub-01", "sub-02", "sub-03"]
    assert all([image.contrast for image in strip.images] == ["T1w", "T2w"] for strip in page.strips)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["brats4"])
def test_the_two_misaligned_pairs_are_named(realdata: Path, site: str) -> None:
    config = federation(realdata, {site: ["T1w->T2w", "FLAIR->T1ce"]}, image={"size": 256})
    check = check_site(config, site)
    found = [finding for finding in check.every_finding if finding.check == "alignment"]
    assert [(finding.subject, set(finding.contrasts)) for finding in found] == [
        ("sub-01", {"T1w", "T1ce", "T2w", "FLAIR"}),
        ("sub-02", {"T1w", "T2w"}),
    ]
    assert "contrast T1w: is misaligned: T1w fits T1ce best when moved by" in found[0].text
    assert "contrast T1w or T2w: is misaligned: T1w fits T2w best when moved by" in found[1].text
    assert all("prepare will register it" in finding.text for finding in found)


def test_every_check_has_its_part_of_the_docs() -> None:
    root = Path(__file__).parents[2]
    headings = re.findall(r"^### (.+)$", (root / "docs" / "quality.md").read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name for heading in headings for name in heading.split(", ")}
    sources = "".join(path.read_text(encoding="utf-8") for path in (root / "src/pflsynth/quality").glob("*.py"))
    used = set(re.findall(r'Finding\(\s*"(?:ok|suspicious|wrong)",\s*"([^"]+)"', sources))
    assert len(used) >= 6
    assert used <= explained
    assert {"clipping", "background", "constant slices", "slice gaps", "bias", "noise", "orientation"} <= explained
