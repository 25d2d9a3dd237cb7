"""The whole road of ``prepare`` on small sites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.examine import choose_slices
from pflsynth.data.grid import SliceGrid
from pflsynth.data.manifest import load_manifest
from pflsynth.data.prepare import prepare_site
from pflsynth.data.scaling import fit_scale
from pflsynth.data.slices import SliceStore
from pflsynth.data.volumes import load_volume
from pflsynth.errors import DataError, UsageError
from pflsynth.files import sha256_of_file
from tests.data_builders import AFFINE, SHAPE, federation, image_path, tree, write_site


def test_slices_scale_mask_and_manifest_are_what_the_pieces_give(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 5)
    config = federation(tmp_path)
    report = prepare_site(config, "here", tmp_path / "out")
    store = SliceStore(tmp_path / "out")
    assert {split: len(names) for split, names in report.subjects.items()} == {"train": 3, "validation": 1, "test": 1}
    assert report.tasks == {"T1w->T2w": {"train": 3, "validation": 1, "test": 1}}
    assert report.slices["train"] == sum(len(subject.slices) for subject in store.subjects("train"))

    for entry in store.manifest.subjects:
        paths = {contrast: image_path(site, entry.name, contrast) for contrast in ("T1w", "T2w")}
        volumes = {contrast: load_volume(path, "") for contrast, path in paths.items()}
        fits = {contrast: fit_scale(volume.data, "") for contrast, volume in volumes.items()}
        grid = SliceGrid(SHAPE, (1, 1), 32, None)
        mask = fits["T1w"][1] | fits["T2w"][1]
        assert entry.slices == choose_slices(mask, 0.3, 0)
        assert entry.shape == SHAPE
        assert np.array_equal(entry.affine, AFFINE)
        assert entry.sha256 == sha256_of_file(tmp_path / "out" / entry.file)
        for contrast, (scale, _) in fits.items():
            volume = entry.contrasts[contrast]
            assert volume.scale == scale
            assert volume.source == f"{entry.name}/anat/{entry.name}_{contrast}.nii.gz"
            assert volume.source_sha256 == sha256_of_file(paths[contrast])
            expected = grid.to_slices(scale.apply(volumes[contrast].data), -1)[list(entry.slices)]
            stored = store.slices(entry.name, contrast)
            assert np.array_equal(stored, expected)
            assert stored.min() >= -1
            assert stored.max() <= 1
        in_slices = grid.to_slices(mask.astype(np.float32), 0)[list(entry.slices)] > 0.5
        assert np.array_equal(store.mask(entry.name), in_slices)

    training = [entry.contrasts["T2w"] for entry in store.subjects("train")]
    typical = store.manifest.typical_scales()["T2w"]
    assert typical.high == np.median([volume.high for volume in training])


def test_same_input_gives_the_same_bytes_with_any_number_of_workers_and_anywhere(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        write_site(root / "here", 3)
    prepare_site(federation(one), "here", tmp_path / "a")
    prepare_site(federation(two, workers=2), "here", tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_subjects_take_part_in_the_tasks_they_have(tmp_path: Path) -> None:
    subjects = {
        "sub-01": ("T1w", "T2w", "PDw"),
        "sub-02": ("T1w", "T2w"),
        "sub-03": ("T2w", "PDw"),
        "sub-04": ("T1w", "PDw", "FLAIR"),
    }
    write_site(tmp_path / "here", subjects)
    everyone = {"train": ["sub-01", "sub-02", "sub-03", "sub-04"], "validation": [], "test": []}
    (tmp_path / "here" / "splits.json").write_text(json.dumps(everyone))
    config = federation(tmp_path, {"here": ["T1w->T2w", "T2w->PDw"]})
    report = prepare_site(config, "here", tmp_path / "out")
    assert report.tasks["T1w->T2w"]["train"] == 2
    assert report.tasks["T2w->PDw"]["train"] == 2
    assert report.notes == ("subject sub-04 is left out: it has T1w, PDw, which serves no task of the site",)
    manifest = load_manifest(tmp_path / "out")
    assert {entry.name: list(entry.contrasts) for entry in manifest.subjects} == {
        "sub-01": ["PDw", "T1w", "T2w"],
        "sub-02": ["T1w", "T2w"],
        "sub-03": ["PDw", "T2w"],
    }
    assert manifest.split_source == "splits.json"
    assert manifest.splits_sha256 == sha256_of_file(tmp_path / "here" / "splits.json")


@pytest.mark.parametrize(
    ("subjects", "note"),
    [
        (1, "1 subject: training"),
        (2, "2 subjects: training and test"),
        (3, "3 subjects: one each"),
    ],
)
def test_few_subjects_are_split_as_the_manifest_says(tmp_path: Path, subjects: int, note: str) -> None:
    write_site(tmp_path / "here", subjects)
    report = prepare_site(federation(tmp_path), "here", tmp_path / "out")
    assert sum(map(len, report.subjects.values())) == subjects
    assert report.notes == (f"{note}, instead of the configured fractions",)


def test_resampling_to_another_spacing(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 1)
    config = federation(tmp_path, image={"size": 24, "spacing_mm": 2.0})
    prepare_site(config, "here", tmp_path / "out")
    store = SliceStore(tmp_path / "out")
    slices = store.slices("sub-01", "T1w")
    assert slices.shape[1:] == (24, 24)
    area_mm2 = store.mask("sub-01").sum(axis=(1, 2)).max() * 4
    assert area_mm2 == pytest.approx(np.pi * 0.64 * 11.5 * 13.5, rel=0.15)


def test_an_existing_folder_needs_force_and_is_replaced_whole(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 2)
    out = tmp_path / "prepared" / "here"
    prepare_site(federation(tmp_path), "here", out)
    before = tree(tmp_path / "prepared")
    with pytest.raises(UsageError, match="exists already; give --force"):
        prepare_site(federation(tmp_path), "here", out)
    assert tree(tmp_path / "prepared") == before
    prepare_site(federation(tmp_path, slices={"maximum": 1}), "here", out, force=True)
    assert load_manifest(out).settings["slices"]["maximum"] == 1
    assert [entry.name for entry in (tmp_path / "prepared").iterdir()] == ["here"]


def test_a_folder_that_is_not_prepared_data_is_never_replaced(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 2)
    with pytest.raises(UsageError, match="not prepared data, so it is not replaced"):
        prepare_site(federation(tmp_path), "here", tmp_path / "here", force=True)


def test_progress_counts_the_subjects(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 2)
    calls: list[tuple[int, int]] = []
    prepare_site(federation(tmp_path), "here", tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]


def test_slices_are_chosen_by_area_and_evenly() -> None:
    mask = np.zeros((10, 10, 8), bool)
    for z, area in enumerate([0, 1, 3, 10, 10, 6, 3, 2]):
        mask.reshape(100, 8)[:area, z] = True
    assert choose_slices(mask, 0.3, 0) == (2, 3, 4, 5, 6)
    assert choose_slices(mask, 0.3, 3) == (2, 4, 6)
    assert choose_slices(mask, 0.0, 0) == (1, 2, 3, 4, 5, 6, 7)
    assert choose_slices(mask, 1.0, 1) == (3,)


def test_a_task_without_training_subject_is_named(tmp_path: Path) -> None:
    write_site(tmp_path / "here", {"sub-01": ("T1w", "T2w"), "sub-02": ("T1w", "PDw")})
    content = {"train": ["sub-01"], "validation": [], "test": ["sub-02"]}
    (tmp_path / "here" / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"task T1w->PDw: no training subject .*elsewhere: sub-02 \(test\)"):
        prepare_site(federation(tmp_path, {"here": ["T1w->T2w", "T1w->PDw"]}), "here", tmp_path / "out")


def test_a_split_without_a_task_is_noted(tmp_path: Path) -> None:
    write_site(tmp_path / "here", {"sub-01": ("T1w", "T2w", "PDw"), "sub-02": ("T1w", "PDw")})
    content = {"train": ["sub-01"], "validation": [], "test": ["sub-02"]}
    (tmp_path / "here" / "splits.json").write_text(json.dumps(content))
    config = federation(tmp_path, {"here": ["T1w->T2w", "T1w->PDw"]})
    assert prepare_site(config, "here", tmp_path / "out").notes == ("task T1w->T2w has no test subject",)
