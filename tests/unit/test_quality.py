"""What ``check`` finds in a site's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pflsynth.data.quality import check_site
from tests.data_builders import federation, head, image_path, tree, write_nifti, write_site


def test_a_good_site_has_only_good_findings_and_nothing_is_written(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 4)
    before = tree(tmp_path)
    findings = check_site(federation(tmp_path), "here")
    assert all(finding.ok for finding in findings)
    assert [finding.subject for finding in findings] == ["sub-01", "sub-02", "sub-03", "sub-04", None]
    assert "24 x 28 x 6 voxels of 1 x 1 x 3 mm" in findings[0].text
    assert findings[-1].text == "site here, task T1w->T2w: 2 train, 1 validation, 1 test"
    assert tree(tmp_path) == before


def test_everything_that_is_wrong_is_listed(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 4)
    broken = head()
    broken[0, 0, 0] = np.nan
    write_nifti(image_path(site, "sub-01", "T1w"), broken)
    write_nifti(image_path(site, "sub-01", "T2w"), np.full((4, 4, 4), 7.0))
    image_path(site, "sub-02", "T1w").write_text("no image")
    image_path(site, "sub-03", "T1w").with_suffix("").write_bytes(b"")  # a second candidate, .nii
    bad = [finding for finding in check_site(federation(tmp_path), "here") if not finding.ok]
    assert [finding.subject for finding in bad] == ["sub-03", "sub-01", "sub-01", "sub-02"]
    assert "1 voxels are NaN" in bad[1].text
    assert "every voxel is 7" in bad[2].text


def test_bad_sites_give_findings_not_errors(tmp_path: Path) -> None:
    config = federation(tmp_path, {"here": ["T1w->T2w", "T1w->PDw"]})
    (absent,) = check_site(config, "here")
    assert not absent.ok
    assert "there is no folder" in absent.text
    write_site(tmp_path / "here", 2)
    (finding,) = check_site(config, "here")
    assert "task T1w->PDw: no subject has PDw (found: T1w, T2w)" in finding.text
    write_site(tmp_path / "here", {"sub-03": ("T1w", "PDw")})
    image_path(tmp_path / "here", "sub-03", "PDw").write_text("no image")
    assert any(
        not finding.ok and "task T1w->PDw: no training subject (0 train" in finding.text
        for finding in check_site(config, "here")
    )
