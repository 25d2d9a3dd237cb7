"""What each layout reads from a path, and which names are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.data.layouts import LAYOUTS, layout_named
from pflsynth.data.names import ALIASES, ImageName, alias_contrast, contrast_of, label, own_names, split_nifti_name
from pflsynth.errors import DataError


def read(layout: str, path: str, own: dict[str, str] | None = None) -> tuple[str, str, str] | None:
    """Person, session and contrast, or None if the path is passed over."""
    names = own_names(own or {}, "here")
    name = layout_named(layout, names, "here").read(tuple(path.split("/")), names)
    return (name.person, name.session, name.contrast) if isinstance(name, ImageName) else None


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-01_T1w.nii.gz", "T1w"),
        ("sub-01_ses-2_acq-mprage_run-1_T1w.nii", "T1w"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "T1ce"),
        ("SUB-01_CE-gadolinium_t1W.NII.GZ", "T1ce"),
        ("sub-01_T1ce.nii.gz", "T1ce"),
        ("sub-01_PDw.nii.gz", "PDw"),
        ("sub-01_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_flair.nii.gz", "FLAIR"),
        ("sub-01_ce-gadolinium_FLAIR.nii.gz", None),
        ("sub-01_T2star.nii.gz", None),
        ("sub-01_T1.nii.gz", None),
        ("sub-01_T1w.json", None),
        ("sub-01_T1w_mask.nii.gz", None),
        ("sub-01_desc-brain_mask.nii.gz", None),
    ],
)
def test_the_contrast_is_read_from_the_bids_name(name: str, contrast: str | None) -> None:
    assert contrast_of(Path("anat") / name) == contrast


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.b.nii.gz", ("a.b", ".nii.gz")),
        ("a.NII.Gz", ("a", ".NII.Gz")),
        ("a.nii", ("a", ".nii")),
        ("a.gz", ("a.gz", "")),
        ("nii", ("nii", "")),
    ],
)
def test_a_nifti_name_is_split_as_it_is_written(name: str, parts: tuple[str, str]) -> None:
    assert split_nifti_name(Path("folder") / name) == parts


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", ("01", "", "T1w")),
        ("sub-01/sub-01_T2w.nii", ("01", "", "T2w")),
        ("SUB-01/anat/sub-01_T1w.nii", ("01", "", "T1w")),
        ("sub-01/ses-b/anat/sub-01_ses-b_acq-x_run-2_FLAIR.nii.gz", ("01", "b", "FLAIR")),
        ("sub-01/ses-b/anat/sub-01_T1w.nii.gz", ("01", "b", "T1w")),
        ("sub-01/anat/sub-01_ses-b_T1w.nii.gz", ("01", "b", "T1w")),
        ("sub-01/anat/sub-01_desc-brain_mask.nii.gz", ("01", "", "mask")),
        ("sub-01/anat/sub-01_mask.nii.gz", ("01", "", "mask")),
        ("sub-01/anat/sub-01_desc-lesion_mask.nii.gz", None),
        ("sub-01/anat/sub-01_label-WM_mask.nii.gz", None),
        ("sub-01/anat/sub-02_T1w.nii.gz", None),
        ("sub-01/ses-a/anat/sub-01_ses-b_T1w.nii.gz", None),
        ("sub-01/anat/T1w.nii.gz", None),
        ("sub-01/anat/sub-01_T1w_mask.nii.gz", None),
        ("sub-01_T1w.nii.gz", None),
    ],
)
def test_bids(path: str, expected: tuple[str, str, str] | None) -> None:
    assert read("bids", path) == expected


def test_bids_tells_runs_from_variants() -> None:
    parts = ("sub-01", "sub-01_acq-mprage_run-03_rec-norm_T1w.nii.gz")
    assert LAYOUTS["bids"].read(parts, {}) == ImageName("01", "", "T1w", "acq-mprage_rec-norm", 3)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("IXI-T1/IXI002-Guys-0828-T1.nii.gz", ("IXI002", "", "T1w")),
        ("IXI-T2/IXI012-HH-1211-T2.nii", ("IXI012", "", "T2w")),
        ("ixi035-iop-0873-pd.NII.GZ", ("IXI035", "", "PDw")),
        ("IXI002-Guys-0828-brain_mask.nii.gz", ("IXI002", "", "mask")),
        ("IXI-MRA/IXI002-Guys-0828-MRA.nii.gz", None),
        ("IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz", None),
        ("BraTS2021_00000_t1.nii.gz", None),
    ],
)
def test_ixi(path: str, expected: tuple[str, str, str] | None) -> None:
    assert read("ixi", path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # 2013: the number of a case is one patient of high and another of low grade.
        ("Image_Data/HG/0001/VSD.Brain.XX.O.MR_T1c/VSD.Brain.XX.O.MR_T1c.686.nii.gz", ("HG_0001", "", "T1ce")),
        ("Image_Data/LG/0001/VSD.Brain.XX.O.MR_Flair/VSD.Brain.XX.O.MR_Flair.684.nii", ("LG_0001", "", "FLAIR")),
        ("Image_Data/HG/0001/VSD.Brain_3more.XX.XX.OT/VSD.Brain_3more.XX.XX.OT.6560.nii.gz", None),
        # 2014 to 2016
        ("HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1c.54514.nii.gz", ("brats_2013_pat0001", "1", "T1ce")),
        (
            "HGG/brats_tcia_pat101_0001/VSD.Brain.XX.O.MR_T2.36/VSD.Brain.XX.O.MR_T2.36.nii.gz",
            ("brats_tcia_pat101", "0001", "T2w"),
        ),
        ("HGG/brats_2013_pat0001_1/VSD.Brain_3more.XX.O.OT.54517.nii.gz", None),
        ("brats_2013_pat0001_1/T1c.nii.gz", ("brats_2013_pat0001", "1", "T1ce")),
        # 2017 to 2019
        ("HGG/Brats17_TCIA_105_1/Brats17_TCIA_105_1_t1ce.nii.gz", ("Brats17_TCIA_105", "1", "T1ce")),
        ("LGG/Brats18_2013_0_1/Brats18_2013_0_1_flair.nii.gz", ("Brats18_2013_0", "1", "FLAIR")),
        ("BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t2.nii", ("BraTS19_CBICA_AAB", "1", "T2w")),
        ("BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_seg.nii", None),
        # 2020, 2021
        ("BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz", ("BraTS20_Training_001", "", "T1ce")),
        ("BraTS20_Training_355/W39_1998.09.19_Segm.nii", None),
        ("BraTS2021_00000_T1CE.nii.gz", ("BraTS2021_00000", "", "T1ce")),
        ("BraTSReg_001/BraTSReg_001_01_0106_t1.nii.gz", ("BraTSReg_001", "01_0106", "T1w")),
        # 2023, 2024
        ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz", ("BraTS-GLI-00000", "000", "T1ce")),
        ("BraTS-GLI-00005-101/BraTS-GLI-00005-101-t1n.nii.gz", ("BraTS-GLI-00005", "101", "T1w")),
        ("BraTS-MET-00110-000-t2w.nii.gz", ("BraTS-MET-00110", "000", "T2w")),
        ("BraTS-SSA-00002-000-t2f.nii.gz", ("BraTS-SSA-00002", "000", "FLAIR")),
        ("BraTS-GoAT-00000-t2f.nii.gz", ("BraTS-GoAT-00000", "", "FLAIR")),
        ("BraTS-MEN-RT-0402-1/BraTS-MEN-RT-0402-1_t1c.nii.gz", ("BraTS-MEN-RT-0402", "1", "T1ce")),
        ("BraTS-GLI-00000-000-seg.nii.gz", None),
        ("BraTS-GLI-00000-000-t1n-voided.nii.gz", None),
        ("IXI002-Guys-0828-T1.nii.gz", None),
    ],
)
def test_brats_of_every_generation(path: str, expected: tuple[str, str, str] | None) -> None:
    assert read("brats", path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T1w.nii.gz", ("OAS30001", "d0129", "T1w")),
        ("OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz", ("OAS30001", "d0129", "T1w")),
        ("OAS30001_MR_d0129/anat3/NIFTI/sub-OAS30001_sess-d0129_T2w.nii.gz", ("OAS30001", "d0129", "T2w")),
        (
            "OAS30001_MR_d0129/scans/anat1-FLAIR/resources/NIFTI/files/sub-OAS30001_ses-d0129_FLAIR.nii.gz",
            ("OAS30001", "d0129", "FLAIR"),
        ),
        ("OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_T1w.nii.gz", ("OAS30001", "d0129", "T1w")),
        ("OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d2430_T1w.nii.gz", None),
        ("OAS30002_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_T1w.nii.gz", None),
        ("OAS30001_MR_d0129/func1/NIFTI/sub-OAS30001_ses-d0129_task-rest_bold.nii.gz", None),
        ("sub-01/anat/sub-01_T1w.nii.gz", None),
    ],
)
def test_oasis3(path: str, expected: tuple[str, str, str] | None) -> None:
    assert read("oasis3", path) == expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("{subject}-{contrast}.nii.gz", "any/where/p 7-T1.nii", ("p 7", "", "T1w")),
        ("{subject}-{contrast}.nii", "Jörg-Groß-t2-flair.NII.GZ", ("Jörg-Groß", "", "FLAIR")),
        ("{subject}-{contrast}", "p7-brain_mask.nii.gz", ("p7", "", "mask")),
        ("{contrast}_{subject}.nii", "T2_FLAIR_07.nii", ("07", "", "FLAIR")),
        ("{subject}/{subject}-{contrast}.nii.gz", "train/p7/p7-t1c.nii.gz", ("p7", "", "T1ce")),
        ("{subject}/{subject}-{contrast}.nii.gz", "p7/p8-t1c.nii.gz", None),
        ("{subject}/{subject}-{contrast}.nii.gz", "p7-t1c.nii.gz", None),
        ("sub-{subject}/ses-{session}/{contrast}.nii", "sub-1/ses-b/T1w.nii.gz", ("1", "b", "T1w")),
        ("{subject}_{session}_{contrast}.nii", "sub-1_ses-b_T1w.nii.gz", ("1", "b", "T1w")),
        ("{subject}-*-{contrast}.nii.gz", "p7-scan 12-pd.nii.gz", ("p7", "", "PDw")),
        ("a+({subject})/{contrast}.nii", "A+(7)/t1.nii", ("7", "", "T1w")),
        ("{subject}-{contrast}.nii.gz", "p7-DTI.nii.gz", None),
    ],
)
def test_patterns(pattern: str, path: str, expected: tuple[str, str, str] | None) -> None:
    assert read(pattern, path) == expected


def test_a_sites_own_names_come_before_the_usual_ones() -> None:
    own = {"T1-Flash": "T1w", "T1": "T1ce", "skull strip": "mask"}
    assert read("{subject}-{contrast}.nii", "p7-t1_flash.nii", own) == ("p7", "", "T1w")
    assert read("{subject}-{contrast}.nii", "p7-T1.nii", own) == ("p7", "", "T1ce")
    assert read("{subject}-{contrast}.nii", "p7-skull-strip.nii", own) == ("p7", "", "mask")
    assert read("ixi", "IXI002-Guys-0828-T1-FLASH.nii", own) == ("IXI002", "", "T1w")
    assert read("bids", "sub-01/sub-01_t1.nii", own) == ("01", "", "T1ce")
    assert read("bids", "sub-01/sub-01_ce-gd_T1.nii", own) == ("01", "", "T1ce")
    assert read("brats", "BraTS2021_00000_T1.nii.gz", own) == ("BraTS2021_00000", "", "T1ce")


def test_own_names_must_be_of_known_contrasts_and_clear() -> None:
    with pytest.raises(DataError, match=r'site here: contrast_names says MPRAGE = "T1", which is no contrast; write'):
        own_names({"MPRAGE": "T1"}, "here")
    with pytest.raises(DataError, match="gives t1_x as T1w and as T2w"):
        own_names({"T1-X": "T1w", "t1_x": "T2w"}, "here")


def test_aliases_are_unambiguous_and_in_the_form_in_which_they_are_compared() -> None:
    aliases = [(alias, contrast) for contrast, names in ALIASES.items() for alias in names]
    assert len({alias for alias, _ in aliases}) == len(aliases)
    assert all(alias_contrast(alias.upper().replace("_", " "), {}) == contrast for alias, contrast in aliases)
    assert alias_contrast("t1-c", {}) is None  # without contrast agent, or with?


@pytest.mark.parametrize(
    ("name", "expected"),
    [("IXI002", "IXI002"), ("HG_0001", "HG0001"), ("Jörg 7", "Jorg7"), ("Groß", "Grou00df"), ("患者1", "u60a3u80051")],
)
def test_labels_have_ascii_letters_and_digits_only(name: str, expected: str) -> None:
    assert label(name) == expected
    assert label("-_ .") == ""


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("BRATS20", r'layout "BRATS20" is unknown; did you mean "brats"\? known are bids, ixi, brats, oasis3, a file'),
        ("xyz", r'layout "xyz" is unknown; known are bids'),
        ("{subject}.nii.gz", r'the pattern "\{subject\}.nii.gz" in layout has no \{contrast\}; write \{subject\}'),
        ("{contrast}/x.nii", r"has no \{subject\}"),
        ("{subject}_{contrast}_{run}.nii", r"in layout has \{run\}; write"),
        ("{subject}_{contrast}}.nii", "in layout has a stray brace"),
    ],
)
def test_a_layout_that_cannot_be_used_says_why(layout: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        layout_named(layout, {}, "here")
