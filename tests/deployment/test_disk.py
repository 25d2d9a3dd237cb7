"""The watch over the disk: told once, ended once, and gone on with."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from pflsynth.deployment import disk
from pflsynth.deployment.disk import Disk

Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_told_of_once_and_so_is_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, ended, free = list[str](), list[str](), [200e6]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(1e9, 0, free[0]))
    watch = Disk(tmp_path, told.append, ended.append)
    assert watch.has_room()
    free[0] = 99.4e6
    assert not watch.has_room()
    assert not watch.has_room()
    assert ended == told
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path}: its disk has 99 MB left, and 100 are needed: make room for it; ")
    free[0] = 100e6
    assert watch.has_room()
    assert watch.has_room()
    assert told[1:] == [f"{tmp_path}: its disk has room again; goes on after the last whole round"]
    assert len(ended) == 1
