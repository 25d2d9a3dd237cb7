"""Pictures of a subject, and the page of ``check`` as text; ``test_page_browser.py`` opens it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pflsynth.data.volumes import Volume
from pflsynth.quality.findings import Finding, Level
from pflsynth.quality.page import SitePage, Strip, write_page
from pflsynth.quality.thumbnails import EDGE_COLOUR, LONGEST_PIXELS, Thumbnail, thumbnails
from tests.data_builders import AFFINE, head

ALL = np.ones((24, 28, 6), dtype=bool)
PICTURE = Thumbnail("T1w", b"\x89PNG\r\n\x1a\n" + bytes(8) + (300).to_bytes(4) + (120).to_bytes(4))


def volume(data: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    spacing = tuple(float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    return Volume(data.astype(np.float32), affine, (spacing[0], spacing[1], spacing[2]), Path("image.nii.gz"))


def pair() -> dict[str, Volume]:
    return {"T1w": volume(head(bright=200.0)), "T2w": volume(head(bright=20.0, seed=1))}


def pixels(thumbnail: Thumbnail) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(thumbnail.png)).convert("RGB"))


def edges(thumbnail: Thumbnail) -> np.ndarray:
    found: np.ndarray = (pixels(thumbnail) == EDGE_COLOUR).all(axis=2)
    return found


def strip(name: str, *levels: Level, images: tuple[Thumbnail, ...] = ()) -> Strip:
    findings = tuple(Finding(level, "alignment", f"{name} is {level}", name, ("T1w", "T2w")) for level in levels)
    return Strip(name, "train", findings, images, "24 x 28 x 6 voxels")


def written(tmp_path: Path, *sites: SitePage, title: str = "Quality") -> str:
    write_page(tmp_path / "page.html", title, sites)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_planes_are_true_to_scale_side_by_side() -> None:
    (picture,) = thumbnails({"T1w": volume(head())}, ALL, None)
    millimetres = np.array([24, 28, 18])
    x, y, z = np.rint(millimetres * LONGEST_PIXELS / 28).astype(int)
    assert pixels(picture).shape == (y, x + 4 + x + 4 + y, 3)
    lit = pixels(picture).any(axis=2)
    assert not lit[: (y - z) // 2, x + 4 :].any(), "beside the axial plane, the others stand in the middle"


def test_right_is_right_and_front_and_top_are_up() -> None:
    data = np.zeros((24, 28, 6))
    data[12:, 14:, 2:] = 100.0
    (picture,) = thumbnails({"T1w": volume(data)}, ALL, None)
    lit = pixels(picture).any(axis=2)
    x, y = round(24 * LONGEST_PIXELS / 28), LONGEST_PIXELS
    axial, sagittal = lit[:, :x], lit[:, -y:]
    assert axial[:70, -60:].all()
    assert not axial[90:].any()
    assert not axial[:, :60].any()
    assert sagittal[35:75, -70:].all()
    assert not sagittal[110:].any()
    assert not sagittal[:, :70].any()


def test_the_references_edges_lie_over_the_others_at_the_references_place() -> None:
    aligned = pair()
    shifted = {**aligned, "T2w": replace(aligned["T2w"], data=np.roll(aligned["T2w"].data, 3, axis=1))}
    reference, other = thumbnails(aligned, ALL, "T1w")
    _, moved = thumbnails(shifted, ALL, "T1w")
    assert (reference.contrast, reference.edges_of, other.contrast, other.edges_of) == ("T1w", None, "T2w", "T1w")
    assert not edges(reference).any()
    assert 200 < edges(other).sum() < 0.1 * edges(other).size
    assert np.array_equal(edges(other), edges(moved))
    assert not np.array_equal(pixels(other), pixels(moved))


@pytest.mark.parametrize("reference", [None, "FLAIR"])
def test_without_the_reference_there_are_no_edges(reference: str | None) -> None:
    for picture in thumbnails(pair(), ALL, reference):
        assert picture.edges_of is None
        assert not edges(picture).any()


def test_contrasts_on_different_grids_are_drawn_without_edges() -> None:
    far = AFFINE.copy()
    far[2, 3] += 50
    volumes = {"T1w": volume(head()), "T2w": volume(head((20, 20, 5))), "FLAIR": volume(head(), far)}
    for chosen in (("T1w", "T2w"), ("T1w", "FLAIR")):
        pictures = thumbnails({name: volumes[name] for name in chosen}, ALL, "T1w")
        assert [picture.contrast for picture in pictures] == list(chosen)
        for picture in pictures:
            assert pixels(picture).any()
            assert not edges(picture).any()


def test_what_check_refuses_is_drawn_all_the_same() -> None:
    slope = np.broadcast_to(np.linspace(100, 50, 24)[:, None, None], (24, 28, 6))
    speck = np.zeros((24, 28, 6))
    speck[3, 3, 3] = 1
    volumes = {"T1w": volume(slope), "T2w": volume(speck), "FLAIR": volume(-head())}
    for mask in (ALL, ~ALL, np.ones((3, 3, 3), dtype=bool)):
        for picture in thumbnails(volumes, mask, "T1w"):
            assert picture.png.startswith(b"\x89PNG")
    assert pixels(thumbnails(volumes, ALL, None)[0]).max() == 255


def test_flat_and_constant_volumes_are_drawn() -> None:
    for shape in ((24, 28, 1), (1, 28, 6), (24, 1, 6)):
        (picture,) = thumbnails({"T1w": volume(head()[: shape[0], : shape[1], : shape[2]])}, np.ones(shape, bool), None)
        assert max(pixels(picture).shape[:2]) <= 3 * LONGEST_PIXELS + 8


def test_pictures_are_small_and_have_the_same_bytes_each_time() -> None:
    volumes = {"T1w": volume(head((140, 170, 50), noise=5.0)), "T2w": volume(head((140, 170, 50), noise=5.0, seed=1))}
    mask = volumes["T1w"].data > 50
    first = thumbnails(volumes, mask, "T1w")
    assert first == thumbnails(volumes, mask, "T1w")
    assert max(len(picture.png) for picture in first) < 16_000


def test_no_volumes_no_pictures() -> None:
    assert thumbnails({}, ALL, "T1w") == ()


def test_the_worst_subjects_come_first_then_names(tmp_path: Path) -> None:
    strips = (strip("b", "ok"), strip("a", "ok"), strip("d", "suspicious", "ok"), strip("c", "ok", "wrong"), strip("e"))
    page = written(tmp_path, SitePage("here", (), strips))
    shown = re.findall(r'<article class="strip (\w+) bare">.*?</span> (\w+)</h3>', page, re.DOTALL)
    assert shown == [("wrong", "c"), ("suspicious", "d"), ("ok", "a"), ("ok", "b"), ("ok", "e")]


def test_the_summary_counts_subjects_and_findings(tmp_path: Path) -> None:
    lost = Finding("wrong", "tasks", "site there: no subjects")
    here = SitePage("here", (), (strip("a", "wrong", "wrong", "suspicious"), strip("b", "ok"), strip("c", "ok")))
    page = written(tmp_path, here, SitePage("there", (lost,), ()))
    text = " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<body>") : page.index("</table>")]).split())
    assert "2 sites, 3 subjects: ✗ 1 wrong , ! 0 suspicious , ✓ 2 ok" in text
    assert "all ✗ wrong ! suspicious ✓ ok alignment tasks" in text
    assert "✗ here 3 1 0 2 ✗ 2 ! 1 – ✗ there 0 0 0 0 – ✗ 1" in text
    assert "site there: no subjects" in page


def test_names_and_texts_are_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x>"
    finding = Finding("wrong", evil, evil, evil, (evil,))
    picture = replace(PICTURE, contrast=evil, edges_of=evil)
    page = written(tmp_path, SitePage(evil, (finding,), (Strip(evil, evil, (finding,), (picture,), evil),)), title=evil)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("<img ") == 1
    assert page.count("&lt;script&gt;alert(1)") >= 12


def test_a_file_name_that_is_not_utf8_can_be_told(tmp_path: Path) -> None:
    finding = Finding("wrong", "readable", "caf\udce9.nii.gz: cannot be read; Größe")
    assert "caf?.nii.gz: cannot be read; Größe" in written(tmp_path, SitePage("here", (finding,), ()))


def test_the_page_asks_for_nothing_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    site = SitePage("here", (), (strip("a", "ok", images=(PICTURE,)), strip("b", "wrong")))
    page = written(tmp_path, site)
    assert page == written(tmp_path, site)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?:|//|url\(|@import|<script|<iframe|\son\w+=", re.sub(r'"data:[^"]*"', "", page))
    assert 'width="300" height="120" decoding="async" alt="a, T1w: axial, coronal and sagittal plane"' in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
