"""The demonstration, shortened: every file that it tells of is there, and the synthesised volumes fit their sources."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pflsynth.cli import main
from pflsynth.data.phantom import PHANTOM_SITES

SHORT = ["--subjects", "4", "--set", "rounds=2", "--set", "slices.maximum=4", "--set", "model.residual_layers=1"]


def demo(folder: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["demo", "--out", str(folder), *SHORT, *options])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert demo(folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["sheet"]).read_bytes().startswith(b"\x89PNG")
    with Path(told["scores"]).open() as file:
        scored = {(row["site"], row["task"]) for row in csv.DictReader(file)}
    assert scored == {(site, task) for site, protocol in PHANTOM_SITES.items() for task in protocol.tasks}
    for path in Path(told["synthesised"]).rglob("*.nii.gz"):
        site, subject, source = path.parent.name, path.name.split("_")[0], path.name.split("_")[1].removeprefix("from-")
        original = nibabel.load(folder / "data" / site / subject / "anat" / f"{subject}_{source}.nii.gz")
        made = nibabel.load(path)
        assert made.shape == original.shape
        np.testing.assert_array_equal(made.affine, original.affine)
        assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["site"] == site
    assert len(list(Path(told["synthesised"]).rglob("*.nii.gz"))) == len(scored)

    assert demo(folder) == 2, "an earlier demonstration is not overwritten without --force"
    assert "--force" in capsys.readouterr().err


def test_demo_deletes_nothing_but_a_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "federation.toml").write_text("precious")
    assert demo(tmp_path, "--force") == 2
    assert "is no demonstration" in capsys.readouterr().err
    assert (tmp_path / "federation.toml").read_text() == "precious"
