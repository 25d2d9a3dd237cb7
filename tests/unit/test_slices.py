"""The slice store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.manifest import MANIFEST_NAME, load_manifest
from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.errors import DataError
from pflsynth.files import read_json, write_json
from tests.data_builders import federation, write_site


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_site(tmp_path / "here", 5)
    prepare_site(federation(tmp_path), "here", tmp_path / "out")
    return tmp_path / "out"


def test_arrays_are_read_only_maps_of_the_file(prepared: Path) -> None:
    store = SliceStore(prepared)
    name = store.subjects("train")[0].name
    slices, mask = store.slices(name, "T1w"), store.mask(name)
    assert slices.dtype == np.float32
    assert mask.dtype == bool
    assert mask.shape == slices.shape == (len(store.subjects("train")[0].slices), 32, 32)
    with pytest.raises(ValueError, match="read-only"):
        slices[0, 0, 0] = 3
    if Path("/proc/self/maps").exists():
        assert f"{name}.safetensors" in Path("/proc/self/maps").read_text()


def test_only_some_subjects_stay_open(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pflsynth.data.slices.OPEN_SUBJECTS", 2)
    store = SliceStore(prepared)
    for _ in range(2):
        for subject in store.manifest.subjects:
            store.mask(subject.name)
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = {line.split()[-1] for line in maps.read_text().splitlines() if str(prepared) in line}
        assert len(mapped) <= 2


def test_every_subject_is_in_one_split(prepared: Path) -> None:
    store = SliceStore(prepared)
    names = [subject.name for split in ("train", "validation", "test") for subject in store.subjects(split)]
    assert sorted(names) == [f"sub-0{number}" for number in range(1, 6)]


def test_unknown_subjects_and_contrasts_are_named(prepared: Path) -> None:
    store = SliceStore(prepared)
    with pytest.raises(DataError, match="no subject sub-77"):
        store.slices("sub-77", "T1w")
    with pytest.raises(DataError, match="subject sub-01 has no FLAIR, only T1w, T2w"):
        store.slices("sub-01", "FLAIR")


def test_cut_missing_and_changed_files_are_refused(prepared: Path) -> None:
    path = prepared / "sub-01.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"sub-01\.safetensors: has \d+ bytes instead of \d+.*prepare the site again"):
        SliceStore(prepared).slices("sub-01", "T1w")
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match=r"sub-01\.safetensors: is cut short or is not"):
        SliceStore(prepared).mask("sub-01")
    path.write_bytes((prepared / "sub-02.safetensors").read_bytes())
    (prepared / "sub-03.safetensors").unlink()
    with pytest.raises(DataError, match="no such file"):
        SliceStore(prepared).mask("sub-03")
    with pytest.raises(DataError, match=r"sub-01\.safetensors has changed, sub-03\.safetensors is missing; prepare"):
        SliceStore(prepared).verify()


def test_a_file_of_another_subject_with_the_same_size_is_caught_by_verify(prepared: Path) -> None:
    SliceStore(prepared).verify()
    flipped = bytearray((prepared / "sub-02.safetensors").read_bytes())
    flipped[-1] ^= 1
    (prepared / "sub-02.safetensors").write_bytes(flipped)
    with pytest.raises(DataError, match=r"sub-02\.safetensors has changed"):
        SliceStore(prepared).verify()


def test_other_settings_are_refused_by_key_with_both_values(prepared: Path, tmp_path: Path) -> None:
    store = SliceStore(prepared)
    store.check_settings(federation(tmp_path, seed=5, rounds=2))
    other = federation(tmp_path, image={"size": 64}, split={"seed": 3})
    with pytest.raises(DataError) as caught:
        store.check_settings(other)
    assert "image.size is 32 there and 64 in the configuration" in str(caught.value)
    assert "split.seed is 0 there and 3 in the configuration" in str(caught.value)
    assert "prepare --force" in str(caught.value)
    with pytest.raises(DataError, match="not prepared for task T2w->T1w"):
        store.check_settings(federation(tmp_path, {"here": ["T1w->T2w", "T2w->T1w"]}))
    with pytest.raises(DataError, match='holds site "here", which the federation does not have'):
        store.check_settings(federation(tmp_path, {"there": ["T1w->T2w"]}))


def test_a_missing_damaged_or_newer_manifest_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing.*run: pflsynth prepare"):
        SliceStore(tmp_path)
    path = prepared / MANIFEST_NAME
    content, text = read_json(path), path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="is not JSON, or was cut short"):
        load_manifest(prepared)
    path.write_text("[1]")
    with pytest.raises(DataError, match="is not a manifest"):
        load_manifest(prepared)
    for other in (1, 3):
        write_json(path, {**content, "format": other})
        with pytest.raises(DataError, match=f"has format {other}, this pflsynth reads 2: .* prepare the site again"):
            load_manifest(prepared)
    del content["subjects"][0]["sha256"]
    write_json(path, content)
    with pytest.raises(DataError, match=r"damaged at subjects\.0\.sha256"):
        load_manifest(prepared)
