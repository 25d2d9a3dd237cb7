"""Any process of a federation is killed in a round: the training ends all the same, with the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pflsynth.config import FederationConfig
from pflsynth.deployment.processes import members

from ..tiny import Tiny, changed, train
from .real import Machines, machines


@pytest.fixture(scope="module")
def config(tiny: Tiny) -> FederationConfig:
    return changed(tiny.config, rounds=2)


@pytest.fixture(scope="module")
def expected(config: FederationConfig, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The shared parameters that training in one process ends with."""
    run = tmp_path_factory.mktemp("in-process") / "run"
    train(config, tiny.prepared, run)
    return (run / "shared" / "round-0002.safetensors").read_bytes()


def check_end(made: Machines, expected: bytes) -> None:
    """Every verb ends well, the bytes are those of one process, every site has its model, and nothing is left."""
    assert made.end("serve") == 0, made.everything()
    assert (made.run / "shared" / "round-0002.safetensors").read_bytes() == expected
    for site in made.config.participants:
        assert made.end(site) == 0, made.everything()
        assert (made.site_run(site) / "sites" / site / "personalised-0002.safetensors").is_file()
    assert members(made.folder) == []
    assert list(made.folder.rglob("superlink.db*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whose", "program"),
    [
        ("north", "flwr-clientapp"),
        ("north", "flower-supernode"),
        ("serve", "flwr-serverapp"),
        ("serve", "flower-superlink"),
        ("serve", "nginx"),
    ],
)
def test_a_killed_process_is_started_again(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes, whose: str, program: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: bool(made.processes("north", "flwr-clientapp")))
        made.kill(whose, program)
        check_end(made, expected)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["serve", "north"])
def test_a_killed_verb_leaves_no_process_and_goes_on(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, expected: bytes, verb: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() == 1)
        made.wait("the second round's training", lambda: bool(made.processes("north", "flwr-clientapp")))
        killed = made.started.pop(verb)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        made.wait("the end of all that it started", lambda: not made.processes(verb, ""))
        if verb == "serve":
            made.serve()
        else:
            made.join(verb)
        check_end(made, expected)
