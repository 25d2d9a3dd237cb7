"""Disks that are really full, of a site and of the coordinator: small file systems, filled in mid-training."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pflsynth.files import load_tensors
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, changed, train
from .real import machines
from .test_connection import training
from .test_same_bytes import with_absences


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of so many megabytes; yields the file that fills it. Only root can make one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        message = f"no file system can be mounted here, which only root may: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield folder / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Leave not one byte."""
    with filler.open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break


def check_whole(run: Path) -> None:
    """Every file of tensors can be read, and nothing is half-written."""
    assert list(run.rglob(".*.tmp")) == []
    for path in run.rglob("*.safetensors"):
        load_tensors(path, "shared" if path.parent.name == "shared" else path.name.partition("-")[0])


@pytest.mark.soak
def test_a_site_whose_disk_is_full_misses_a_round_and_is_welcomed_back(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=4, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        run = made.site_run("north")
        run.mkdir()
        with small_disk(run, 40) as filler:
            made.serve("--gather", 300)
            made.join_all()
            made.wait("the first round", lambda: made.whole_rounds() == 1)
            fill(filler)
            full = "site north: its disk is full, cannot be written, or cannot be read; its own log tells more"
            made.wait("the coordinator's sentence", lambda: full in made.said("serve"))
            filler.unlink()
            for name in ("serve", *config.participants):
                assert made.end(name) == 0, made.everything()
            assert "declined (disk): " in made.said("north")
            assert "No space left on device" in made.said("north")
            records = RunDirectory(made.run).records("metrics.jsonl")
            absences = {record["round"]: set(record["refused"]) for record in records}
            assert absences[1] == absences[4] == set()
            assert {"north"} in absences.values()
            with_absences(tiny, tmp_path / "in process", absences, rounds=4, quorum=1)
            for whole in (made.run, run):
                check_whole(whole)
            name = "shared/round-0004.safetensors"
            assert (made.run / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()
            name = "sites/north/personalised-0004.safetensors"
            assert (run / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()


@pytest.mark.soak
def test_a_coordinator_whose_disk_is_full_stops_and_goes_on_when_it_has_room(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=2)
    train(config, tiny.prepared, tmp_path / "in process")
    with machines(tmp_path, config, tiny.prepared) as made, small_disk(made.run.parent, 250) as filler:
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: training(made, "north"))
        fill(filler)
        made.wait("the coordinator's sentence", lambda: "until then nothing runs" in made.said("serve"))
        assert f"{made.run}: its disk has " in made.said("serve")
        made.wait("the end of Flower's server", lambda: not made.processes("serve", "flower-superlink"))
        assert made.whole_rounds() == 1
        filler.unlink()
        for name in ("serve", *config.participants):
            assert made.end(name) == 0, made.everything()
        assert f"{made.run}: its disk has room again" in made.said("serve")
        check_whole(made.run)
        name = "shared/round-0002.safetensors"
        assert (made.run / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()
