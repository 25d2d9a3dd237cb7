"""One subject of every kind of bad file in one folder: each is told of, and the good ones are prepared all the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pflsynth.data.manifest import load_manifest
from pflsynth.data.prepare import prepare_site
from pflsynth.errors import DataError
from pflsynth.quality.site import check_site
from tests.data_builders import federation, head, image_path, tissue, tree, write_nifti, write_site

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
