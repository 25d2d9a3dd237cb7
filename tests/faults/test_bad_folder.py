"""One subject of every kind of bad file in one folder: each is told of, and the good ones are prepared all the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.data.manifest import load_manifest
from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.errors import DataError
from pflsynth.quality.site import check_site
from tests.data_builders import AFFINE, SHAPE, federation, head, image_path, tissue, tree, write_nifti, write_site

from .test_bad_volumes import REFUSED

GOOD = ["sub-01", "sub-02", "sub-03", "sub-04"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good subjects, and one bad T2w of every kind."""
    root = tmp_path_factory.mktemp("bad folder ü")
    site = write_site(root / "here", 4)
    for number, (make, _) in enumerate(REFUSED.values(), start=100):
        name = f"sub-{number}"
        write_nifti(image_path(site, name, "T1w"), head() * tissue(number, 0))
        made = make()
        image_path(site, name, "T2w").write_bytes(made if isinstance(made, bytes) else made.content)
    for number, target in ((300, "sub-300_T2w.nii.gz"), (301, "gone.nii.gz")):  # a link to itself, and to nothing
        name = f"sub-{number}"
        write_nifti(image_path(site, name, "T1w"), head() * tissue(number, 0))
        image_path(site, name, "T2w").symlink_to(target)
    (site / "sub-01" / "loop").symlink_to(site)
    return root


def test_check_tells_of_each_and_prepare_goes_on_without_them(folder: Path) -> None:
    config = federation(folder)
    check = check_site(config, "here")
    wrong = {finding.subject: finding.text for finding in check.every_finding if finding.level == "wrong"}
    bad = [f"sub-{number}" for number in (*range(100, 100 + len(REFUSED)), 300, 301)]
    assert sorted(wrong) == bad
    assert sorted(check.splits) == GOOD
    with pytest.raises(DataError) as caught:
        prepare_site(config, "here", folder / "out")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(",")[1].split()[1] for line in lines] == bad
    for line, name in zip(lines, bad, strict=True):
        assert line == wrong[name], "check and prepare say the same"
    for line in lines:
        assert "T2w.nii.gz" in line
        assert "; " in line, "and what to do"
    report = prepare_site(config, "here", folder / "out", skip_bad=True)
    assert list(report.skipped) == bad
    assert [own.name for own in load_manifest(folder / "out").subjects] == GOOD


def test_the_good_subjects_are_what_they_are_without_the_bad(folder: Path, tmp_path: Path) -> None:
    config = federation(folder)
    if not (folder / "out").exists():
        prepare_site(config, "here", folder / "out", skip_bad=True)
    write_site(tmp_path / "here", 4)
    prepare_site(federation(tmp_path), "here", tmp_path / "clean")
    clean = {name: data for name, data in tree(tmp_path / "clean").items() if name.endswith(".safetensors")}
    assert {name: data for name, data in tree(folder / "out").items() if name in clean} == clean


def oblique() -> np.ndarray:
    turn = nibabel.eulerangles.euler2mat(0.3, 0.2, -0.1)
    return nibabel.affines.from_matvec(turn, (5, -9, 30)) @ AFFINE


def rimmed(data: np.ndarray) -> np.ndarray:
    rim = np.full_like(data, np.nan)
    rim[2:-2, 2:-2] = data[2:-2, 2:-2]
    return rim


ODD_BUT_GOOD: dict[str, Callable[[np.ndarray], nibabel.Nifti1Image]] = {
    "one frame": lambda data: nibabel.Nifti1Image(data[..., None], AFFINE),
    "oblique": lambda data: nibabel.Nifti1Image(data, oblique()),
    "a rim of NaN": lambda data: nibabel.Nifti1Image(rimmed(data), AFFINE),
    "one slice": lambda data: nibabel.Nifti1Image(data[:, :, 3:4], AFFINE),
    "another byte order": lambda data: nibabel.Nifti1Image(data, AFFINE, nibabel.Nifti1Header(endianness=">")),
    "NIfTI-2": lambda data: nibabel.Nifti2Image(data, AFFINE),
    "doubles": lambda data: nibabel.Nifti1Image(data.astype(np.float64), AFFINE),
    "stored head first": lambda data: nibabel.Nifti1Image(data[:, :, ::-1], AFFINE @ np.diag([1, 1, -1, 1])),
}


def test_odd_files_that_are_good_are_prepared(tmp_path: Path) -> None:
    for number, make in enumerate(ODD_BUT_GOOD.values(), start=1):
        name = f"sub-{number:02d}"
        for place, contrast in enumerate(("T1w", "T2w")):
            path = image_path(tmp_path / "here", name, contrast)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = (head(bright=200 + 50 * place) * tissue(number, place)).astype(np.float32)
            nibabel.save(make(data), path)
    report = prepare_site(federation(tmp_path), "here", tmp_path / "out")
    assert sum(map(len, report.subjects.values())) == len(ODD_BUT_GOOD)
    store = SliceStore(tmp_path / "out")
    slices = {
        name: len(store.slices(own.name, "T1w"))
        for name, own in zip(ODD_BUT_GOOD, store.manifest.subjects, strict=True)
    }
    assert slices.pop("one slice") == 1
    assert set(slices.values()) == {4}


def test_an_empty_brain_mask_and_an_image_without_a_head(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", 6)
    for number in range(1, 7):
        brain = head() > 0 if number != 2 else np.zeros(SHAPE)
        write_nifti(image_path(site, f"sub-{number:02d}", "mask"), brain, dtype=np.uint8)
    far = AFFINE.copy()
    far[0, 3] = 500
    write_nifti(image_path(site, "sub-03", "mask"), head() > 0, far, dtype=np.uint8)
    bright = np.where(head() > 0, 0.0, 100.0)
    write_nifti(image_path(site, "sub-04", "T1w"), bright)
    config = federation(tmp_path)
    config = config.model_copy(update={"sites": {"here": config.sites["here"].model_copy(update={"brain_mask": True})}})
    report = prepare_site(config, "here", tmp_path / "out", skip_bad=True)
    assert list(report.skipped) == ["sub-02", "sub-03", "sub-04"]
    assert "sub-02, brain mask: " in report.skipped["sub-02"]
    assert "every voxel is 0" in report.skipped["sub-02"]
    assert "the brain mask" in report.skipped["sub-03"]
    assert "is empty where the image is; check its affine" in report.skipped["sub-03"]
    assert "the background (100) is not dark" in report.skipped["sub-04"]
    assert [own.name for own in load_manifest(tmp_path / "out").subjects] == ["sub-01", "sub-05", "sub-06"]


def as_someone_else(work: Callable[[], object]) -> None:
    """Do the work in a child that is not root, since root may read and write everything."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o777)
        site = write_site(root / "here", 4)
        prepare_site(federation(root), "here", root / "warm")  # everything that is needed is imported
        image_path(site, "sub-02", "T2w").chmod(0)
        (root / "sealed").mkdir(mode=0o555)
        (root / "open").mkdir()
        (root / "open").chmod(0o777)

        def work() -> None:
            with pytest.raises(DataError, match=r"sub-02, contrast T2w: .*no permission to read it"):
                prepare_site(federation(root), "here", root / "open" / "out")
            with pytest.raises(PermissionError):
                prepare_site(federation(root), "here", root / "sealed" / "out", skip_bad=True)
            report = prepare_site(federation(root), "here", root / "open" / "out", skip_bad=True)
            assert list(report.skipped) == ["sub-02"]

        as_someone_else(work)
