"""The whole road of ``prepare`` on small sites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.config import FederationConfig
from pflsynth.data.examine import choose_slices
from pflsynth.data.grid import SliceGrid
from pflsynth.data.manifest import load_manifest
from pflsynth.data.normalizers import NORMALIZERS, measure_volume
from pflsynth.data.plan import plan_site
from pflsynth.data.prepare import prepare_site
from pflsynth.data.scaling import Scale, find_head
from pflsynth.data.slices import SliceStore
from pflsynth.data.volumes import load_volume
from pflsynth.errors import DataError, UsageError
from pflsynth.files import sha256_of_file
from tests.data_builders import AFFINE, SHAPE, federation, head, image_path, tree, write_nifti, write_site


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
        heads = {contrast: find_head(volume.data, "") for contrast, volume in volumes.items()}
        fits = {contrast: (Scale.linear(own.low, own.high), own.mask) for contrast, own in heads.items()}
        grid = SliceGrid(SHAPE, (1, 1), 32, None)
        mask = fits["T1w"][1] | fits["T2w"][1]
        assert entry.slices == choose_slices(mask, 0.3, 0)
        assert entry.shape == SHAPE
        assert np.array_equal(entry.affine, AFFINE)
        assert entry.sha256 == sha256_of_file(tmp_path / "out" / entry.file)
        for contrast, (scale, _) in fits.items():
            volume = entry.contrasts[contrast]
            assert store.manifest.intensity.scale(contrast, volume.statistics) == scale
            assert volume.placement.step == ("reference" if contrast == "T1w" else "untouched")
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
    typical = store.manifest.intensity.typical_scale("T2w")
    assert typical.values[1] == np.median([volume.statistics[1] for volume in training])


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


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_references_and_typical_values_are_of_training_subjects_alone(tmp_path: Path, normalizer: str) -> None:
    site = write_site(tmp_path / "here", 5)
    config = federation(tmp_path, intensity={"normalizer": normalizer})
    prepare_site(config, "here", tmp_path / "before")
    before = load_manifest(tmp_path / "before")
    (test,) = before.of_split("test")
    write_nifti(image_path(site, test.name, "T2w"), 3 * head(bright=900, seed=77))
    prepare_site(config, "here", tmp_path / "after")
    after = load_manifest(tmp_path / "after")
    assert after.intensity == before.intensity
    files = {entry.name: entry.sha256 for entry in before.subjects if entry.name != test.name}
    assert {entry.name: entry.sha256 for entry in after.subjects if entry.name != test.name} == files
    for place, training in enumerate(after.of_split("train")):
        write_nifti(image_path(site, training.name, "T2w"), 3 * head(bright=900, seed=88 + place))
    prepare_site(config, "here", tmp_path / "last")
    assert load_manifest(tmp_path / "last").intensity != after.intensity


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_slices_are_the_normalized_volumes(tmp_path: Path, normalizer: str) -> None:
    site = write_site(tmp_path / "here", 4)
    prepare_site(federation(tmp_path, intensity={"normalizer": normalizer}), "here", tmp_path / "out")
    store = SliceStore(tmp_path / "out")
    manifest, entry = store.manifest, store.manifest.subjects[0]
    volume = load_volume(image_path(site, entry.name, "T2w"), "")
    statistics, mask = measure_volume(volume.data, normalizer, "")
    assert entry.contrasts["T2w"].statistics == statistics
    training = [subject.contrasts["T2w"].statistics for subject in manifest.of_split("train")]
    fit = NORMALIZERS[normalizer].fit
    reference = () if fit is None else fit(training)
    scaled = NORMALIZERS[normalizer].scale(statistics, reference).apply(volume.data)
    if normalizer == "zscore":
        scaled[~mask] = -1
    expected = SliceGrid(SHAPE, (1, 1), 32, None).to_slices(scaled, -1)[list(entry.slices)]
    assert np.array_equal(store.slices(entry.name, "T2w"), expected)


def test_sessions_of_a_person_are_paired_by_themselves_and_stay_in_one_split(tmp_path: Path) -> None:
    site = tmp_path / "here"
    for person in range(1, 7):
        for session in (1, 2):
            for place, contrast in enumerate(("T1w", "T2w")):
                name = f"sub-{person:02d}_ses-{session}"
                path = site / f"sub-{person:02d}" / f"ses-{session}" / "anat" / f"{name}_{contrast}.nii.gz"
                write_nifti(path, head(bright=200 + 50 * place, seed=100 * person + 10 * session + place))
    report = prepare_site(federation(tmp_path), "here", tmp_path / "out")
    manifest = load_manifest(tmp_path / "out")
    assert len(manifest.subjects) == 12
    assert sum(map(len, report.subjects.values())) == 6
    assert report.tasks["T1w->T2w"] == {split: len(names) for split, names in report.subjects.items()}
    for person in {subject.person for subject in manifest.subjects}:
        own = [subject for subject in manifest.subjects if subject.person == person]
        assert [subject.session for subject in own] == ["ses-1", "ses-2"]
        assert len({subject.split for subject in own}) == 1


def test_a_brain_mask_is_applied_where_the_site_has_them(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 4)
    inner = head() > 150
    for number in range(1, 5):
        write_nifti(image_path(site, f"sub-{number:02d}", "mask"), inner, dtype=np.uint8)
    config = federation(tmp_path)
    masked = FederationConfig.model_validate(
        {**config.model_dump(), "sites": {"here": {"tasks": ["T1w->T2w"], "brain_mask": True}}}
    )
    prepare_site(masked, "here", tmp_path / "out")
    store = SliceStore(tmp_path / "out")
    assert store.manifest.settings["brain_mask"] is True
    subject = store.manifest.subjects[0]
    expected = SliceGrid(SHAPE, (1, 1), 32, None).to_slices(inner.astype(np.float32), 0)[list(subject.slices)]
    outside = expected == 0
    assert np.all(store.slices(subject.name, "T1w")[outside] == -1)
    image_path(site, "sub-02", "mask").unlink()
    with pytest.raises(DataError, match="subject sub-02: has no brain mask, but brain_mask is true"):
        prepare_site(masked, "here", tmp_path / "again")


def test_a_copy_of_an_image_is_refused_within_the_site_and_at_another(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 5)
    copy, original = image_path(site, "sub-04", "T2w"), image_path(site, "sub-02", "T2w")
    image = nibabel.load(original)
    write_nifti(copy, image.get_fdata(), dtype=np.float64)  # another file, the same voxels
    words = r"sub-04, contrast T2w: .* holds the same voxels as subject sub-02, contrast T2w"
    with pytest.raises(DataError, match=words):
        prepare_site(federation(tmp_path), "here", tmp_path / "prepared" / "here")
    report = prepare_site(federation(tmp_path), "here", tmp_path / "prepared" / "here", skip_bad=True)
    assert list(report.skipped) == ["sub-04"]

    other = write_site(tmp_path / "there", 4, first_seed=500)
    config = federation(tmp_path, {"here": ["T1w->T2w"], "there": ["T1w->T2w"]})
    shutil.copy(original, image_path(other, "sub-03", "T2w"))
    words = r"site there: 1 image\(s\) are at another site too.*sub-03 T2w is sub-02 T2w of site here"
    with pytest.raises(DataError, match=words):
        prepare_site(config, "there", tmp_path / "prepared" / "there", skip_bad=True)
    assert not (tmp_path / "prepared" / "there").exists()
    prepare_site(config, "there", tmp_path / "elsewhere" / "there")


def test_a_plan_reads_no_image_and_writes_nothing(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 5)
    for path in site.rglob("*.nii.gz"):
        path.write_bytes(b"not read")
    before = tree(tmp_path)
    plan = plan_site(federation(tmp_path), "here", tmp_path / "out")
    assert (plan.images, plan.finished, plan.layout) == (5, 0, "bids")
    assert {split: len(names) for split, names in plan.subjects.items()} == {"train": 3, "validation": 1, "test": 1}
    assert tree(tmp_path) == before


def test_two_prepares_of_one_site_do_not_meet(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)

    def second(done: int, total: int) -> None:
        with pytest.raises(UsageError, match="another process is preparing this site"):
            prepare_site(federation(tmp_path), "here", tmp_path / "out")

    prepare_site(federation(tmp_path), "here", tmp_path / "out", progress=second)
    SliceStore(tmp_path / "out").verify()


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
    assert prepare_site(config, "here", tmp_path / "out").notes == (
        "task T1w->T2w has no test subject (1 of 2 subjects can serve it)",
    )
