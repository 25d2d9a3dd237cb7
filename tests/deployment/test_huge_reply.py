"""Huge replies of a site that has its key: the rounds' process stays within its memory, names the site, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.deployment.settings import SiteSettings
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, changed
from .real import machines
from .rogue import Answer, rogue, swollen
from .test_same_bytes import with_absences


def peak(process: int) -> int:
    """Most memory that a process has had so far, in bytes."""
    lines = (Path("/proc") / str(process) / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize(
    "swell",
    [
        pytest.param(swollen(1, [0] * 2000), id="10 GB of one piece", marks=pytest.mark.slow),
        pytest.param(swollen(300, range(300)), id="1.5 GB", marks=pytest.mark.soak),
    ],
)
def test_a_huge_reply_is_refused(tiny: Tiny, tmp_path: Path, swell: Answer) -> None:
    config = changed(tiny.config, rounds=2, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        hospital = made.hospital("north")
        settings = SiteSettings(hospital / "site.toml", "north", hospital / "prepared", made.site_run("north"))
        made.serve("--gather", 20)
        made.join("south")
        made.wait("the coordinator", lambda: "site south: joined" in made.said("serve"))
        with rogue(made.port, hospital, settings, lambda reply: [swell(reply)]):
            made.wait("the app", lambda: bool(made.processes("serve", "flwr-serverapp")))
            (app,) = made.processes("serve", "flwr-serverapp")
            made.wait("the last round", lambda: made.whole_rounds() == 2)
            assert made.processes("serve", "flwr-serverapp") == [app], "no other was needed"
            assert peak(app) < 2.5e9
            assert made.end("south") == 0, made.everything()
            assert made.end("serve") == 0, made.everything()
        assert "site north: its reply needs more memory than a reply can" in made.said("serve")
        records = RunDirectory(made.run).records("metrics.jsonl")
        absences = {record["round"]: set(record["refused"]) for record in records}
        assert absences[2] == {"north"}
        with_absences(tiny, tmp_path / "in process", absences, rounds=2, quorum=1)
        name = "shared/round-0002.safetensors"
        assert (made.run / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()
