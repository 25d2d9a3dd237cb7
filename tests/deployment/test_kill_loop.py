"""Any process of a federation is killed at any moment, again and again; and a site is away for some rounds.

What is trained is what one process trains with the same absences, byte for byte: shared parameters, private states and
models. No site loses its private state.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from pflsynth.deployment.processes import end_members, members
from pflsynth.deployment.settings import log_of
from pflsynth.deployment.status import read_status

from ..tiny import Tiny, changed
from .real import Machines, machines
from .test_same_bytes import shared_half, site_half, with_absences

KILLS, ROUNDS = 10, 16

VERB = ""
"""Stands for the verb itself among the programs."""

AT_SITES = ("flwr-clientapp", "flower-supernode", VERB)
"""Each costs a minute, after which Flower counts the dead process as gone."""

AT_COORDINATOR = ("flwr-serverapp", "flower-superlink", "nginx", VERB)

TIMES = ("--gather", 20, "--deadline", 600)
"""A site that is not there is waited for at a start for 20 s; one that was killed, until Flower reports it."""


def check_as_one_process(made: Machines, tiny: Tiny, folder: Path) -> None:
    """Everything has ended, nothing is left, and the bytes are those of one process with the same absences."""
    one = folder / "one-process"
    absences = made.absences()
    with_absences(tiny, one, absences, quorum=1, rounds=made.config.rounds)
    told = ("metrics.jsonl", "federation.toml")  # why a site was absent, and a path of this machine
    shared = {name: data for name, data in shared_half(one).items() if name not in told}
    assert shared.items() <= shared_half(made.run).items(), absences
    for site in made.config.participants:
        assert site_half(one, site).items() <= site_half(made.site_run(site), site).items(), (site, absences)
        assert "the private state" not in log_of(made.site_run(site)).read_text()
    assert "lost its private state" not in log_of(made.run).read_text()
    assert members(made.folder) == []
    assert list(made.folder.rglob("superlink.db*")) == []


def end_all(made: Machines) -> None:
    """Wait for the end; sites that came too late for their model get it from a further start of the coordinator."""
    assert made.end("serve") == 0, made.everything()
    if read_status(made.run).waiting_for:
        made.serve()
        assert made.end("serve") == 0, made.everything()
    for site in made.config.participants:
        assert made.end(site) == 0, made.everything()


def kill_one(made: Machines, name: str, program: str, after: float) -> None:
    """Kill a program that runs, at some moment after it is there."""
    if program == VERB:
        time.sleep(after)
        made.kill_verb(name)
        if name == "serve":
            made.serve(*TIMES)
        else:
            made.join(name)
        return
    while True:
        made.wait(program, lambda: bool(made.processes(name, program)))
        time.sleep(after)
        with suppress(ProcessLookupError, ValueError):  # it may have ended just now
            os.kill(min(made.processes(name, program)), signal.SIGKILL)
            return


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_any_process_is_killed_again_and_again(tiny: Tiny, tmp_path: Path, seed: int) -> None:
    config = changed(tiny.config, rounds=ROUNDS, quorum=1)
    numbers = random.Random(seed)
    victims = [(site, program) for site in config.participants for program in AT_SITES]
    weights = [1] * len(victims) + [2] * len(AT_COORDINATOR)
    victims += [("serve", program) for program in AT_COORDINATOR]
    killed: Counter[str] = Counter()
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve(*TIMES)
        made.join_all()
        made.wait("the first round", lambda: made.whole_rounds() >= 1)
        for number, (name, program) in enumerate(numbers.choices(victims, weights, k=KILLS)):
            if numbers.random() < 0.5:  # else perhaps while another kill is not yet over
                until = min(made.whole_rounds() + 1, number + 2)
                made.wait("a round", lambda until=until: made.whole_rounds() >= until)  # type: ignore[misc]
            kill_one(made, name, program, numbers.uniform(0.0, 6.0 if program != "flwr-clientapp" else 2.0))
            killed[program or name] += 1
            print(f"{time.strftime('%X')} killed {name} {program}, after round {made.whole_rounds()}", flush=True)
        assert made.whole_rounds() < ROUNDS, "every kill was in the training"
        end_all(made)
        check_as_one_process(made, tiny, tmp_path)
    assert killed.total() == KILLS
    print(f"seed {seed}: killed {dict(killed)}; absences {made.absences()}")


@pytest.mark.soak
def test_a_site_that_is_gone_for_some_rounds_is_welcomed_back(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=8, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve(*TIMES)
        made.join_all()
        made.wait("the second round", lambda: made.whole_rounds() == 1)
        made.wait("its training", lambda: bool(made.processes("north", "flwr-clientapp")))
        made.kill_verb("north")
        end_members(made.hospital("north"))
        made.wait("rounds without it", lambda: made.whole_rounds() >= 4)
        without = {number for number, absent in made.absences().items() if "north" in absent}
        assert {3, 4} <= without, "it may have sent its second update before it was killed"
        made.join("north")
        made.wait("its return", lambda: "north" not in made.absences()[max(made.absences())])
        end_all(made)
        check_as_one_process(made, tiny, tmp_path)
    print(f"absences {made.absences()}")
