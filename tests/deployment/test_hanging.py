"""Processes that hang (SIGSTOP): the federation goes on, says for whom it waits in vain, and has them back later."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pflsynth.config_files import load_config
from pflsynth.deployment import rounds_process, site_host
from pflsynth.deployment.coordinator_host import CoordinatorHost
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.site_host import SiteHost, site_settings
from pflsynth.deployment.status import read_status
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, changed
from .real import Machines, in_thread, machines
from .test_kill_loop import check_as_one_process, end_all


def asked_to_train(made: Machines, site: str, number: int) -> bool:
    status = read_status(made.run)
    return status.round == number and status.sites[site].asked == "train"


def refusals(made: Machines, site: str) -> dict[int, str]:
    """Rounds that a site is not in, and why."""
    records = RunDirectory(made.run).records("metrics.jsonl")
    return {record["round"]: record["refused"][site] for record in records if site in record["refused"]}


def goes_on(made: Machines, site: str, after: int) -> bool:
    """Whether a site took part in a round after this one."""
    return any(number > after and site not in absent for number, absent in made.absences().items())


@pytest.mark.soak
def test_a_site_that_hangs_in_its_training_is_left_out_of_the_round_and_comes_back(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=12, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve("--deadline", 30)  # less than the time after which Flower counts a process as dead
        made.join_all()
        made.wait("the second round", lambda: made.whole_rounds() == 1 and asked_to_train(made, "north", 2))
        before = set(made.processes("north", "flwr-clientapp"))
        made.wait("its process", lambda: bool(set(made.processes("north", "flwr-clientapp")) - before))
        (hanging,) = set(made.processes("north", "flwr-clientapp")) - before
        os.kill(hanging, signal.SIGSTOP)
        sentence = "site north: no answer within 30 seconds"
        made.wait("the status", lambda: read_status(made.run).sites["north"].refused == sentence)
        made.wait("a round without it", lambda: made.whole_rounds() >= 2)
        assert 2 in refusals(made, "north")
        away = made.whole_rounds()
        os.kill(hanging, signal.SIGCONT)
        made.wait("the end of the process", lambda: hanging not in made.processes("north", ""))
        made.wait("its return", lambda: goes_on(made, "north", away))
        end_all(made)
        assert sentence in made.said("serve")
        check_as_one_process(made, tiny, tmp_path)
        print(refusals(made, "north"))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # within Flower, where it builds the app
def test_rounds_that_hang_are_noticed_and_go_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(tiny.config, rounds=2, quorum=1)
    told: list[str] = []
    with machines(tmp_path, config, tiny.prepared) as made:
        settings = CoordinatorSettings(made.folder / "federation.toml", made.run, gather_s=120.0, retry_s=1.0)
        host = CoordinatorHost(settings, made.folder / "keys", f"127.0.0.1:{made.port}", told.append)
        with in_thread(host, host.serve) as thread:
            made.join_all()
            made.wait("the second round", lambda: made.whole_rounds() == 1 and asked_to_train(made, "north", 2))
            (hanging,) = made.processes("serve", rounds_process.SERVER_APP)
            os.kill(hanging, signal.SIGSTOP)
            monkeypatch.setattr(rounds_process, "HANG_SECONDS", 5.0)
            made.wait("its end", lambda: any("has hung for" in line for line in told))
            monkeypatch.setattr(rounds_process, "HANG_SECONDS", 600.0)
            made.wait("the end of the training", lambda: not thread.is_alive())
        for site in config.participants:
            assert made.end(site) == 0, made.everything()
        assert hanging not in made.processes("serve", "")
        assert "the process that runs the rounds was killed, or could not begin; goes on after round 1 in 1 s" in told
        check_as_one_process(made, tiny, tmp_path)


@pytest.mark.soak
def test_a_supernode_that_hangs_and_goes_on_is_connected_again(tiny: Tiny, tmp_path: Path) -> None:
    """Flower counts it as gone after a minute, and knows it again when it goes on."""
    config = changed(tiny.config, rounds=12, quorum=1)
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve("--deadline", 600)
        made.join_all()
        made.wait("the second round", lambda: made.whole_rounds() == 1 and asked_to_train(made, "north", 2))
        (hanging,) = made.processes("north", "flower-supernode")
        os.kill(hanging, signal.SIGSTOP)
        made.wait("the loss of its connection", lambda: not read_status(made.run).sites["north"].connected)
        away = made.whole_rounds()
        os.kill(hanging, signal.SIGCONT)
        made.wait("its return", lambda: goes_on(made, "north", away))
        end_all(made)
        check_as_one_process(made, tiny, tmp_path)
        print(refusals(made, "north"), made.said("north"))


@pytest.mark.soak
def test_a_supernode_that_hangs_for_good_is_started_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "KNOCK_SECONDS", 1.0)
    config = changed(tiny.config, rounds=12, quorum=1)
    told: list[str] = []
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve("--deadline", 600)
        made.join("south")
        host = SiteHost(*site_settings(load_config(made.hospital("north") / "site.toml")), told.append)
        with in_thread(host, host.join) as thread:
            made.wait("the second round", lambda: made.whole_rounds() == 1 and asked_to_train(made, "north", 2))
            (hanging,) = made.processes("north", "flower-supernode")
            os.kill(hanging, signal.SIGSTOP)
            monkeypatch.setattr(site_host, "HANG_SECONDS", 5.0)
            made.wait("its end", lambda: "supernode: does not answer, and is started again" in told)
            monkeypatch.setattr(site_host, "HANG_SECONDS", 600.0)
            away = made.whole_rounds()
            made.wait("its return", lambda: goes_on(made, "north", away))
            made.wait("the end of the site", lambda: not thread.is_alive())
        assert hanging not in made.processes("north", "")
        made.join("north")  # which has its model, and says so
        end_all(made)
        check_as_one_process(made, tiny, tmp_path)
        print(refusals(made, "north"), told)
