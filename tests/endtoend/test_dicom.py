"""DICOM in: folders of series written here with pydicom, converted, and read back as prepare reads them."""

from __future__ import annotations

import gzip
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from pflsynth.data.volumes import load_volume
from pflsynth.dicom.convert import ConvertReport, convert_dicom
from pflsynth.errors import DataError, UsageError

from ..data_builders import tree
from ..dicom_builders import (
    IDENTITIES,
    JANE,
    OBLIQUE,
    RICHARD,
    SAGITTAL,
    Made,
    Patient,
    common,
    datasets,
    enhanced,
    save,
    slice_path,
    write_series,
)

SITE = "oslo"
JANES = (
    Made("T1w", 2),
    Made("T2w", 3, orientation=SAGITTAL),
    Made("FLAIR", 4, orientation=OBLIQUE),
    Made("T1ce", 5, tags={"RescaleSlope": 2, "RescaleIntercept": -5}),
)
RICHARDS = (Made("T1w", 12, RICHARD), Made("FLAIR", 14, RICHARD, orientation=SAGITTAL))
OTHERS = (
    Made("T1w", 1, description="SECRET localizer of JANE DOE"),
    Made("DWI", 6),
    Made("T1w", 11, RICHARD, tags={"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
    Made("T1w", 15, RICHARD, tags={"RepetitionTime": 1500, "EchoTime": 55}),
)
OWN_RULE = """
[[rule]]
name = "odd sequence"
contrast = "PDw"
RepetitionTime = { min = 1500, max = 1500 }
"""


def nifti(out: Path, subject: str, contrast: str, session: str | None = None) -> Path:
    """Where an image is written."""
    parts = [subject] if session is None else [subject, session]
    return out.joinpath(*parts, "anat", f"{'_'.join(parts)}_{contrast}.nii.gz")


def check_voxels(path: Path, made: Made) -> None:
    """Every voxel of the file lies where the DICOM tags put it, and has its value."""
    volume = load_volume(path, "test")
    voxels = np.argwhere(np.ones(made.shape))
    places = np.array([made.place(*voxel) for voxel in voxels])
    found = (np.linalg.inv(volume.affine) @ np.c_[places, np.ones(len(places))].T)[:3].T
    np.testing.assert_allclose(found, found.round(), atol=1e-3)
    slope, intercept = made.tags.get("RescaleSlope", 1), made.tags.get("RescaleIntercept", 0)
    wanted = made.values[tuple(voxels.T)].astype(float) * slope + intercept
    np.testing.assert_array_equal(volume.data[tuple(found.round().astype(int).T)], wanted)
    assert volume.data.size == len(voxels)


def check_no_identity(*contents: bytes | str) -> None:
    """No identifying text is in any of these, in any case."""
    for content in contents:
        data = (content.encode() if isinstance(content, str) else content).upper()
        found = [text for text in IDENTITIES if text.encode() in data]
        assert not found, found


def told(report: ConvertReport) -> str:
    """All that a report says."""
    return "\n".join([repr(report), *report.notes, *report.bad.values()])


def convert(folder: Path, **options: object) -> ConvertReport:
    """Convert ``folder/in`` to ``folder/out``."""
    return convert_dicom(folder / "in", folder / "out", SITE, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the DICOM of two people in ``in``, other files among it; tests do not change it."""
    folder = tmp_path_factory.mktemp("hospital")
    write_series(folder / "in", *JANES, *RICHARDS, *OTHERS)
    (folder / "in" / "SECRET notes JANE DOE.txt").write_text("not DICOM")
    (folder / "in" / "empty").touch()
    scan = common(Made("T1w", 20), "1.2.840.10008.5.1.4.1.1.2", 0)
    scan.Modality, scan.PixelData = "CT", b"\0" * 240
    save(scan, folder / "in" / "ct")
    directory = common(Made("T1w", 21), "1.2.840.10008.1.3.10", 0)
    save(directory, folder / "in" / "DICOMDIR")
    return folder


@pytest.fixture(scope="module")
def converted(hospital: Path) -> ConvertReport:
    """The hospital's folder, converted with an own rule; tests do not change it."""
    (hospital / "own.toml").write_text(OWN_RULE)
    return convert(hospital, rules=hospital / "own.toml")


def test_contrasts_are_found_and_written_in_place(hospital: Path, converted: ConvertReport) -> None:
    assert converted.subjects == {"sub-001": ("T1w", "T1ce", "T2w", "FLAIR"), "sub-002": ("T1w", "PDw", "FLAIR")}
    assert converted.bad == {}
    written = {path for path in tree(hospital / "out") if path.startswith("sub-")}
    wanted = [nifti(Path(), subject, contrast) for subject, own in converted.subjects.items() for contrast in own]
    assert written == {path.as_posix() for path in wanted}


def test_every_voxel_keeps_its_place_and_value(hospital: Path, converted: ConvertReport) -> None:
    for made in JANES:
        check_voxels(nifti(converted.folder, "sub-001", made.kind), made)
    for made in RICHARDS:
        check_voxels(nifti(converted.folder, "sub-002", made.kind), made)


def test_what_is_passed_over_is_told_by_number_and_physics(converted: ConvertReport) -> None:
    assert "2 files passed over: not DICOM" in converted.notes
    assert "1 file passed over: DICOM, but not of modality MR" in converted.notes
    series = [note for note in converted.notes if "series" in note]
    wanted = (
        ("sub-001: series 1 (8 images, axial, TR 500 ms, TE 12 ms", 'the rule "localizer"'),
        ("sub-001: series 6 (8 images, axial, TR 5000 ms, TE 80 ms", 'the rule "echo planar'),
        ("sub-002: series 11 (", 'the rule "phase, real or imaginary part"'),
    )
    assert len(series) == len(wanted)
    for note, parts in zip(series, wanted, strict=True):
        assert all(part in note for part in parts), note


def test_without_the_own_rule_the_odd_series_is_not_guessed(hospital: Path, tmp_path: Path) -> None:
    report = convert_dicom(hospital / "in", tmp_path / "out", SITE)
    assert report.subjects["sub-002"] == ("T1w", "FLAIR")
    (note,) = [note for note in report.notes if "series 15 " in note]
    assert note.endswith("passed over: no rule fits it")
    assert "TR 1500 ms, TE 55 ms" in note


def test_nothing_tells_who_the_people_are(
    hospital: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(hospital / "in", tmp_path / "in")
    third = Patient("PID-333", "ROE^JANE", "19990102")
    for path in write_series(tmp_path / "in", Made("T1w", 30, third), Made("T1ce", 31, third)):
        malformed = path.read_bytes().replace(b"19990102", b"SECRETDA").replace(b"1.2.826.0.1", b"1.2.JANE.01")
        path.write_bytes(malformed)
    caplog.set_level(logging.DEBUG)
    slice_path(tmp_path / "in", JANES[0], 3).unlink()
    cut = slice_path(tmp_path / "in", JANES[1], 3)
    cut.write_bytes(cut.read_bytes()[:900])
    report = convert(tmp_path)
    assert sorted(report.bad) == ["sub-001"], "so that errors are looked at, too"
    assert report.subjects["sub-003"] == ("T1w", "T1ce"), "malformed tags do no harm"
    output = capfd.readouterr()
    assert output.out == output.err == ""
    check_no_identity(told(report), output.out, output.err, caplog.text)
    written = tree(tmp_path / "out")
    assert any(path.endswith(".nii.gz") for path in written)
    for path, content in written.items():
        check_no_identity(path, content, gzip.decompress(content) if path.endswith(".gz") else b"")


def test_header_has_no_text_and_gzip_no_name_and_time(converted: ConvertReport) -> None:
    for path in converted.folder.rglob("*.nii.gz"):
        header = nibabel.load(path).header
        assert not header.extensions
        for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            assert header[field].item() == b"", field
        start = path.read_bytes()[:8]
        assert start[3] == 0, "no flags: no name, no comment"
        assert start[4:8] == b"\0\0\0\0"


def test_same_input_gives_same_bytes_whatever_the_names_of_its_files(hospital: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((hospital / "in").rglob("*"), reverse=True)):
        if path.is_file():
            (tmp_path / "in").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "in" / f"IM{number:04d}")
    seen: list[tuple[int, int]] = []
    report = convert(tmp_path, rules=hospital / "own.toml", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert tree(tmp_path / "out") == tree(hospital / "out")
    assert report.bad == {}


@pytest.mark.parametrize("orientation", [SAGITTAL, OBLIQUE])
def test_multi_frame_images_are_read(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    made = Made("FLAIR", 7, orientation=orientation)
    save(enhanced(made), tmp_path / "in" / "frames")
    assert convert(tmp_path).subjects == {"sub-001": ("FLAIR",)}
    check_voxels(nifti(tmp_path / "out", "sub-001", "FLAIR"), made)


def test_two_echoes_in_one_series_are_two_contrasts(tmp_path: Path) -> None:
    first, second = Made("PDw", 4), Made("T2w", 4)
    for place, image in enumerate(datasets(first)):
        image.EchoNumbers = 1
        save(image, tmp_path / "in" / f"a{place}")
    for place, image in enumerate(datasets(second)):
        image.EchoNumbers = 2
        image.InstanceNumber = 100 + place
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.2"
        save(image, tmp_path / "in" / f"b{place}")
    assert convert(tmp_path).subjects == {"sub-001": ("T2w", "PDw")}
    check_voxels(nifti(tmp_path / "out", "sub-001", "PDw"), first)
    check_voxels(nifti(tmp_path / "out", "sub-001", "T2w"), second)


# ------------------------------------------------------------------------------------------------- one subject is bad


def only_jane_is_bad(folder: Path) -> str:
    """Convert; Richard must be whole and Jane absent; what is said of Jane."""
    write_series(folder / "in", Made("T2w", 50, RICHARD))
    report = convert(folder)
    assert report.subjects == {"sub-002": ("T2w",)}
    assert sorted(report.bad) == ["sub-001"]
    assert [path.name for path in (folder / "out").glob("*sub-*")] == ["sub-002"]
    check_no_identity(told(report))
    return report.bad["sub-001"]


def test_truncated_file(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    path = slice_path(tmp_path / "in", JANES[0], 2)
    path.write_bytes(path.read_bytes()[:-1])
    said = only_jane_is_bad(tmp_path)
    assert said.startswith("site oslo, subject sub-001, contrast T1w: series 2 (8 images, axial, TR 500 ms, TE 12 ms")
    assert "1 of its 8 files are cut short; export the series again" in said


def test_compressed_pixels_are_read_and_known_to_be_whole_or_not(tmp_path: Path) -> None:
    for place, image in enumerate(datasets(JANES[0])):
        image.compress(RLELossless, generate_instance_uid=False)
        save(image, tmp_path / "in" / str(place))
    assert convert(tmp_path).subjects == {"sub-001": ("T1w",)}
    check_voxels(nifti(tmp_path / "out", "sub-001", "T1w"), JANES[0])
    shutil.rmtree(tmp_path / "out")
    path = tmp_path / "in" / "3"
    path.write_bytes(path.read_bytes()[:-10])
    assert "1 of its 8 files are cut short" in only_jane_is_bad(tmp_path)


def test_file_cut_in_its_header(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    path = slice_path(tmp_path / "in", JANES[0], 2)
    path.write_bytes(path.read_bytes()[:400])
    report = convert(tmp_path)
    assert "1 file passed over: damaged, cut short in the header, or not permitted to read" in report.notes
    assert "images are missing" in report.bad["sub-001"]


def test_missing_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[2])
    slice_path(tmp_path / "in", JANES[2], 2).unlink()
    said = only_jane_is_bad(tmp_path)
    assert "its 7 images are 3 mm apart, but 1 of the distances differ (the largest is 6 mm)" in said


def test_slice_of_another_size(tmp_path: Path) -> None:
    first, *_ = datasets(replace(JANES[0], shape=(8, 10, 14)))
    write_series(tmp_path / "in", JANES[0])
    save(first, slice_path(tmp_path / "in", JANES[0], 0))
    assert "its images differ in size or pixel spacing" in only_jane_is_bad(tmp_path)


def test_several_volumes_in_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    for place, image in enumerate(datasets(JANES[0])):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.2"
        image.InstanceNumber = 9 + place
        save(image, tmp_path / "in" / f"again{place}")
    assert "its 16 images lie at 8 places only" in only_jane_is_bad(tmp_path)


def test_images_without_position(tmp_path: Path) -> None:
    for place, image in enumerate(datasets(JANES[0])):
        del image.ImagePositionPatient
        save(image, tmp_path / "in" / str(place))
    assert "do not tell where they lie" in only_jane_is_bad(tmp_path)


def test_pixels_that_dcm2niix_cannot_read(tmp_path: Path) -> None:
    for place, image in enumerate(datasets(JANES[0])):
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
        image.PixelData = (
            b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\x01\x02\x03\x04\xfe\xff\xdd\xe0"
            + b"\0" * 4
        )
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        save(image, tmp_path / "in" / str(place))
    assert "dcm2niix" in only_jane_is_bad(tmp_path)


def test_one_id_for_two_people(tmp_path: Path) -> None:
    other = Patient(JANE.identity, "ROE^RICHARD", "20210304", "19700101")
    write_series(tmp_path / "in", JANES[0], Made("T1w", 2, other))
    assert "one PatientID is used for several people" in only_jane_is_bad(tmp_path)


# ------------------------------------------------------------------------------------------- copies, repeats, choices


def test_copies_count_once_unless_they_differ(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    shutil.copytree(tmp_path / "in", tmp_path / "in" / "copy")
    assert convert(tmp_path).subjects == {"sub-001": ("T1w",)}
    check_voxels(nifti(tmp_path / "out", "sub-001", "T1w"), JANES[0])
    path = slice_path(tmp_path / "in" / "copy", JANES[0], 4)
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x01")
    said = convert(tmp_path, force=True).bad["sub-001"]
    assert "1 of its images are there twice with different contents" in said


def test_of_repeated_scans_the_last_whole_one_is_taken(tmp_path: Path) -> None:
    stopped = Made("T1w", 9, shape=(5, 10, 12))
    write_series(tmp_path / "in", Made("T1w", 3), Made("T1w", 7), stopped)
    report = convert(tmp_path)
    assert report.subjects == {"sub-001": ("T1w",)}
    check_voxels(nifti(tmp_path / "out", "sub-001", "T1w"), Made("T1w", 7))
    (note,) = report.notes
    assert "series 7 (8 images" in note
    assert "taken (the most images, then the last), not series 3 (8 images" in note


def test_different_series_of_one_contrast_are_a_question_that_a_rule_answers(tmp_path: Path) -> None:
    axial, sagittal = Made("T1w", 3), Made("T1w", 5, orientation=SAGITTAL)
    write_series(tmp_path / "in", axial, sagittal)
    said = only_jane_is_bad(tmp_path)
    assert (
        "which of these series is it: series 3 (8 images, axial, TR 500 ms, TE 12 ms, flip angle 90 degrees); " in said
    )
    assert "series 5 (8 images, sagittal, " in said
    assert 'the rule "T1 by short TR"' in said
    rules = tmp_path / "own.toml"
    for contrast, plane, taken in (("T1w", "sagittal", sagittal), ("skip", "sagittal", axial)):
        rules.write_text(
            f"[[rule]]\nname = 'mine'\ncontrast = '{contrast}'\nplane = '{plane}'\nEchoTime = {{ max = 50 }}"
        )
        report = convert(tmp_path, rules=rules, force=True)
        assert report.subjects["sub-001"] == ("T1w",)
        check_voxels(nifti(tmp_path / "out", "sub-001", "T1w"), taken)


# ----------------------------------------------------------------------------------------- sessions, numbers, the key


def test_sessions_are_in_the_order_of_their_dates(tmp_path: Path) -> None:
    late, early = replace(JANE, date="20210304"), replace(JANE, date="20200102")
    write_series(
        tmp_path / "in", Made("T1w", 1, late), Made("T1w", 2, early), Made("DWI", 3, replace(JANE, date="19990101"))
    )
    report = convert(tmp_path)
    assert report.subjects == {"sub-001_ses-01": ("T1w",), "sub-001_ses-02": ("T1w",)}
    check_voxels(nifti(tmp_path / "out", "sub-001", "T1w", "ses-01"), Made("T1w", 2, early))
    check_voxels(nifti(tmp_path / "out", "sub-001", "T1w", "ses-02"), Made("T1w", 1, late))


def test_people_without_id_are_never_put_together(tmp_path: Path) -> None:
    first, second = Patient("", "DOE^JANE", "20200102"), Patient("", "ROE^RICHARD", "20210304")
    write_series(tmp_path / "in", Made("T1w", 1, first), Made("T1w", 1, second))
    report = convert(tmp_path)
    assert sorted(report.subjects) == ["sub-001", "sub-002"]
    assert "2 studies have no PatientID" in report.notes[-1]
    check_no_identity(told(report))


def test_key_file_keeps_numbers_and_is_for_its_owner_only(tmp_path: Path) -> None:
    key = tmp_path / "key.csv"
    write_series(tmp_path / "in", Made("T1w", 12, RICHARD))
    convert(tmp_path, key_file=key)
    before = tree(tmp_path / "out")
    write_series(tmp_path / "in", Made("T1w", 2, JANE))
    report = convert(tmp_path, key_file=key)
    assert report.subjects == {"sub-002": ("T1w",)}, "Jane's ID sorts before Richard's, who keeps his number"
    assert report.notes[-1].startswith("there already, and left as they are: sub-001")
    after = tree(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    check_voxels(nifti(tmp_path / "out", "sub-002", "T1w"), Made("T1w", 2))
    assert key.read_text() == "PatientID,subject\nPID-222,sub-001\nPID-111,sub-002\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert convert(tmp_path, key_file=key, force=True).subjects == {"sub-001": ("T1w",), "sub-002": ("T1w",)}
    assert tree(tmp_path / "out") == after


def test_key_file_within_the_output_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    with pytest.raises(UsageError, match="must not tell who the people are"):
        convert(tmp_path, key_file=tmp_path / "out" / "deep" / "key.csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,subject\nPID-111,sub-001\n", "its first line must be PatientID,subject"),
        ("PatientID,subject\nPID-111,Jane\n", "line 2 is not a PatientID and a subject"),
        ("PatientID,subject\nPID-111,sub-001\nPID-222,sub-001\n", "is in it twice"),
        ("PatientID,subject\nPID-111,sub-001\nPID-111,sub-002\n", "is in it twice"),
    ],
)
def test_wrong_key_files_are_refused_without_telling_of_anyone(tmp_path: Path, text: str, said: str) -> None:
    write_series(tmp_path / "in", JANES[0])
    (tmp_path / "key.csv").write_text(text)
    with pytest.raises(UsageError, match=said) as failure:
        convert(tmp_path, key_file=tmp_path / "key.csv")
    assert "111" not in str(failure.value)
    assert (tmp_path / "key.csv").read_text() == text


def test_unknown_subjects_in_the_output_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0], Made("T1w", 12, RICHARD))
    convert(tmp_path)
    before = tree(tmp_path / "out")
    for options in ({}, {"key_file": tmp_path / "new.csv"}):
        with pytest.raises(UsageError, match="has 2 subjects whose PatientID is not known"):
            convert(tmp_path, **options)
        assert tree(tmp_path / "out") == before
    assert not (tmp_path / "new.csv").exists()
    shutil.rmtree(tmp_path / "in")
    write_series(tmp_path / "in", Made("T1w", 12, RICHARD))
    assert convert(tmp_path, force=True).subjects == {"sub-001": ("T1w",)}
    assert [path.name for path in sorted((tmp_path / "out").glob("sub-*"))] == ["sub-001"]


def test_subjects_that_were_not_converted_here_are_never_removed(tmp_path: Path) -> None:
    write_series(tmp_path / "in", JANES[0])
    (tmp_path / "out" / "sub-01").mkdir(parents=True)
    with pytest.raises(UsageError, match="were not converted from DICOM by pflsynth"):
        convert(tmp_path, force=True)
    assert (tmp_path / "out" / "sub-01").is_dir()


def test_what_a_kill_left_is_mended(tmp_path: Path) -> None:
    key, out = tmp_path / "key.csv", tmp_path / "out"
    write_series(tmp_path / "in", JANES[0])
    convert(tmp_path, key_file=key)
    before = tree(out)
    (out / "sub-001").rename(out / ".sub-001.replaced")
    (out / ".sub-001.new" / "anat").mkdir(parents=True)
    (out / ".sub-009.replaced").mkdir()
    assert convert(tmp_path, key_file=key).subjects == {}
    assert tree(out) == before
    assert not list(out.glob(".sub-*"))


# ----------------------------------------------------------------------------------------------- nothing can be done


def test_folder_without_mr_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="site oslo: the folder given as --from-dicom does not exist"):
        convert(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "JANE DOE.txt").write_text("SECRET")
    with pytest.raises(DataError, match=r"holds no MR image .* \(1 file passed over: not DICOM\)") as failure:
        convert(tmp_path)
    check_no_identity(str(failure.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["pydicom", "dcm2niix"])
def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(DataError, match=rf'needs the package {package}: pip install "pflsynth\[imaging\]"'):
        convert(tmp_path)


def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    write_series(tmp_path / "in", *JANES[:1])
    convert(tmp_path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_conversion_that_breaks_off_leaves_whole_subjects_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.csv"
    write_series(tmp_path / "in", JANES[0], JANES[1], RICHARDS[0])
    convert_dicom(tmp_path / "in", tmp_path / "whole", SITE)
    calls: list[object] = []
    run = subprocess.run

    def struck(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", struck)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path, key_file=key)
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    convert(tmp_path, key_file=key)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


# -------------------------------------------------------------------------------- what dcm2niix makes is not believed


def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affine: np.ndarray, slices: int, copies: int, code: int
) -> None:
    """Put a program in the place of dcm2niix that prints names and makes NIfTI files of this kind."""
    image = nibabel.Nifti1Image(np.arange(120 * slices, dtype=np.uint16).reshape(12, 10, slices), affine)
    nibabel.save(image, tmp_path / "made.nii")
    lines = [
        f"#!{sys.executable}",
        "import shutil, sys",
        "print('PatientName DOE^JANE'); print('DOE^JANE', file=sys.stderr)",
        *(f"shutil.copy({str(tmp_path / 'made.nii')!r}, sys.argv[-2] + '/image{copy}.nii')" for copy in range(copies)),
        f"sys.exit({code})",
    ]
    program = tmp_path / "program"
    program.write_text("\n".join(lines))
    program.chmod(0o700)
    monkeypatch.setattr("dcm2niix.bin_path", program)


@pytest.mark.parametrize(
    ("shift", "slices", "copies", "code", "said"),
    [
        (0, 8, 1, 0, None),
        (0, 8, 1, 1, None),
        (5, 8, 1, 0, "puts a corner 5 mm away from where the DICOM tags say (allowed: 0.375 mm)"),
        (0, 7, 1, 0, "made a volume of 12 x 10 x 7 voxels of 8 images of 10 x 12"),
        (0, 8, 2, 0, "dcm2niix makes 2 volumes of it"),
        (0, 8, 0, 0, "could not convert it (exit code 0)"),
        (0, 8, 1, 4, "could not convert it (exit code 4)"),
    ],
)
def test_volumes_are_compared_with_the_tags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    shift: float,
    slices: int,
    copies: int,
    code: int,
    said: str | None,
) -> None:
    affine = np.diag([-0.75, -1.5, 3.0, 1.0])
    affine[:3, 3] = (20, 30 + shift, -40)
    stand_in(tmp_path, monkeypatch, affine, slices, copies, code)
    write_series(tmp_path / "in", JANES[0])
    report = convert(tmp_path)
    assert capfd.readouterr() == ("", "")
    check_no_identity(told(report))
    if said is None:
        assert report.subjects == {"sub-001": ("T1w",)}
    else:
        assert said in report.bad["sub-001"]
        assert not list((tmp_path / "out").glob("*sub-*"))
