"""Subjects, sessions and the choice among several files, whatever the layout."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pflsynth.data.subjects import Found, find_subjects
from pflsynth.errors import DataError

CONTRASTS = ("T1w", "T1ce", "T2w", "FLAIR")
BY_NAME = "{subject}-{contrast}.nii.gz"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def find(folder: Path, layout: str = "bids", *more: str) -> Found:
    return find_subjects(folder, layout, (*CONTRASTS, *more), "here")


def names(found: Found) -> list[str]:
    return [subject.name for subject in found.subjects]


def test_bids_folders_are_found_and_sorted(tmp_path: Path) -> None:
    files = [
        touch(tmp_path / "sub-02/anat/sub-02_T1w.nii.gz"),
        touch(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii"),
        touch(tmp_path / "sub-01/ses-a/sub-01_ses-a_ce-gd_T1w.nii.gz"),
        touch(tmp_path / "sub-04/sub-04_T2w.nii.gz"),
        touch(tmp_path / "SUB-05/sub-05_t2W.NII.GZ"),
    ]
    touch(tmp_path / "sub-01/anat/sub-01_PDw.nii.gz")  # not asked for, and not of session a
    touch(tmp_path / "sub-02/anat/sub-01_FLAIR.nii.gz")  # another subject's name
    touch(tmp_path / "sub-02/anat/._sub-02_FLAIR.nii.gz")  # what macOS leaves
    touch(tmp_path / "sub-02/.hidden/sub-02_FLAIR.nii.gz")
    touch(tmp_path / "sub-02/func/sub-02_FLAIR.nii.gz")
    touch(tmp_path / "derivatives/sub-03/anat/sub-03_T1w.nii.gz")
    (tmp_path / "sub-03").mkdir()
    found = find(tmp_path)
    assert names(found) == ["sub-01", "sub-01_ses-a", "sub-02", "sub-03", "sub-04", "sub-05"]
    assert [subject.person for subject in found.subjects[:3]] == ["sub-01", "sub-01", "sub-02"]
    assert [subject.volumes for subject in found.subjects] == [
        {},
        {"T1w": files[1], "T1ce": files[2]},
        {"T1w": files[0]},
        {},
        {"T2w": files[3]},
        {"T2w": files[4]},
    ]
    assert not found.bad
    assert found.notes == (
        "passed over, since folder and file name tell different subjects or sessions: sub-02/anat/sub-01_FLAIR.nii.gz",
    )


def test_volumes_are_in_the_order_of_the_contrasts_and_the_mask_is_apart(tmp_path: Path) -> None:
    for name in ("T2w", "T1w", "FLAIR", "desc-brain_mask", "desc-lesion_mask"):
        touch(tmp_path / f"sub-01/sub-01_{name}.nii.gz")
    for wanted in (("FLAIR", "T1w", "T2w"), ("mask", "FLAIR", "T1w", "T2w")):
        subject = find_subjects(tmp_path, "bids", wanted, "here").subjects[0]
        assert list(subject.volumes) == ["FLAIR", "T1w", "T2w"]
        assert subject.mask == tmp_path / "sub-01/sub-01_desc-brain_mask.nii.gz"


def test_sessions_are_subjects_of_one_person_and_contrasts_are_paired_within(tmp_path: Path) -> None:
    for name in ("01_ses-1_T1w", "01_ses-1_T2w", "01_ses-2_T1w", "02_ses-1_T1w", "01_ses-3_mask"):
        person, session = name.split("_")[:2]
        touch(tmp_path / f"sub-{person}/{session}/anat/sub-{name}.nii.gz")
    found = find(tmp_path)
    assert names(found) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert [subject.person for subject in found.subjects] == ["sub-01", "sub-01", "sub-02"]
    assert [list(subject.volumes) for subject in found.subjects] == [["T1w", "T2w"], ["T1w"], ["T1w"]]


def test_of_several_runs_the_last_is_taken_and_noted(tmp_path: Path) -> None:
    for name in ("run-1_T1w", "run-2_T1w", "run-10_T1w", "T2w", "run-2_T2w", "acq-x_run-1_FLAIR"):
        touch(tmp_path / f"sub-01/anat/sub-01_{name}.nii.gz")
    found = find(tmp_path)
    assert not found.bad
    assert [path.name for path in found.subjects[0].volumes.values()] == [
        "sub-01_run-10_T1w.nii.gz",
        "sub-01_run-2_T2w.nii.gz",
        "sub-01_acq-x_run-1_FLAIR.nii.gz",
    ]
    assert found.notes == (
        "repeated scans, of which the last run is taken: sub-01 T1w (sub-01/anat/sub-01_run-10_T1w.nii.gz, of 3), "
        "sub-01 T2w (sub-01/anat/sub-01_run-2_T2w.nii.gz, of 2)",
    )


@pytest.mark.parametrize(
    "pair",
    [
        ("acq-mprage_T1w.nii.gz", "acq-space_T1w.nii.gz"),
        ("acq-mprage_T1w.nii.gz", "T1w.nii.gz"),
        ("rec-norm_run-1_T1w.nii.gz", "run-2_T1w.nii.gz"),
        ("echo-1_T1w.nii.gz", "echo-2_T1w.nii.gz"),
        ("part-mag_T1w.nii.gz", "part-phase_T1w.nii.gz"),
        ("run-01_T1w.nii.gz", "run-1_T1w.nii.gz"),
        ("T1w.nii", "T1w.nii.gz"),
        ("T1w.nii.gz", "t1w.nii.gz"),
    ],
)
def test_other_candidates_are_a_question_and_good_subjects_are_kept(tmp_path: Path, pair: tuple[str, str]) -> None:
    paths = sorted(f"sub-01/anat/sub-01_{name}" for name in pair)
    for path in (*paths, "sub-02/anat/sub-02_T1w.nii.gz"):
        touch(tmp_path / path)
    found = find(tmp_path)
    assert names(found) == ["sub-02"]
    assert found.bad == {
        "sub-01": f"site here, subject sub-01, contrast T1w: 2 files fit, {paths[0]} and {paths[1]}; keep one and "
        "move the others out, or list the one to use in a .csv layout"
    }
    assert names(find_subjects(tmp_path, "bids", ("T2w",), "here")) == ["sub-01", "sub-02"]


def test_all_questions_of_a_subject_are_asked_at_once(tmp_path: Path) -> None:
    for name in ("acq-x_T1w", "acq-y_T1w", "rec-x_T2w", "rec-y_T2w"):
        touch(tmp_path / f"sub-01/sub-01_{name}.nii.gz")
    assert [line.split(":")[0] for line in find(tmp_path).bad["sub-01"].splitlines()] == [
        "site here, subject sub-01, contrast T1w",
        "site here, subject sub-01, contrast T2w",
    ]


def test_several_masks_are_a_question_only_where_a_mask_is_wanted(tmp_path: Path) -> None:
    for name in ("T1w", "space-MNI_desc-brain_mask", "desc-brain_mask"):
        touch(tmp_path / f"sub-01/sub-01_{name}.nii.gz")
    found = find(tmp_path)
    assert found.subjects[0].mask is None
    assert found.notes == ("no brain mask is taken where several files fit: sub-01",)
    assert "contrast mask: 2 files fit" in find(tmp_path, "bids", "mask").bad["sub-01"]


def test_ixi_in_its_folders_or_in_one(tmp_path: Path) -> None:
    for folder in ("apart", "together"):
        for contrast in ("T1", "T2", "PD"):
            inner = f"IXI-{contrast}" if folder == "apart" else "all"
            touch(tmp_path / folder / inner / f"IXI002-Guys-0828-{contrast}.nii.gz")
        touch(tmp_path / folder / "IXI012-HH-1211-T2.nii.gz")
        touch(tmp_path / folder / "IXI013-HH-1212-MRA.nii.gz")
        found = find_subjects(tmp_path / folder, "ixi", ("T1w", "PDw"), "here")
        assert names(found) == ["sub-IXI002", "sub-IXI012"]
        assert list(found.subjects[0].volumes) == ["T1w", "PDw"]
        assert found.subjects[1].volumes == {}
        assert found.notes == (
            "passed over, since their names tell none of the contrasts (sites.here.contrast_names names a site's own): "
            "IXI013-HH-1212-MRA.nii.gz",
        )


def test_time_points_of_brats_are_sessions(tmp_path: Path) -> None:
    for case in ("00000-000", "00000-001", "00001-000"):
        for contrast in ("t1c", "t1n", "t2f", "t2w", "seg"):
            touch(tmp_path / f"BraTS-GLI-{case}/BraTS-GLI-{case}-{contrast}.nii.gz")
    found = find(tmp_path, "brats")
    assert names(found) == ["sub-BraTSGLI00000_ses-000", "sub-BraTSGLI00000_ses-001", "sub-BraTSGLI00001"]
    assert all(list(subject.volumes) == ["T1w", "T1ce", "T2w", "FLAIR"] for subject in found.subjects)
    assert found.notes[0].endswith("BraTS-GLI-00001-000/BraTS-GLI-00001-000-seg.nii.gz")


def test_notes_name_a_few_files_and_count_the_others(tmp_path: Path) -> None:
    for number in range(5):
        touch(tmp_path / f"p{number}-T1.nii.gz")
        touch(tmp_path / f"p{number}-seg.nii.gz")
    assert find(tmp_path, BY_NAME).notes == (
        "passed over, since their names do not fit the layout, or tell no known contrast: p0-seg.nii.gz, "
        "p1-seg.nii.gz, p2-seg.nii.gz and 2 more",
    )


@pytest.mark.parametrize(
    ("first", "second", "name"), [("a-1", "a1", "sub-a1"), ("A1", "a1", "sub-A1"), ("é", "e", "sub-e")]
)
def test_names_that_become_equal_are_refused_and_others_kept(
    tmp_path: Path, first: str, second: str, name: str
) -> None:
    for subject in (first, second, "fine"):
        touch(tmp_path / f"{subject}-T1.nii.gz")
    found = find(tmp_path, BY_NAME)
    assert names(found) == ["sub-fine"]
    assert list(found.bad) == [name]
    assert f"subject {name}: {min(first, second)} and {max(first, second)} are too alike" in found.bad[name]


def test_spaces_and_letters_beyond_ascii_work_in_one_or_two_code_points(tmp_path: Path) -> None:
    composed, decomposed = "J\N{LATIN SMALL LETTER O WITH DIAERESIS}rg Groß", "Jo\N{COMBINING DIAERESIS}rg Groß"
    files = [touch(tmp_path / "Bilder ü" / f"{composed}-T1.nii.gz"), touch(tmp_path / f"{decomposed}-T2.nii.gz")]
    found = find(tmp_path, BY_NAME)
    assert names(found) == ["sub-JorgGrou00df"]
    assert found.subjects[0].volumes == {"T1w": files[0], "T2w": files[1]}


def test_a_name_that_is_not_utf8_makes_its_subject_bad(tmp_path: Path) -> None:
    try:
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff1-T1.nii.gz")))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    touch(tmp_path / "p2-T1.nii.gz")
    found = find(tmp_path, BY_NAME)
    assert names(found) == ["sub-p2"]
    assert found.bad == {"sub-p1": r"site here, subject sub-p1, contrast T1w: p\udcff1-T1.nii.gz: its name is not "
                         "UTF-8; rename it"}  # fmt: skip


def test_links_are_followed_and_loops_are_cut(tmp_path: Path) -> None:
    store = touch(tmp_path / "store/x/sub-01_T1w.nii.gz").parent
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sub-01").symlink_to(store)
    (store / "anat").symlink_to(folder)
    (folder / "sub-02").mkdir()
    (folder / "sub-02/anat").symlink_to(folder / "sub-02")
    (folder / "sub-02/sub-02_T2w.nii.gz").symlink_to(store / "sub-01_T1w.nii.gz")
    found = find(folder)
    assert [subject.volumes for subject in found.subjects] == [
        {"T1w": folder / "sub-01/sub-01_T1w.nii.gz"},
        {"T2w": folder / "sub-02/sub-02_T2w.nii.gz"},
    ]
    assert found.notes == ("passed over, since they were read already in another folder: sub-01/anat, sub-02/anat",)


def test_a_folder_is_read_under_its_own_name_rather_than_through_a_link(tmp_path: Path) -> None:
    touch(tmp_path / "z/p1-T1.nii.gz")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert find(tmp_path, BY_NAME).subjects[0].volumes == {"T1w": tmp_path / "z/p1-T1.nii.gz"}


def test_broken_links_and_pipes_make_their_subject_bad_and_others_go_on(tmp_path: Path) -> None:
    for number in range(1, 7):
        touch(tmp_path / f"sub-0{number}/sub-0{number}_T1w.nii.gz")
    (tmp_path / "sub-02/sub-02_T2w.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "sub-03/sub-03_T2w.nii.gz").symlink_to("sub-03_T2w.nii.gz")
    os.mkfifo(tmp_path / "sub-04/sub-04_T2w.nii.gz")
    (tmp_path / "sub-05/sub-05_PDw.nii.gz").symlink_to(tmp_path / "gone.nii.gz")  # not asked for
    (tmp_path / "sub-06/sub-06_T2w.json").symlink_to(tmp_path / "gone.json")
    (tmp_path / "sub-07").symlink_to(tmp_path / "gone")
    found = find(tmp_path)
    assert names(found) == ["sub-01", "sub-05", "sub-06"]
    assert list(found.bad) == ["sub-02", "sub-03", "sub-04", "sub-07"]
    assert found.bad["sub-02"] == (
        "site here, subject sub-02, contrast T2w: sub-02/sub-02_T2w.nii.gz: is a broken link, or leads to what is no "
        "file; restore what it leads to, or remove it"
    )
    assert "folder sub-07: is a broken link" in found.bad["sub-07"]


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """``os.scandir`` may not read a folder; done so, because nothing is forbidden to root."""
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_without_permission_makes_its_subject_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        touch(tmp_path / f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz")
    forbid(monkeypatch, tmp_path / "sub-02/anat")
    found = find(tmp_path)
    assert names(found) == ["sub-01"]
    reason = "no permission to read it; ask for read access to the folder"
    assert found.bad == {"sub-02": f"site here, folder sub-02/anat: {reason}"}
    touch(tmp_path / "p1-T1.nii.gz")
    found = find(tmp_path, BY_NAME)
    assert names(found) == ["sub-p1"]
    assert list(found.bad) == ["sub-02/anat"]


def test_a_site_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=f"site here, folder {tmp_path}: no permission to read it; ask for read access"):
        find(tmp_path)


def test_folders_that_are_too_deep_are_passed_over(tmp_path: Path) -> None:
    deep = "/".join("d" * 11)
    touch(tmp_path / deep / "p1-T1.nii.gz")
    touch(tmp_path / "p2-T1.nii.gz")
    found = find(tmp_path, BY_NAME)
    assert names(found) == ["sub-p2"]
    assert found.notes == (f"passed over, since they lie too deep: {deep}",)


def test_no_folder_and_no_subjects_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"site here: there is no folder .*absent; set sites\.here\.data"):
        find(tmp_path / "absent")
    touch(tmp_path / "01_T1w.nii.gz")
    with pytest.raises(DataError, match=r"has no subjects; looked for folders sub-<name>.*anat/$"):
        find(tmp_path)
    with pytest.raises(DataError, match=r'has no subjects; looked for files named "\{subject\}-\{contrast\}.nii.gz"'):
        find(tmp_path, BY_NAME)


def test_another_layout_that_fits_is_named(tmp_path: Path) -> None:
    for number in range(3):
        touch(tmp_path / f"IXI-T1/IXI00{number}-Guys-0828-T1.nii.gz")
    with pytest.raises(DataError, match=r"no subjects; looked .*; found 3 subjects in layout ixi: set sites.here.lay"):
        find(tmp_path)
    (tmp_path / "sub-01").mkdir()
    assert find(tmp_path).notes == ("found 3 subjects in layout ixi: set sites.here.layout",)
    touch(tmp_path / "sub-01/sub-01_T1w.nii.gz")
    assert find(tmp_path).notes == ()
    assert names(find(tmp_path, "ixi")) == ["sub-IXI000", "sub-IXI001", "sub-IXI002"]


def listed(tmp_path: Path, *lines: str, encoding: str = "utf-8") -> Found:
    (tmp_path / "list.csv").write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return find(tmp_path, "list.csv")


def test_a_list_names_the_images(tmp_path: Path) -> None:
    inside, outside = touch(tmp_path / "site/a b/ü.nii"), touch(tmp_path / "elsewhere/x.NII.GZ")
    found = listed(
        tmp_path / "site",
        "Age;Subject;Session;Contrast;Path",
        "7;Jörg 1;2020-01-02;T1;a b/ü.nii",
        f"7;sub-Jörg 1;2020-01-02;t2_flair;{outside}",
        ";;;;",
        "7;Jörg 1;ses-2;T1ce;../elsewhere/x.NII",
        "7;p2;;brain mask;../elsewhere/x.NII.gz",
        f"7;p3;;T1;{'x' * 300}.nii",
        encoding="utf-8-sig",
    )
    assert names(found) == ["sub-Jorg1_ses-20200102", "sub-p2"]
    assert found.subjects[0].volumes == {"T1w": inside, "FLAIR": outside}
    assert found.subjects[0].person == "sub-Jorg1"
    assert "(File name too long); correct its path" in found.bad.pop("sub-p3")
    assert found.bad == {
        "sub-Jorg1_ses-2": "site here, subject sub-Jorg1_ses-2, contrast T1ce: ../elsewhere/x.NII: there is no such "
        "file; correct its path in the list"
    }


def test_every_bad_line_of_a_list_is_named(tmp_path: Path) -> None:
    lines = [
        "p1,T1w,a.nii",
        "p1,T1w,b.nii",
        "p2,T1w,a.nii",
        "p3,,c.nii",
        "p3,T1w",
        "p4,T9,d.nii",
        "p5,T1w,e.mha",
        "--,T1w,f.nii",
    ]
    with pytest.raises(DataError) as caught:
        listed(tmp_path, "subject,contrast,path", *lines)
    place = f"site here: {tmp_path}/list.csv, line"
    assert str(caught.value).splitlines() == [
        f"{place} 3: lists the image of line 2 again; remove one of the two",
        f"{place} 4: lists the file of line 2 again; correct or remove one of the two",
        f"{place} 5: has no contrast; fill it in, or remove the line",
        f"{place} 6: has no path; fill it in, or remove the line",
        f'{place} 7: contrast "T9" is unknown; write one of T1w, T1ce, T2w, PDw, FLAIR, mask',
        f"{place} 8: e.mha is not named as NIfTI; list a file that ends in .nii.gz or .nii",
        f'{place} 9: subject "--" has neither letter nor digit; write another name',
    ]


def test_a_list_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.csv: there is no such list; set sites\.here\.layout"):
        find(tmp_path, "list.csv")
    with pytest.raises(DataError, match=r"line 1: has no column contrast and no path \(found: subject, file\)"):
        listed(tmp_path, "subject,file", "p1,a.nii")
    with pytest.raises(DataError, match="is not UTF-8 text; save it as CSV UTF-8"):
        listed(tmp_path, "subject,contrast,path", "Jörg,T1w,a.nii", encoding="latin-1")
    with pytest.raises(DataError, match="line 2: is not CSV"):
        listed(tmp_path, "subject,contrast,path", 'p1,T1w,"a.nii')
    for lines in ((), ("subject,contrast,path",)):
        with pytest.raises(DataError, match=r"has no subjects; looked for lines in list\.csv"):
            listed(tmp_path, *lines)


def test_unknown_layouts_and_contrast_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='layout "bid" is unknown; did you mean "bids"'):
        find(tmp_path, "bid")
    with pytest.raises(DataError, match="contrast_names says"):
        find_subjects(tmp_path, "bids", CONTRASTS, "here", {"x": "y"})


@pytest.mark.slow
def test_two_thousand_subjects_are_found_in_a_moment(tmp_path: Path) -> None:
    for number in range(2000):
        folder = tmp_path / f"sub-{number:04d}"
        folder.mkdir()
        for contrast in CONTRASTS:
            (folder / f"sub-{number:04d}_{contrast}.nii.gz").touch()
    for layout in ("bids", "{subject}/{subject}_{contrast}.nii.gz"):
        start = time.process_time()
        found = find(tmp_path, layout)
        assert time.process_time() - start < 2
        assert len(found.subjects) == 2000
        assert all(len(subject.volumes) == 4 for subject in found.subjects)
