"""What a site that has its key, and code of its own, can send: the rounds stay within their memory, take nothing for
another site's, and go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.deployment.settings import SiteSettings
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, changed, train
from .real import Machines, machines
from .rogue import Answer, honest, rogue, swollen, unasked
from .test_same_bytes import with_absences


def peak(process: int) -> int:
    """Most memory that a process has had so far, in bytes."""
    lines = (Path("/proc") / str(process) / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def settings(made: Machines, site: str) -> SiteSettings:
    """Where a site's things are."""
    hospital = made.hospital(site)
    return SiteSettings(hospital / "site.toml", site, hospital / "prepared", made.site_run(site))


@pytest.mark.soak
@pytest.mark.parametrize(
    "swell",
    [
        pytest.param(swollen(1, [0] * 2000), id="10 GB of one piece"),
        pytest.param(swollen(300, range(300)), id="1.5 GB"),
    ],
)
def test_a_huge_reply_is_refused(tiny: Tiny, tmp_path: Path, swell: Answer) -> None:
    config = changed(tiny.config, rounds=2, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve("--gather", 20)
        made.join("south")
        made.wait("the coordinator", lambda: "site south: joined" in made.said("serve"))
        with rogue(made.port, made.hospital("north"), settings(made, "north"), lambda reply: [swell(reply)]):
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


@pytest.mark.soak
def test_what_a_site_sends_unasked_is_not_taken_for_anothers_reply(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=1)
    train(config, tiny.prepared, tmp_path / "in process")
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join("north")
        made.wait("the coordinator", lambda: "site north: joined" in made.said("serve"))
        own = made.hospital("south"), settings(made, "south")
        with rogue(made.port, *own, lambda reply: [unasked(reply), honest(reply)]):
            assert made.end("serve") == 0, made.everything()
            assert made.end("north") == 0, made.everything()
        name = "shared/round-0001.safetensors"
        assert (made.run / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()
