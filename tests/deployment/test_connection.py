"""The connection of a site is cut, or stalls, and comes back: both say it, and the bytes are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.config import FederationConfig

from ..tiny import Tiny
from .real import Machines, check_end, machines
from .relay import relay

GONE = "goes on trying"
BACK = "is there again"


def training(made: Machines, site: str) -> bool:
    """Whether a site does what it was asked."""
    return bool(made.processes(site, "flwr-clientapp"))


@pytest.mark.slow
def test_a_connection_that_is_not_there_at_first_and_is_cut_in_a_round(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made, relay(made.port) as road:
        made.send_through("north", road.port)
        road.cut()
        made.serve()
        made.join_all()
        made.wait("north's sentence", lambda: "nothing listens there" in made.said("north"))
        assert "waits for it" in made.said("north")
        road.restore()
        made.wait("north's first round", lambda: "site north: joined" in made.said("serve") and training(made, "north"))
        road.cut()
        made.wait("north's sentence", lambda: GONE in made.said("north"))
        road.restore()
        check_end(made, expected)
        assert made.said("north").count(GONE) == made.said("north").count(BACK) == 1


@pytest.mark.soak
@pytest.mark.parametrize("way", ["cut", "stall"])
def test_a_connection_that_is_gone_until_the_coordinator_notices(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes, way: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made, relay(made.port) as road:
        made.send_through("north", road.port)
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: training(made, "north"))
        (road.cut if way == "cut" else road.stall)()
        made.wait("the site's sentence", lambda: GONE in made.said("north"))
        lost = "site north: its connection is lost"
        made.wait("the coordinator's sentence", lambda: lost in made.said("serve"))
        (road.restore if way == "cut" else road.release)()
        made.wait("its return", lambda: BACK in made.said("north"))
        check_end(made, expected)
        assert made.said("serve").count("site north: joined") == 2
