"""The phantom federation: anatomy, files, determinism, and that the contrasts look like the contrasts."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import math
import socket
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from pflsynth.data.anatomy import draw_deformation, load_atlas
from pflsynth.data.phantom import PHANTOM_SITES, site_affine, site_shape, tissue_fractions, write_phantom
from pflsynth.errors import DataError, UsageError

pytest.importorskip("nilearn")

SITES = tuple(PHANTOM_SITES)
SEED = 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every site with one subject, oasis with two; any use of the network fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("the phantom must not use the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        load_atlas.cache_clear()
        counts = dict.fromkeys(SITES, 1) | {"oasis": 2}
        return write_phantom(tmp_path_factory.mktemp("phantom") / "new" / "folder", subjects=counts, seed=SEED)


def scan_path(federation: dict[str, Path], site: str, contrast: str, subject: str = "sub-01") -> Path:
    return federation[site] / subject / "anat" / f"{subject}_{contrast}.nii.gz"


def scan_ras(federation: dict[str, Path], site: str, contrast: str) -> npt.NDArray[np.float32]:
    image = nib.as_closest_canonical(nib.load(scan_path(federation, site, contrast)))
    return np.asarray(image.dataobj, dtype=np.float32)


@functools.cache
def fractions_of(site: str, subject: str = "sub-01", seed: int = SEED) -> dict[str, npt.NDArray[np.float32]]:
    return tissue_fractions(PHANTOM_SITES[site], seed=seed, site=site, subject=subject)


def test_the_folders_are_bids(federation: dict[str, Path]):
    assert list(federation) == list(SITES)
    for site, root in federation.items():
        names = ["sub-01", "sub-02"] if site == "oasis" else ["sub-01"]
        assert "phantom" in json.loads((root / "dataset_description.json").read_text())["Name"]
        assert (root / "participants.tsv").read_text().split() == ["participant_id", *names]
        found = sorted(path.name for path in root.rglob("*.nii.gz"))
        assert found == sorted(f"{n}_{c}.nii.gz" for n in names for c in PHANTOM_SITES[site].contrasts)


@pytest.mark.parametrize("site", SITES)
def test_the_geometry_is_right_and_shared_by_the_contrasts(federation: dict[str, Path], site: str):
    protocol = PHANTOM_SITES[site]
    images = [nib.load(scan_path(federation, site, contrast)) for contrast in protocol.contrasts]
    for image in images:
        assert image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == tuple(protocol.orientation)
        assert image.header["sform_code"] == image.header["qform_code"] == 1
        np.testing.assert_array_equal(image.affine, images[0].affine)
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), protocol.voxel_size, rtol=1e-6)
        canonical = nib.as_closest_canonical(image)
        assert canonical.shape == site_shape(protocol)
        np.testing.assert_allclose(canonical.affine, site_affine(protocol), atol=1e-4)
    extent = np.array(images[0].shape) * images[0].header.get_zooms()
    np.testing.assert_allclose(extent, (200, 230, 200), atol=6)


def test_stored_orientations_differ():
    assert {protocol.orientation for protocol in PHANTOM_SITES.values()} >= {"RAS", "LPS", "LAS"}


@pytest.mark.parametrize("site", SITES)
def test_fractions_sum_to_one_in_the_brain_and_zero_in_air(site: str):
    fractions = fractions_of(site)
    total = sum(fractions.values())
    assert all(part.min() >= 0 and part.max() <= 1 + 1e-5 for part in fractions.values())
    brain, air = total > 0.999, total < 1e-6
    np.testing.assert_allclose(total[brain], 1, atol=1e-3)
    litres = brain.sum() * np.prod(PHANTOM_SITES[site].voxel_size) / 1e6
    assert 1.3 < litres < 2.6
    assert (brain | air).mean() > 0.9  # the rest are partial volumes at the border
    for axis in range(3):  # the head fits into the field of view
        faces = np.take(total, (0, -1), axis=axis)
        assert faces.max() == 0


@pytest.mark.parametrize("site", SITES)
def test_contrasts_look_like_themselves(federation: dict[str, Path], site: str):
    fractions = fractions_of(site)
    for contrast in PHANTOM_SITES[site].contrasts:
        volume = scan_ras(federation, site, contrast)
        wm, gm, csf = (np.median(volume[fractions[name] > 0.9]) for name in ("wm", "gm", "csf"))
        if contrast == "T1w":
            assert wm > 1.05 * gm > 1.5 * csf
        elif contrast == "T2w":
            assert csf > 1.4 * gm > 1.5 * wm
        elif contrast == "PDw":
            assert gm > 1.05 * wm
            assert csf > wm
        else:
            assert gm > wm > 4 * csf


def test_proton_density_is_no_second_t2w(federation: dict[str, Path]):
    wm = fractions_of("ixi")["wm"] > 0.9
    t2w, pdw = (scan_ras(federation, "ixi", contrast) for contrast in ("T2w", "PDw"))
    assert pdw[wm].mean() / np.percentile(pdw, 99.5) > 2 * t2w[wm].mean() / np.percentile(t2w, 99.5)


@pytest.mark.parametrize("site", SITES)
def test_air_holds_rician_noise_of_the_stated_level(federation: dict[str, Path], site: str):
    protocol = PHANTOM_SITES[site]
    air = sum(fractions_of(site).values()) == 0
    for contrast in protocol.contrasts:
        volume = scan_ras(federation, site, contrast)
        sigma = volume[air].mean() / math.sqrt(math.pi / 2)
        # the scale of a scan is jittered by exp(0.15 z), |z| <= 2
        assert abs(math.log(sigma / (protocol.noise * protocol.scale))) < 0.32
        # Rayleigh: standard deviation / mean = sqrt(4 / pi - 1); rounding to integers adds a little
        assert volume[air].std() / volume[air].mean() == pytest.approx(math.sqrt(4 / math.pi - 1), rel=0.02)


def test_lesions_are_only_at_brats_and_bright_in_flair(federation: dict[str, Path]):
    for site in SITES:
        assert ("oedema" in fractions_of(site)) == (site == "brats") == PHANTOM_SITES[site].lesions
    for subject in ("sub-01", "sub-02", "sub-03"):
        fractions = fractions_of("brats", subject)
        millilitres = {name: fractions[name].sum() * 22 / 1000 for name in ("core", "necrosis", "oedema")}
        assert millilitres["necrosis"] > 0.1
        assert millilitres["core"] > 1
        assert 5 < millilitres["oedema"] < 200
    fractions = fractions_of("brats")
    flair = scan_ras(federation, "brats", "FLAIR")
    assert flair[fractions["oedema"] > 0.8].mean() > 1.2 * flair[fractions["wm"] > 0.95].mean()


def test_subjects_differ_and_are_not_symmetric():
    first, second = fractions_of("oasis"), fractions_of("oasis", "sub-02")
    for name in ("wm", "gm", "csf"):
        assert np.abs(first[name] - second[name]).sum() > 0.1 * first[name].sum()
    gm = first["gm"]
    shifts = range(-3, 4)  # no small shift makes the mirror image fit
    asymmetry = min(np.abs(gm - np.roll(gm[::-1], shift, axis=0)).sum() / gm.sum() for shift in shifts)
    assert asymmetry > 0.1


@pytest.mark.parametrize("seed", range(6))
def test_the_deformation_does_not_fold(seed: int):
    step = 4.0
    axes = [np.arange(-extent, extent + 1, step, dtype=np.float32) for extent in (96, 130, 92)]
    points = draw_deformation(np.random.default_rng(seed)).atlas_points(axes)
    jacobian = np.stack([np.stack(np.gradient(component, step)) for component in points])
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    assert 0.15 < determinant.min() < determinant.max() < 3
    displacement = np.linalg.norm(points - np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)
    assert 2 < displacement.mean() < 20


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(federation: dict[str, Path], tmp_path: Path):
    seen: list[str] = []
    again = write_phantom(tmp_path / "again", subjects=1, seed=SEED, sites=["oasis"], progress=seen.append)
    other = write_phantom(tmp_path / "other", subjects=1, seed=SEED + 1, sites=["oasis"])
    assert seen == ["oasis sub-01"]
    for contrast in PHANTOM_SITES["oasis"].contrasts:
        data = scan_path(federation, "oasis", contrast).read_bytes()
        assert scan_path(again, "oasis", contrast).read_bytes() == data
        assert scan_path(other, "oasis", contrast).read_bytes() != data
        assert data[3] & 0x08 == 0  # no file name in the gzip header
        assert data[4:8] == b"\0\0\0\0"  # no time
        assert len(gzip.decompress(data)) == 352 + 2 * math.prod(site_shape(PHANTOM_SITES["oasis"]))


def test_scans_of_a_subject_have_noise_of_their_own(federation: dict[str, Path]):
    air = sum(fractions_of("oasis").values()) == 0
    scans = [scan_ras(federation, "oasis", contrast)[air] for contrast in PHANTOM_SITES["oasis"].contrasts]
    for first, second in itertools.combinations(scans, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_an_existing_folder_with_content_is_refused(tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantom(tmp_path)
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantom(tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_wrong_sites_and_numbers_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no phantom site 'adni'.*ixi, brats, midas, oasis"):
        write_phantom(tmp_path, sites=["adni"])
    with pytest.raises(UsageError, match="at least 1"):
        write_phantom(tmp_path, subjects=0)
    with pytest.raises(UsageError, match="does not say"):
        write_phantom(tmp_path, subjects={"ixi": 2}, sites=["ixi", "midas"])
    assert not list(tmp_path.iterdir())


def test_a_missing_nilearn_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install \"pflsynth\[demo\]\""):
        load_atlas.__wrapped__()
