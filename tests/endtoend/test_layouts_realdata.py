"""Real volumes, renamed to fit each layout, are found and prepared as under their BIDS names."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pflsynth.config import FederationConfig
from pflsynth.data.prepare import prepare_site
from pflsynth.data.subjects import find_subjects
from tests.data_builders import federation

SITE = "brats4"
SUBJECTS = ("sub-04", "sub-05")
BIDS = {"T1w": "T1w", "T1ce": "ce-gd_T1w", "T2w": "T2w", "FLAIR": "FLAIR"}
FIRST = {"T1w": "T1", "T1ce": "T1c", "T2w": "T2", "FLAIR": "Flair"}
MIDDLE = {"T1w": "t1", "T1ce": "t1ce", "T2w": "t2", "FLAIR": "flair"}
LAST = {"T1w": "t1n", "T1ce": "t1c", "T2w": "t2w", "FLAIR": "t2f"}


@dataclass(frozen=True)
class Tree:
    """A folder tree: the names that two subjects get, and where it has their images; {} stands for the contrast."""

    layout: str
    names: tuple[str, str]
    paths: tuple[str, str]
    contrasts: Mapping[str, str]


TREES = {
    "bids-sessions-runs": Tree(
        "bids",
        ("sub-7_ses-1", "sub-7_ses-2"),
        ("sub-7/ses-1/anat/sub-7_ses-1_acq-x_run-02_{}.nii.gz", "SUB-7/ses-2/sub-7_ses-2_{}.NII"),
        BIDS,
    ),
    "ixi": Tree(
        "ixi",
        ("sub-IXI002", "sub-IXI012"),
        ("IXI-{0}/IXI002-Guys-0828-{0}.nii.gz", "IXI-{0}/IXI012-HH-1211-{0}.nii"),
        {"T1w": "T1", "T2w": "T2"},
    ),
    "brats-2013": Tree(
        "brats",
        ("sub-HG0001", "sub-LG0001"),
        tuple(
            f"Image_Data/{grade}/0001/VSD.Brain.XX.O.MR_{{0}}/VSD.Brain.XX.O.MR_{{0}}.684.nii.gz"
            for grade in ("HG", "LG")
        ),
        FIRST,
    ),
    "brats-2015": Tree(
        "brats",
        ("sub-brats2013pat0001", "sub-bratstciapat101"),
        (
            "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_{0}.54513/VSD.Brain.XX.O.MR_{0}.54513.nii",
            "LGG/brats_tcia_pat101_0001/VSD.Brain.XX.O.MR_{0}.36/VSD.Brain.XX.O.MR_{0}.36.nii.gz",
        ),
        FIRST,
    ),
    "brats-2017": Tree(
        "brats",
        ("sub-Brats17CBICAAAB", "sub-Brats17TCIA105"),
        ("HGG/Brats17_CBICA_AAB_1/Brats17_CBICA_AAB_1_{}.nii.gz", "LGG/Brats17_TCIA_105_1/Brats17_TCIA_105_1_{}.nii"),
        MIDDLE,
    ),
    "brats-2020": Tree(
        "brats",
        ("sub-BraTS202100000", "sub-BraTS20Training001"),
        ("BraTS2021_00000_{}.nii.gz", "BraTS20_Training_001/BraTS20_Training_001_{}.nii"),
        MIDDLE,
    ),
    "brats-2023": Tree(
        "brats",
        ("sub-BraTSGLI00005_ses-100", "sub-BraTSGLI00005_ses-101"),
        ("BraTS-GLI-00005-100/BraTS-GLI-00005-100-{}.nii.gz", "BraTS-GLI-00005-101/BraTS-GLI-00005-101-{}.nii"),
        LAST,
    ),
    "oasis3": Tree(
        "oasis3",
        ("sub-OAS30001", "sub-OAS30002"),
        (
            "sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_{}.nii.gz",
            "OAS30002_MR_d0371/anat2/NIFTI/sub-OAS30002_sess-d0371_run-01_{}.nii.gz",
        ),
        BIDS,
    ),
    "pattern": Tree(
        "{subject}/{session}/{subject}-{contrast}.nii.gz",
        ("sub-Jorg1", "sub-Jorg2"),
        ("mit Leerzeichen/Jörg 1/a/Jörg 1-{}.nii.gz", "Jörg 2/b/Jörg 2-{}.nii"),
        FIRST,
    ),
    "list": Tree("images.csv", ("sub-a", "sub-b"), ("x/{}.nii.gz", "y/{}.nii"), LAST),
}


def build(tree: Tree, folder: Path, realdata: Path) -> dict[tuple[str, str], bytes]:
    """Make the tree, of links to the real files or of unpacked copies; returns each image's NIfTI bytes."""
    contents: dict[tuple[str, str], bytes] = {}
    rows = []
    for subject, name, path in zip(SUBJECTS, tree.names, tree.paths, strict=True):
        for contrast, own in tree.contrasts.items():
            source = realdata / SITE / subject / "anat" / f"{subject}_{contrast}.nii.gz"
            target = folder / path.format(own)
            target.parent.mkdir(parents=True, exist_ok=True)
            contents[name, contrast] = gzip.decompress(source.read_bytes())
            if target.suffix == ".gz":
                target.symlink_to(source)
            else:
                target.write_bytes(contents[name, contrast])
            rows.append((name, own, target.relative_to(folder)))
    if tree.layout.endswith(".csv"):
        with (folder / tree.layout).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("subject", "contrast", "path"), *rows])
    return contents


def config(data_root: Path, layout: str) -> FederationConfig:
    return federation(
        data_root,
        image={"size": 96, "spacing_mm": 2.7},
        slices={"maximum": 12},
        registration={"transform": "none"},
        sites={"here": {"tasks": ["T1w->T2w"], "layout": layout}},
    )


def prepared(data_root: Path, layout: str) -> dict[str, dict[str, np.ndarray]]:
    """The slices of each subject."""
    out = data_root / "prepared"
    prepare_site(config(data_root, layout), "here", out)
    return {path.stem: load_file(path) for path in sorted(out.glob("sub-*.safetensors"))}


@pytest.mark.realdata
@pytest.mark.parametrize("layout", TREES)
def test_every_image_is_found(realdata: Path, tmp_path: Path, layout: str) -> None:
    tree = TREES[layout]
    contents = build(tree, tmp_path, realdata)
    decoys = {"bids-sessions-runs": "sub-7/ses-1/anat/sub-7_ses-1_acq-x_run-1_T1w.nii.gz",
              "brats-2023": "BraTS-GLI-00005-100/BraTS-GLI-00005-100-seg.nii.gz"}  # fmt: skip
    if layout in decoys:
        (tmp_path / decoys[layout]).write_bytes(b"not this one")
    found = find_subjects(tmp_path, tree.layout, tuple(BIDS), "here")
    assert not found.bad
    assert tuple(subject.name for subject in found.subjects) == tree.names
    assert [subject.person for subject in found.subjects] == [name.split("_")[0] for name in tree.names]
    for subject in found.subjects:
        assert list(subject.volumes) == list(tree.contrasts)
        for contrast, path in subject.volumes.items():
            data = path.read_bytes()
            assert (gzip.decompress(data) if path.suffix == ".gz" else data) == contents[subject.name, contrast]


@pytest.fixture(scope="module")
def as_bids(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("bids")
    paths = tuple(f"{subject}/anat/{subject}_{{}}.nii.gz" for subject in SUBJECTS)
    build(Tree("bids", SUBJECTS, paths, BIDS), folder / "here", realdata)
    return prepared(folder, "bids")


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("layout", TREES)
def test_every_layout_prepares_to_the_same_bytes_as_bids(
    realdata: Path, as_bids: dict[str, dict[str, np.ndarray]], tmp_path: Path, layout: str
) -> None:
    tree = TREES[layout]
    build(tree, tmp_path / "here", realdata)
    slices = prepared(tmp_path, tree.layout)
    assert tuple(slices) == tree.names
    for name, subject in zip(tree.names, SUBJECTS, strict=True):
        assert slices[name].keys() == as_bids[subject].keys() >= {"T1w", "T2w"}
        for contrast, array in slices[name].items():
            assert array.dtype == as_bids[subject][contrast].dtype
            assert array.tobytes() == as_bids[subject][contrast].tobytes()
