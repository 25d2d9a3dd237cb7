"""``status.json``: written whole, read back, and told to be damaged or of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pflsynth.deployment.status import NAME, StatusFile, read_status
from pflsynth.errors import ModelError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = StatusFile(tmp_path, ["north", "south"], rounds=7, quorum=2)
    file.write(phase="training", round=3, waiting_for=["south"])
    file.site("south", asked="train", sent=5)
    status = read_status(tmp_path)
    assert status == file.now
    assert (status.phase, status.round, status.rounds, status.quorum) == ("training", 3, 7, 2)
    assert (status.sites["south"].asked, status.sites["south"].sent) == ("train", 5)
    assert status.sites["north"].asked is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "was written by another version"),
        ({"phase": "dancing"}, "is damaged"),
        ({"sites": 3}, "is damaged"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    StatusFile(tmp_path, ["north"], rounds=7, quorum=1).write()
    content = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps({**content, **change}))
    with pytest.raises(ModelError, match=rf"status\.json: {sentence}"):
        read_status(tmp_path)
    (tmp_path / NAME).write_text("[]")
    with pytest.raises(ModelError, match="is damaged"):
        read_status(tmp_path)


def test_a_folder_without_a_status_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no status\.json; give the run folder of a coordinator"):
        read_status(tmp_path)
