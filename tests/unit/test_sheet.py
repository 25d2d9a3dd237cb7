"""The picture sheet: which slices it shows, and where it draws them."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.metrics import to_unit
from pflsynth.federation.personalised import open_personalised
from pflsynth.report.sheet import ERROR_SCALE, SheetRow, draw_sheet, sheet_rows

from ..data_builders import federation, write_site
from ..tiny import Tiny


def flat_row(number: int) -> SheetRow:
    """Images of one grey each: 0.05, 0.10, 0.15 and so on, an error of 0.05 in every row."""
    greys = [0.05 * (3 * number + part) for part in (1, 2, 3)]
    return SheetRow(f"site{number}", "T1w->T2w", "sub-01", *(np.full((24, 24), grey) for grey in greys))


def places(picture: np.ndarray, colour: tuple[float, ...]) -> np.ndarray:
    """Rows and columns of the pixels that have a colour (RGB in 0..1), to one level of 8 bits."""
    return np.argwhere((np.abs(picture[:, :, :3] - np.array(colour)) <= 1 / 255).all(axis=2))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_every_image_of_every_row_is_drawn_in_its_place(tmp_path: Path, number: int) -> None:
    path = tmp_path / "sheet.png"
    rows = [flat_row(line) for line in range(number)]
    draw_sheet(rows, path, "A title")
    picture = imread(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    error = mpl.colormaps["magma"](0.05 / ERROR_SCALE)[:3]
    centres = []
    for row in rows:
        line = []
        for image in (row.source, row.synthesised, row.real):
            grey = mpl.colormaps["gray"](float(image[0, 0]))[:3]
            found = places(picture, grey)
            assert len(found) > 60 * 60  # a square of the sheet, not a few pixels of a letter
            line.append(found.mean(axis=0))
        centres.append(line)
        for left, right in itertools.pairwise(line):
            assert right[1] > left[1] + 50  # source, synthesised, real from left to right
            assert right[0] == pytest.approx(left[0], abs=2)
    errors = places(picture, error)
    assert len(errors) >= number * 60 * 60
    tops = [line[0][0] for line in centres]
    lefts = [line[0][1] for line in centres]
    half = -(-number // 2) if number > 3 else number
    assert tops[:half] == sorted(tops[:half])  # the first rows are below each other
    for first, second in zip(range(half), range(half, number), strict=False):
        assert tops[second] == pytest.approx(tops[first], abs=2)  # the others beside them
        assert lefts[second] > lefts[first] + 200


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_sheet([flat_row(0), flat_row(1)], tmp_path / name, "A title")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    draw_sheet([flat_row(1), flat_row(0)], tmp_path / "three.png", "A title")
    assert (tmp_path / "three.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_rows_are_one_slice_of_a_test_subject_for_each_task(tiny: Tiny, trained: Path) -> None:
    model, store = open_personalised(trained, "north"), tiny.store("north")
    rows = sheet_rows(model, store, "test")
    subject = store.subjects("test")[0].name
    index = int(store.mask(subject).sum(axis=(1, 2)).argmax())
    assert [(row.site, row.task, row.subject) for row in rows] == [
        ("north", "T1w->T2w", subject),
        ("north", "T1w->FLAIR", subject),
    ]
    for row, task in zip(rows, tiny.config.sites["north"].tasks, strict=True):
        source = store.slices(subject, task.source)
        assert np.array_equal(row.source, to_unit(source[index]))
        assert np.array_equal(row.real, to_unit(store.slices(subject, task.target)[index]))
        made = to_unit(model.synthesize(source[index][None], task)[0])
        assert np.array_equal(row.synthesised, made)
        assert made.min() >= 0
        assert made.max() <= 1


def test_tasks_without_a_subject_have_no_row(tmp_path: Path, tiny: Tiny, trained: Path) -> None:
    write_site(tmp_path / "north", {"sub-1": ("T1w", "T2w", "FLAIR"), "sub-2": ("T1w", "FLAIR")})
    (tmp_path / "north" / "splits.json").write_text('{"train": ["sub-1"], "validation": [], "test": ["sub-2"]}')
    config = federation(tmp_path, {"north": ["T1w->T2w", "T1w->FLAIR"]})
    prepare_site(config, "north", tmp_path / "prepared")
    store = SliceStore(tmp_path / "prepared")
    model = open_personalised(trained, "north")
    assert [row.task for row in sheet_rows(model, store, "test")] == ["T1w->FLAIR"]
    assert sheet_rows(model, store, "validation") == []
