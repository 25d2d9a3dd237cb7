"""``check`` on the real data of all sites: the two misaligned pairs are named, and its page shows every strip."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..browser import open_page
from ..tiny import pflsynth

ROOT = Path(__file__).parents[2]
MISALIGNED = {("brats4", "sub-01"): ("T1w",), ("brats4", "sub-02"): ("T1w or T2w",)}
RIGHTLY_SUSPICIOUS = {  # docs/results/data.md: each was looked at
    ("tcga_fg", "sub-06", "bias"),
    *(("tcga_fg", f"sub-0{number}", "field of view") for number in (1, 6, 8, 9)),
    *(("tcga_cs", f"sub-0{number}", "field of view") for number in (5, 6)),
}


@pytest.mark.slow
@pytest.mark.realdata
def test_all_real_sites(realdata: Path, tmp_path: Path) -> None:
    page = tmp_path / "check.html"
    end = pflsynth("check", ROOT / "recipes" / "realdata.toml", "--data-root", realdata, "--html", page, "--json")
    assert end.code == 0, end
    findings = [(site, own) for site, found in end.document["findings"].items() for own in found]
    suspicious = [(site, own) for site, own in findings if own["level"] != "ok"]
    alignment = {(site, own["subject"]): own["text"] for site, own in suspicious if own["check"] == "alignment"}
    assert alignment.keys() == MISALIGNED.keys()
    for place, (named,) in MISALIGNED.items():
        assert f"contrast {named}: is misaligned" in alignment[place]
    others = {(site, own["subject"], own["check"]) for site, own in suspicious if own["check"] != "alignment"}
    assert others <= RIGHTLY_SUSPICIOUS

    strips = sum(len(subjects) for subjects in end.document["subjects"].values())
    pictures = sum(len(own["contrasts"]) for site in end.document["subjects"].values() for own in site.values())
    with open_page(page) as opened:
        images = opened.page.locator("img")
        assert images.count() == pictures
        assert images.evaluate_all("all => all.every(own => own.complete && own.naturalWidth > 0)")
        for site, subjects in end.document["subjects"].items():
            for subject in subjects:
                assert opened.page.get_by_role("heading", name=subject).first.is_visible(), (site, subject)
        assert strips == 48
        assert opened.requests == []
        assert opened.messages == []
