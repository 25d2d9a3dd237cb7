"""Bad images, full disks and kills: one clear sentence, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pflsynth.data import subject_slices
from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.data.subjects import Subject
from pflsynth.errors import DataError
from tests.data_builders import AFFINE, federation, head, image_path, small_disk, tree, write_nifti, write_site


def cut(fraction: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(fraction * len(content))])

    return damage


def replace(data: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda path: write_nifti(path, data, affine) and None


def with_voxel(value: float) -> np.ndarray:
    data = head()
    data[3, 4, 2] = value
    return data


def shifted(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 3] += millimetres
    return affine


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (replace(head((24, 28, 5))), "T2w (sub-02_T2w.nii.gz): shape 24 x 28 x 5"),
        (replace(head(), shifted(0.5)), "-13.5]"),
        (replace(head(), AFFINE @ np.diag([1, 1, 1.01, 1])), "spacing 1 x 1 x 3.03 mm"),
    ],
)
def test_contrasts_on_different_grids_are_printed_and_the_cure_is_named(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(image_path(write_site(tmp_path / "here", 4), "sub-02", "T2w"))
    with pytest.raises(DataError) as caught:
        prepare_site(federation(tmp_path, registration={"transform": "none"}), "here", tmp_path / "out")
    text = str(caught.value)
    assert "site here, subject sub-02: its contrasts do not share one grid" in text
    assert words in text
    assert "T1w (sub-02_T1w.nii.gz): shape 24 x 28 x 6, spacing 1 x 1 x 3 mm, affine [[1.0, 0.0, 0.0, -12.0]" in text
    assert "set it to rigid" in text


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path: Path) -> None:
    write_nifti(image_path(write_site(tmp_path / "here", 1), "sub-01", "T2w"), head(seed=5), shifted(0.0005))
    prepare_site(federation(tmp_path, registration={"transform": "none"}), "here", tmp_path / "out")


def bad_site(root: Path) -> Path:
    """Six subjects; 02 has a NaN, 03 two candidates, 05 is cut short and its other contrast constant."""
    site = write_site(root / "here", 6)
    replace(with_voxel(np.nan))(image_path(site, "sub-02", "T2w"))
    image_path(site, "sub-03", "T1w").rename(image_path(site, "sub-03", "acq-tse_T1w"))
    write_nifti(image_path(site, "sub-03", "acq-mprage_T1w"), head())
    cut(0.5)(image_path(site, "sub-05", "T1w"))
    replace(np.full(head().shape, 5.0))(image_path(site, "sub-05", "T2w"))
    return site


def strangers(folder: Path) -> list[str]:
    """What is beside the outputs that no workspace owns."""
    own = (".here.work", ".here.records")
    return sorted(path.name for path in folder.iterdir() if path.name not in own)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_subjects_are_reported_at_once_and_no_output_is_made(tmp_path: Path, workers: int) -> None:
    bad_site(tmp_path)
    (tmp_path / "prepared").mkdir()
    with pytest.raises(DataError) as caught:
        prepare_site(federation(tmp_path, workers=workers), "here", tmp_path / "prepared" / "here")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("site here: 3 subjects cannot be used; mend what is listed and give the same command again")
    starts = ["sub-02, contrast T2w", "sub-03, contrast T1w: 2 files", "sub-05, contrast T1w", "sub-05, contrast T2w"]
    assert len(lines) == len(starts)
    assert all(line.startswith(f"site here, subject {start}") for line, start in zip(lines, starts, strict=True))
    assert strangers(tmp_path / "prepared") == []


def test_skip_bad_goes_on_and_names_the_skipped(tmp_path: Path) -> None:
    bad_site(tmp_path)
    report = prepare_site(federation(tmp_path), "here", tmp_path / "out", skip_bad=True)
    assert sorted(report.skipped) == ["sub-02", "sub-03", "sub-05"]
    assert sum(map(len, report.subjects.values())) == 3
    manifest = SliceStore(tmp_path / "out").manifest
    assert [subject.name for subject in manifest.subjects] == ["sub-01", "sub-04", "sub-06"]
    assert "contrast T2w: sub-02/anat/sub-02_T2w.nii.gz: 1 voxels are NaN" in manifest.skipped["sub-02"]
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "sub-01.safetensors",
        "sub-04.safetensors",
        "sub-06.safetensors",
    ]


def test_nothing_but_bad_subjects_is_an_error_even_with_skip_bad(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 1)
    cut(0.5)(image_path(site, "sub-01", "T1w"))
    for skip_bad, words in ((False, "1 subject cannot be used"), (True, "no training subject is left")):
        with pytest.raises(DataError, match=words):
            prepare_site(federation(tmp_path), "here", tmp_path / "out", skip_bad=skip_bad)
    assert not (tmp_path / "out").exists()


def test_a_task_whose_contrast_no_subject_has(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    config = federation(tmp_path, {"here": ["T1w->T2w", "T1w->FLAIR"]})
    with pytest.raises(DataError, match=r"site here, task T1w->FLAIR: no subject has FLAIR \(found: T1w, T2w\)"):
        prepare_site(config, "here", tmp_path / "out")


def test_a_head_that_does_not_fit_names_the_subject(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    with pytest.raises(DataError, match=r"subject sub-01: the head is .* image\.size = \d+"):
        prepare_site(federation(tmp_path, image={"size": 24, "spacing_mm": 0.5}), "here", tmp_path / "out")


def whole(prepared: Path) -> dict[str, bytes]:
    """The outputs in a folder, without unfinished work."""
    return {name: data for name, data in tree(prepared).items() if not name.startswith(".")}


def test_a_full_disk_leaves_the_old_folder_as_it_was_and_the_next_call_goes_on(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    out = tmp_path / "prepared" / "here"
    prepare_site(federation(tmp_path), "here", out)
    before = whole(out.parent)
    three = federation(tmp_path, slices={"maximum": 3})
    with small_disk(20_000), pytest.raises(OSError, match="File too large"):
        prepare_site(three, "here", out, force=True)
    assert whole(out.parent) == before
    prepare_site(three, "here", out, force=True)
    prepare_site(three, "here", tmp_path / "at once")
    assert tree(out) == tree(tmp_path / "at once")
    assert [path.name for path in out.parent.iterdir()] == ["here"]


def test_ctrl_c_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    out = tmp_path / "prepared" / "here"
    prepare_site(federation(tmp_path), "here", out)
    before = whole(out.parent)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_site(federation(tmp_path), "here", out, force=True, progress=interrupt)
    assert whole(out.parent) == before


@pytest.mark.parametrize("normalizer", ["percentile", "nyul"])
def test_what_is_finished_is_not_done_again(tmp_path: Path, normalizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = write_site(tmp_path / "here", 5)
    config = federation(tmp_path, intensity={"normalizer": normalizer})
    prepare_site(config, "here", tmp_path / "at once")
    looked: list[str] = []
    real = subject_slices.examine_subject

    def counted(config: Any, site: str, subject: Subject, known: Any = None) -> Any:
        looked.append(subject.name)
        return real(config, site, subject, known)

    monkeypatch.setattr(subject_slices, "examine_subject", counted)

    def stop_after(count: int) -> Callable[[int, int], None]:
        def stop(done: int, total: int) -> None:
            if done == count:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        prepare_site(config, "here", tmp_path / "out", progress=stop_after(3))
    assert looked == ["sub-01", "sub-02", "sub-03"]
    looked.clear()
    other = head(seed=99)
    kept = image_path(site, "sub-02", "T2w").read_bytes()
    write_nifti(image_path(site, "sub-02", "T2w"), other)  # changed meanwhile: done again
    with pytest.raises(KeyboardInterrupt):
        prepare_site(config, "here", tmp_path / "out", progress=stop_after(4))
    assert looked == ["sub-02", "sub-04"]
    image_path(site, "sub-02", "T2w").write_bytes(kept)
    prepare_site(config, "here", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "at once")
    assert not list(tmp_path.glob(".*"))


def test_unfinished_work_of_other_settings_is_thrown_away(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_site(federation(tmp_path), "here", tmp_path / "out", progress=stop)
    other = federation(tmp_path, slices={"maximum": 2})
    prepare_site(other, "here", tmp_path / "out")
    prepare_site(other, "here", tmp_path / "at once")
    assert tree(tmp_path / "out") == tree(tmp_path / "at once")


def test_a_damaged_record_or_slice_file_is_done_again(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_site(federation(tmp_path), "here", tmp_path / "out", progress=stop)
    (tmp_path / ".out.records" / "sub-01.json").write_text("{")
    cut(0.5)(tmp_path / ".out.work" / "sub-02.safetensors")
    (tmp_path / ".out.work" / "sub-77.safetensors").write_bytes(b"of a subject that is no more")
    prepare_site(federation(tmp_path), "here", tmp_path / "out")
    prepare_site(federation(tmp_path), "here", tmp_path / "at once")
    assert tree(tmp_path / "out") == tree(tmp_path / "at once")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.data_builders import federation
from pflsynth.data import subject_slices
from pflsynth.data.prepare import prepare_site

def kill(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
prepare_site(federation(root), "here", root / "prepared" / "here", force=True, progress=kill)
"""


def test_a_killed_prepare_leaves_nothing_that_looks_whole_and_the_next_one_goes_on(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    prepared = tmp_path / "prepared"
    project = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    assert strangers(prepared) == []
    assert not list(prepared.rglob("manifest.json"))
    prepare_site(federation(tmp_path), "here", prepared / "here")
    assert [path.name for path in prepared.iterdir()] == ["here"]
    prepare_site(federation(tmp_path), "here", tmp_path / "at once")
    assert tree(prepared / "here") == tree(tmp_path / "at once")


def test_a_kill_while_the_old_folder_is_replaced_loses_nothing(tmp_path: Path) -> None:
    write_site(tmp_path / "here", 3)
    out = tmp_path / "prepared" / "here"
    prepare_site(federation(tmp_path), "here", out)
    before = tree(out)
    out.rename(out.with_name(".here.replaced"))  # the state between the two renames
    image_path(tmp_path / "here", "sub-01", "T1w").write_text("no image")
    with pytest.raises(DataError):
        prepare_site(federation(tmp_path), "here", out, force=True)
    assert tree(out) == before
    assert strangers(out.parent) == ["here"]


def test_a_file_spoiled_between_measuring_and_writing_is_told_of(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 4)

    def spoil(done: int, total: int) -> None:
        if done == total:
            image_path(site, "sub-02", "T2w").write_text("no image")

    with pytest.raises(DataError, match=r"sub-02, contrast T2w: .*not a NIfTI file"):
        prepare_site(federation(tmp_path, intensity={"normalizer": "mean"}), "here", tmp_path / "out", progress=spoil)
    assert not (tmp_path / "out").exists()
