"""One site's key at two places, and a site whose clock is wrong: who is refused is told why, and the others go on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.deployment import site_host
from pflsynth.deployment.processes import members
from pflsynth.deployment.settings import work_of
from pflsynth.deployment.site_host import SiteHost, site_settings
from pflsynth.errors import NetworkError

from ..tiny import Tiny, changed
from .real import Machines, machines
from .test_kill_loop import check_as_one_process, end_all

REFUSED = "it has no site with this key, or still counts the site as connected"


@pytest.fixture(scope="module")
def config(tiny: Tiny) -> FederationConfig:
    return changed(tiny.config, rounds=2, quorum=1)


def twin(made: Machines) -> Path:
    """North's kit, opened at another place; its ``site.toml``."""
    copy = made.folder / "twin"
    shutil.copytree(made.hospital("north"), copy, symlinks=True)
    return copy / "site.toml"


@pytest.mark.soak
def test_the_second_with_one_key_is_refused_and_the_first_goes_on(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_host, "AGAIN_SECONDS", 1.0)
    monkeypatch.setattr(site_host, "REFUSED_SECONDS", 1.0)
    told: list[str] = []
    with machines(tmp_path, config, tiny.prepared) as made:
        site_toml = twin(made)
        made.serve("--gather", 900)  # the first round waits for south, so that all this happens in the training
        made.join("north")
        made.wait("the first", lambda: "join: answered: joined" in made.said("north"))
        second = SiteHost(*site_settings(load_config(site_toml)), told.append)
        with pytest.raises(NetworkError, match=REFUSED) as refused:
            second.join()
        assert refused.value.exit_code == 5
        assert REFUSED in told[0]
        assert not any("connected to" in line for line in told)
        assert members(work_of(site_toml.parent / "run")) == []
        made.join("south")
        end_all(made)
        assert made.said("north").count("connected to") == 1, "it was never disturbed"
        assert made.absences() == {1: set(), 2: set()}
        check_as_one_process(made, tiny, tmp_path)


@pytest.mark.soak
def test_the_second_with_one_key_gives_up_after_three_minutes(
    config: FederationConfig, tiny: Tiny, tmp_path: Path
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        site_toml = twin(made)
        made.serve("--gather", 900)
        made.join("north")
        made.wait("the first", lambda: "join: answered: joined" in made.said("north"))
        made.start("twin", "join", site_toml)
        second = made.started.pop("twin")
        assert second.wait(900) == 5, made.everything()
        assert f"error: coordinator 127.0.0.1:{made.port}: {REFUSED}" in made.said("twin")
        made.join("south")
        end_all(made)
        assert made.absences() == {1: set(), 2: set()}
        check_as_one_process(made, tiny, tmp_path)


@pytest.fixture
def faketime() -> Path:
    """Debian's libfaketime, which gives a process another clock."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed (apt install libfaketime)")
    return found[0]


@pytest.mark.soak
@pytest.mark.parametrize("wrong_by", ["-4m", "+3s"])
def test_a_clock_that_is_a_little_wrong_is_no_matter(
    config: FederationConfig, tiny: Tiny, tmp_path: Path, faketime: Path, monkeypatch: pytest.MonkeyPatch, wrong_by: str
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join("south")
        with monkeypatch.context() as other:
            set_clock(other, faketime, wrong_by, tmp_path / "clock")
            made.join("north")
        end_all(made)
        assert made.absences() == {1: set(), 2: set()}
        check_as_one_process(made, tiny, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(("wrong_by", "told"), [("-7m", "7 minutes behind"), ("+4m", "4 minutes ahead of")])
def test_a_clock_that_is_wrong_is_named(
    config: FederationConfig,
    tiny: Tiny,
    tmp_path: Path,
    faketime: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong_by: str,
    told: str,
) -> None:
    with machines(tmp_path, config, tiny.prepared) as made:
        made.serve()
        made.join("south")
        made.wait("the coordinator", lambda: "connected to" in made.said("south"))
        with monkeypatch.context() as other:
            set_clock(other, faketime, wrong_by, tmp_path / "clock")
            made.join("north")
        wrong = made.started.pop("north")
        assert wrong.wait(300) == 5, made.everything()
        assert f"the clock of this machine is {told} the coordinator's" in made.said("north")
        made.join("north")
        end_all(made)
        check_as_one_process(made, tiny, tmp_path)


def set_clock(monkeypatch: pytest.MonkeyPatch, faketime: Path, wrong_by: str, folder: Path) -> None:
    """Give the processes that are started from now on another clock; how long things take stays as it is.

    Where libfaketime leaves the monotonic clock alone, it refuses the call that Python's own sleep makes.
    """
    monkeypatch.setenv("LD_PRELOAD", str(faketime))
    monkeypatch.setenv("FAKETIME", wrong_by)
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    folder.mkdir()
    sleep = "import threading, time\ntime.sleep = lambda seconds: threading.Event().wait(seconds) and None\n"
    (folder / "sitecustomize.py").write_text(sleep)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
