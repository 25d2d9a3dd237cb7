"""Whole volumes in and out: the network sees what it was trained on, and the output lies where the input lies."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import pflsynth
from pflsynth.config import Task
from pflsynth.data.grid import SliceGrid
from pflsynth.data.manifest import ContrastIntensity, SiteIntensity
from pflsynth.data.normalizers import NORMALIZERS
from pflsynth.data.prepare import prepare_site
from pflsynth.data.scaling import Scale, find_head
from pflsynth.data.slices import SliceStore
from pflsynth.data.volumes import load_volume
from pflsynth.errors import DataError, UsageError
from pflsynth.federation.methods import METHODS
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import sha256_of_file
from pflsynth.synthesis.synthesize import (
    provenance_path,
    synthesize_file,
    synthesize_folder,
    target_name,
)
from pflsynth.synthesis.volume import synthesize_volume

from ..data_builders import AFFINE, federation, head, image_path, tree, write_nifti

TASK = Task.parse("T1w->T2w")
INTENSITY = SiteIntensity(
    normalizer="percentile",
    contrasts={
        "T1w": ContrastIntensity(reference=(), typical=(0.0, 200.0)),
        "T2w": ContrastIntensity(reference=(), typical=(10.0, 410.0)),
    },
)
SIZES = {"model": {"width": 8, "residual_layers": 1}, "threads": 1}


def oriented(path: Path, data: np.ndarray, codes: str) -> Path:
    """Write a RAS array so that it is stored in another orientation, with an oblique affine and header units."""
    turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.1, 0.05, -0.08), (3, -7, 11))
    image = nibabel.Nifti1Image(data.astype(np.float32), turn @ AFFINE)
    wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))
    image.set_sform(image.affine, code=2)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def new_model(tmp_path: Path, measured: SiteIntensity = INTENSITY, **settings: object) -> PersonalisedModel:
    """An untrained model of the site "here"."""
    config = federation(tmp_path, **{**SIZES, **settings})
    generator = METHODS["pflsynth"].generator(config, config.site_names[0]).eval()
    return PersonalisedModel(config, "here", 7, generator, measured, "f" * 64)


@pytest.fixture
def model(tmp_path: Path) -> PersonalisedModel:
    return new_model(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return oriented(tmp_path / "sub-01_T1w.nii.gz", head(noise=4), "LPS")


# ----------------------------------------------------------------------------------------------- what the network sees


NATIVE = {"image": {"size": 32}}
ROADS = {
    "native": NATIVE,
    "coarser": {"image": {"size": 24, "spacing_mm": 1.3}},
    "finer": {"image": {"size": 40, "spacing_mm": 0.7}},
    **{name: {**NATIVE, "intensity": {"normalizer": name}} for name in NORMALIZERS if name != "percentile"},
    "bias corrected": {**NATIVE, "intensity": {"bias_correction": True}},
    "other voxels": {**NATIVE, "registration": {"voxel_mm": (1.2, 1.1, 2.0)}},
}


@pytest.mark.parametrize(
    ("codes", "road"),
    [*((codes, "native") for codes in ("RAS", "LAS", "LPS", "ILA")), *(("LPS", road) for road in ROADS)],
)
def test_the_network_sees_what_prepare_stored_bit_for_bit(tmp_path: Path, codes: str, road: str) -> None:
    config = federation(tmp_path, **{**SIZES, **ROADS[road]}, slices={"min_area": 0.5})
    for number in (1, 2):
        for contrast, bright in (("T1w", 200.0), ("T2w", 300.0)):
            path = image_path(tmp_path / "here", f"sub-{number:02d}", contrast)
            oriented(path, head(bright=bright, noise=4, seed=number), codes)
    prepare_site(config, "here", tmp_path / "prepared")
    store = SliceStore(tmp_path / "prepared")
    model = new_model(tmp_path, store.manifest.intensity, **ROADS[road], slices={"min_area": 0.5})
    seen: list[torch.Tensor] = []
    form = model.inference_form(TASK)
    form.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    model = model.with_network(TASK, form)
    for subject in (*store.subjects("train"), *store.subjects("test")):
        seen.clear()
        volume = load_volume(image_path(tmp_path / "here", subject.name, "T1w"), "")
        assert synthesize_volume(volume, model, TASK).shape == volume.data.shape
        network_input = torch.cat(seen)[:, 0].numpy()
        stored = store.slices(subject.name, "T1w")
        assert len(network_input) > len(stored)  # every slice of the head, kept or not
        given = {image.tobytes() for image in network_input}
        assert all(image.tobytes() in given for image in stored)
        assert form.training is False
    assert len(store.manifest.subjects) == 2


def test_the_code_is_that_of_site_and_task(model: PersonalisedModel, source: Path) -> None:
    codes: list[torch.Tensor] = []
    model.generator.mapper.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
    synthesize_volume(load_volume(source, ""), model, TASK)
    contrasts = model.config.contrasts
    wanted = [1.0, *(float(name == "T1w") for name in contrasts), *(float(name == "T2w") for name in contrasts)]
    assert all(row == wanted for row in torch.cat(codes).tolist())


# ------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_the_output_keeps_grid_orientation_and_units(tmp_path: Path, codes: str, ending: str) -> None:
    path = oriented(tmp_path / f"sub-01_T1w{ending}", head(noise=4), codes)
    out = tmp_path / f"sub-01_T2w{ending}"
    synthesize_file(path, out, new_model(tmp_path), TASK)
    given, made = nibabel.load(path), nibabel.load(out)
    assert made.shape == given.shape
    assert np.array_equal(made.affine, given.affine)
    assert nibabel.aff2axcodes(made.affine) == tuple(codes)
    for name in ("get_sform", "get_qform"):
        (wanted, wanted_code), (found, found_code) = (getattr(each.header, name)(coded=True) for each in (given, made))
        assert found_code == wanted_code
        assert np.allclose(found, wanted)
    assert made.header.get_xyzt_units() == ("mm", "sec")
    assert made.header.get_zooms() == given.header.get_zooms()
    assert made.get_data_dtype() == np.float32


def test_values_are_the_networks_in_the_sites_typical_units(model: PersonalisedModel, source: Path) -> None:
    volume = load_volume(source, "")
    own = find_head(volume.data, "")
    scale, mask = Scale.linear(own.low, own.high), own.mask
    made = synthesize_volume(volume, model, TASK)
    grid = SliceGrid.of(volume, model.config.image)
    shown = np.flatnonzero(mask.any(axis=(0, 1)))
    direct = np.full((mask.shape[2], 32, 32), -1.0, dtype=np.float32)
    direct[shown] = model.synthesize(grid.scaled_slices(volume, scale, list(shown)), TASK)
    for x, y, z in zip(*np.nonzero(mask), strict=True):  # native spacing: 32 pixels around 24 x 28 voxels, A on top
        row, column = 32 - 1 - (y + 2), x + 4
        assert made[x, y, z] == pytest.approx(10 + (direct[z, row, column] + 1) / 2 * 400, abs=1e-3)
    assert np.all(made[~mask] == 10.0)
    assert np.ptp(made[mask]) > 0


def test_every_slice_of_the_head_is_written_and_background_outside(tmp_path: Path, source: Path) -> None:
    model = new_model(tmp_path, slices={"maximum": 1})  # of which training would see one
    made = synthesize_volume(load_volume(source, ""), model, TASK)
    mask = find_head(load_volume(source, "").data, "").mask
    assert made.shape == mask.shape
    assert mask.any(axis=(0, 1)).sum() >= 4
    for z in range(mask.shape[2]):
        inside = made[:, :, z][mask[:, :, z]]
        assert np.all(made[:, :, z][~mask[:, :, z]] == 10.0)
        assert (inside != 10.0).all()


def test_the_same_input_gives_the_same_bytes(model: PersonalisedModel, source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        synthesize_file(source, tmp_path / name / "x_T2w.nii.gz", model, TASK)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_header_and_json_say_that_it_is_synthetic(model: PersonalisedModel, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "sub-01_T2w.nii.gz"
    made = synthesize_file(source, out, model, TASK)
    described = bytes(nibabel.load(out).header["descrip"]).rstrip(b"\0").decode()
    assert described == f"pflsynth {pflsynth.__version__} T1w->T2w: synthetic, not for diagnosis"
    content = json.loads((tmp_path / "made" / "sub-01_T2w.json").read_text())
    assert (
        content
        == made.provenance
        == {
            "notice": "synthetic, not for diagnosis",
            "site": "here",
            "task": "T1w->T2w",
            "method": "pflsynth",
            "model": "personalised",
            "round": 7,
            "model_sha256": "f" * 64,
            "agreement_sha256": model.config.agreement_sha256(),
            "input": "sub-01_T1w.nii.gz",
            "input_sha256": sha256_of_file(source),
            "normalizer": "percentile",
            "pflsynth": pflsynth.__version__,
        }
    )
    assert made.path == out


def test_names() -> None:
    assert target_name(Path("a/sub-01_ses-2_T1w.nii.gz"), TASK) == "sub-01_ses-2_T2w.nii.gz"
    assert target_name(Path("scan.nii"), TASK) == "scan_T2w.nii"
    assert provenance_path(Path("a/b.c_T2w.nii.gz")) == Path("a/b.c_T2w.json")
    assert provenance_path(Path("x.nii")) == Path("x.json")


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("existing", ["sub-01_T2w.nii.gz", "sub-01_T2w.json"])
def test_what_exists_is_not_overwritten(model: PersonalisedModel, source: Path, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    out = tmp_path / "sub-01_T2w.nii.gz"
    with pytest.raises(UsageError, match=f"{existing}: exists already; choose another --out or overwrite with --force"):
        synthesize_file(source, out, model, TASK)
    assert (tmp_path / existing).read_text() == "precious"
    synthesize_file(source, out, model, TASK, force=True)
    assert nibabel.load(out).shape == nibabel.load(source).shape


def test_the_source_is_never_overwritten(model: PersonalisedModel, source: Path) -> None:
    before = source.read_bytes()
    for out in (source, source.parent / "." / source.name):
        with pytest.raises(UsageError, match="is the input itself; choose another --out"):
            synthesize_file(source, out, model, TASK, force=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["out.png", "out", "out.nii.zip"])
def test_an_output_that_is_not_named_as_nifti_is_refused(
    model: PersonalisedModel, source: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match=rf"{name}: is not named as NIfTI; give a name that ends in \.nii\.gz or"):
        synthesize_file(source, tmp_path / name, model, TASK)


def test_a_volume_that_cannot_be_used_leaves_nothing(model: PersonalisedModel, tmp_path: Path) -> None:
    flat = write_nifti(tmp_path / "flat_T1w.nii.gz", np.full((24, 28, 6), 3.0))
    wide = write_nifti(tmp_path / "wide_T1w.nii.gz", head((48, 56, 6)))
    for path, message in (
        (flat, "every voxel is 3"),
        (wide, "the head is 3. x 4. mm"),
        (tmp_path / "no.nii", "no such"),
    ):
        with pytest.raises(DataError, match=message) as refusal:
            synthesize_file(path, tmp_path / "out" / "x.nii.gz", model, TASK)
        assert str(path) in str(refusal.value)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_folder_in_gives_a_folder_out(model: PersonalisedModel, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for subject in ("sub-01", "sub-02"):
        for contrast in ("T1w", "T2w", "FLAIR"):
            write_nifti(image_path(folder, subject, contrast), head(seed=len(subject)))
    write_nifti(folder / "sub-01" / "anat" / "sub-01_ce-gd_T1w.nii.gz", head())  # contrast-enhanced: not T1w
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "out"
    written, failed = synthesize_folder(
        folder, out, model, TASK, on_file=lambda i, n, path: seen.append((i, n, path.name))
    )
    assert failed == []
    assert sorted(tree(out)) == [
        f"{subject}/anat/{subject}_T2w.{ending}" for subject in ("sub-01", "sub-02") for ending in ("json", "nii.gz")
    ]
    assert [item.path for item in written] == [image_path(out, subject, "T2w") for subject in ("sub-01", "sub-02")]
    assert seen == [(0, 2, "sub-01_T1w.nii.gz"), (1, 2, "sub-02_T1w.nii.gz")]
    synthesize_file(image_path(folder, "sub-02", "T1w"), tmp_path / "alone_T2w.nii.gz", model, TASK)
    alone, among = nibabel.load(tmp_path / "alone_T2w.nii.gz"), nibabel.load(image_path(out, "sub-02", "T2w"))
    assert np.array_equal(alone.get_fdata(), among.get_fdata())


def test_a_bad_file_does_not_stop_the_others(model: PersonalisedModel, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a", "b", "c"):
        write_nifti(folder / f"{name}_T1w.nii.gz", head())
    (folder / "b_T1w.nii.gz").write_bytes((folder / "a_T1w.nii.gz").read_bytes()[:300])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c_T2w.nii.gz").touch()
    written, failed = synthesize_folder(folder, tmp_path / "out", model, TASK)
    assert [item.path.name for item in written] == ["a_T2w.nii.gz"]
    assert [type(error) for error in failed] == [DataError, UsageError]
    assert "b_T1w.nii.gz: is cut short" in str(failed[0])
    assert "c_T2w.nii.gz: exists already" in str(failed[1])


def test_the_number_of_workers_changes_no_byte(model: PersonalisedModel, tmp_path: Path) -> None:
    for number in range(5):
        write_nifti(tmp_path / "in" / f"sub-{number:02d}_T1w.nii.gz", head(noise=4, seed=number))
    write_nifti(tmp_path / "in" / "sub-01_T1w.nii.gz", np.full((24, 28, 6), 3.0))
    trees = []
    for workers in (1, 2, 7):
        out = tmp_path / str(workers)
        written, failed = synthesize_folder(tmp_path / "in", out, model, TASK, workers=workers)
        assert [item.path.name for item in written] == [f"sub-{number:02d}_T2w.nii.gz" for number in (0, 2, 3, 4)]
        assert ["every voxel is 3" in str(error) for error in failed] == [True]
        trees.append(tree(out))
    assert len(trees[0]) == 8
    assert trees[0] == trees[1] == trees[2]
    assert len({content for name, content in trees[0].items() if name.endswith(".nii.gz")}) == 4


def test_two_files_of_one_output_are_not_mixed_up(model: PersonalisedModel, tmp_path: Path) -> None:
    for number, name in enumerate(("scan.nii", "scan.nii.gz")):
        write_nifti(tmp_path / "in" / name, head(seed=number))
    written, failed = synthesize_folder(tmp_path / "in", tmp_path / "out", model, TASK, workers=2, force=True)
    assert [item.path.name for item in written] == ["scan_T2w.nii"]
    assert [str(error) for error in failed] == [
        f"{tmp_path / 'in' / 'scan.nii.gz'}: its output would have the name of scan.nii's; rename one of them"
    ]


def test_a_disk_that_cannot_be_written_ends_the_work(model: PersonalisedModel, tmp_path: Path) -> None:
    for number in range(4):
        write_nifti(tmp_path / "in" / f"sub-{number:02d}_T1w.nii.gz", head())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        synthesize_folder(tmp_path / "in", tmp_path / "file" / "out", model, TASK, workers=2)


@pytest.mark.parametrize("shape", [(24, 28, 1), (23, 29, 5), (51, 37, 4)])
def test_one_slice_odd_sizes_and_more_room_than_the_slices_have(
    model: PersonalisedModel, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    own = head((24, 28, 6), noise=4)[:, :, 2 : 2 + min(shape[2], 4)]
    data = np.zeros(shape)
    rows, columns = min(24, shape[0]), min(28, shape[1])
    left, front = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    data[left : left + rows, front : front + columns, : own.shape[2]] = own[:rows, :columns]
    volume = load_volume(write_nifti(tmp_path / "in_T1w.nii.gz", data), "")
    made = synthesize_volume(volume, model, TASK)
    mask = find_head(volume.data, "").mask
    assert made.shape == shape
    assert np.all(made[~mask] == 10.0)
    assert np.ptp(made[mask]) > 0


def test_files_whose_names_say_no_contrast_are_all_taken(model: PersonalisedModel, tmp_path: Path) -> None:
    for name in ("one.nii.gz", "two.nii"):
        write_nifti(tmp_path / "in" / name, head())
    written, _ = synthesize_folder(tmp_path / "in", tmp_path / "out", model, TASK)
    assert [item.path.name for item in written] == ["one_T2w.nii.gz", "two_T2w.nii"]


def test_a_folder_without_the_source_contrast_is_told_of(model: PersonalisedModel, tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "sub-01_FLAIR.nii.gz", head())
    with pytest.raises(DataError, match=r"in: has no NIfTI volume of contrast T1w \(such as sub-01_T1w\.nii\.gz\)"):
        synthesize_folder(tmp_path / "in", tmp_path / "out", model, TASK)


# ------------------------------------------------------------------------------------------------------ brain masks


def test_a_brain_mask_is_wanted_where_training_had_them_and_only_there(tmp_path: Path, source: Path) -> None:
    config = new_model(tmp_path).config
    sites = {"here": {"tasks": ["T1w->T2w"], "brain_mask": True}}
    masked = new_model(tmp_path, sites=sites)
    inner = load_volume(source, "").data > 150
    mask = oriented(tmp_path / "sub-01_mask.nii.gz", inner, "LPS")
    with pytest.raises(DataError, match="was prepared with brain masks; give this image's with --mask"):
        synthesize_file(source, tmp_path / "a.nii.gz", masked, TASK)
    with pytest.raises(DataError, match="was prepared without brain masks; leave --mask out"):
        synthesize_file(source, tmp_path / "a.nii.gz", new_model(tmp_path), TASK, mask=mask)
    assert config.sites["here"].brain_mask is False
    made = synthesize_file(source, tmp_path / "a.nii.gz", masked, TASK, mask=mask)
    whole = synthesize_file(source, tmp_path / "b.nii.gz", new_model(tmp_path), TASK)
    shown = [int((nibabel.load(own.path).get_fdata() != 10).sum()) for own in (made, whole)]
    assert shown[0] < 0.5 * shown[1]
    folder = tmp_path / "folder"
    for path in (source, mask):
        (folder / path.name).parent.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    written, failed = synthesize_folder(folder, tmp_path / "out", masked, TASK)
    assert failed == []
    assert [own.path.read_bytes() for own in written] == [made.path.read_bytes()]


def test_a_folder_is_read_in_the_sites_layout(tmp_path: Path) -> None:
    sites = {"here": {"tasks": ["T1w->T2w"], "layout": "ixi"}}
    for contrast in ("T1", "T2"):
        write_nifti(tmp_path / "in" / f"IXI-{contrast}" / f"IXI002-Guys-0828-{contrast}.nii.gz", head(noise=4))
    written, failed = synthesize_folder(tmp_path / "in", tmp_path / "out", new_model(tmp_path, sites=sites), TASK)
    assert failed == []
    assert [own.path.relative_to(tmp_path / "out").as_posix() for own in written] == [
        "IXI-T1/IXI002-Guys-0828-T1_T2w.nii.gz"
    ]
