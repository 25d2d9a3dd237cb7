"""Atomic files and tensor files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pflsynth.errors import DataError, ModelError
from pflsynth.files import load_tensors, read_json, save_tensors, sha256_of_file, write_atomic, write_json
from tests.data_builders import small_disk, tree

TENSORS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": np.array([1, 2, 3], dtype=np.uint8)}


def test_tensors_come_back_equal_with_their_types_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, TENSORS, {"round": 3, "names": ["x", "y"]}, kind="shared")
    tensors, metadata = load_tensors(path, "shared")
    assert metadata == {"round": 3, "names": ["x", "y"]}
    assert set(tensors) == {"a", "b.weight"}
    assert tensors["a"].dtype == torch.uint8
    assert torch.equal(tensors["b.weight"], TENSORS["b.weight"])


def test_same_content_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_tensors(one, TENSORS, {"x": 1, "y": 2}, kind="shared")
    save_tensors(two, dict(reversed(TENSORS.items())), {"y": 2, "x": 1}, kind="shared")
    assert one.read_bytes() == two.read_bytes()
    assert sha256_of_file(one) == sha256_of_file(two)


def test_views_shared_memory_and_scalars_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(1, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {"whole": whole, "view": whole[:, 1:], "again": whole, "scalar": torch.tensor(3)}
    save_tensors(tmp_path / "x", tensors, {}, kind="shared")
    loaded, _ = load_tensors(tmp_path / "x", "shared")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("kept", "words"),
    [(0, "is empty"), (4, "cut short"), (100, "cut short"), (-1, "cut short")],
)
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, kept: int, words: str) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, TENSORS, {}, kind="shared")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=words) as caught:
        load_tensors(path, "shared")
    assert str(path) in str(caught.value)


def test_what_is_not_a_file_of_this_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        load_tensors(path, "shared")
    path.write_text("not tensors, just a text that is long enough")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_tensors(path, "shared")
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="not written by pflsynth"):
        load_tensors(path, "shared")
    save_tensors(path, TENSORS, {}, kind="private")
    with pytest.raises(DataError, match='holds "private", but "shared"'):
        load_tensors(path, "shared", DataError)


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    header = json.dumps({"format": 2, "kind": "shared"})
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"pflsynth": header})
    with pytest.raises(ModelError, match="newer pflsynth; update"):
        load_tensors(path, "shared")


def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with small_disk(1000), pytest.raises(OSError, match=r"File too large: .*file"):
        write_atomic(path, bytes(5000))
    assert tree(tmp_path) == {"file": b"old"}


def test_json_is_canonical_and_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "é", "b": 1}
    path.write_text('{"a": ')
    with pytest.raises(DataError, match=r"x\.json: is not JSON"):
        read_json(path, DataError)
    with pytest.raises(ModelError, match="no such file"):
        read_json(tmp_path / "absent.json")
