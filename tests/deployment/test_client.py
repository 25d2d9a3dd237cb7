"""What a site answers: every error becomes one word, its log tells the whole, and its own states are safe."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from pflsynth.deployment.client import answer, answer_here
from pflsynth.deployment.flower import KIND, from_message, to_records
from pflsynth.deployment.headers import Declined, Finish, Finished, Join, Joined, Trained, Validate
from pflsynth.deployment.messages import SHARED, Layout, Packet, pack_assignment, read_update
from pflsynth.deployment.settings import SITE_VARIABLE, SiteSettings, log_of
from pflsynth.errors import UsageError
from pflsynth.federation import site as site_module
from pflsynth.federation.aggregate import UpdateRefused
from pflsynth.federation.coordinator import Assignment
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory

from ..data_builders import tree
from ..tiny import Tiny, changed, initial_shared
from .grid import carried


@pytest.fixture(autouse=True)
def _in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def settings(tiny: Tiny, tmp_path: Path) -> SiteSettings:
    """South, before it has done anything."""
    return SiteSettings(tiny.path, "south", tiny.prepared, tmp_path / "run")


def ask(packet: Packet, settings: SiteSettings) -> tuple[Any, Packet, bytes]:
    """The header of the answer, the answer, and its bytes on the wire."""
    reply, data = carried(answer(Message(to_records(packet), 11, KIND), settings))
    found = from_message(reply)
    return found.header, found, data


def to_train(tiny: Tiny, number: int, base: int, keep: tuple[int, ...] = ()) -> tuple[Packet, Assignment]:
    given = Assignment(number, base, initial_shared(tiny.config, "south"), {})
    return pack_assignment(given, keep, tiny.config.agreement_sha256()), given


def log(settings: SiteSettings) -> list[dict[str, str]]:
    return [json.loads(line) for line in log_of(settings.run).read_text().splitlines()]


@pytest.fixture
def first(tiny: Tiny, settings: SiteSettings) -> SiteSettings:
    """South after its first round."""
    assert isinstance(ask(to_train(tiny, 1, 0)[0], settings)[0], Trained)
    return settings


# --------------------------------------------------------------------------------------------------------- as it should


def test_it_joins(tiny: Tiny, settings: SiteSettings) -> None:
    own = tiny.config.agreement_sha256()
    assert ask(Packet(Join(agreement=own, site="south", content=tiny.config.agreement())), settings)[0] == Joined(
        agreement=own
    )


def test_it_trains_as_the_site_does(tiny: Tiny, first: SiteSettings, tmp_path: Path) -> None:
    packet, given = to_train(tiny, 2, 1, (1,))
    header, reply, _ = ask(packet, first)
    assert header.base == 1
    update = read_update(header, reply.arrays, given, "south", tiny.config)
    (tmp_path / "south").mkdir()
    site = Site(tiny.config, "south", {"south": tiny.store("south")}, tmp_path / "south")
    site.train_round(given.shared, 1, 0)
    same = site.train_round(given.shared, 2, 1)
    layout = Layout.of(given.shared)
    assert layout.pack(update.tensors) == layout.pack(same.tensors)
    assert (update.slices, update.metrics) == (same.slices, same.metrics)
    assert tree(tmp_path / "south") == tree(first.run / "sites" / "south")
    assert RunDirectory(first.run).state().bases == {"south": 1}


def test_it_keeps_what_it_may_have_to_roll_back_to(tiny: Tiny, first: SiteSettings) -> None:
    for number in (2, 3):
        ask(to_train(tiny, number, number - 1, (number - 1, number - 2) if number > 2 else (1,))[0], first)
    names = sorted(path.name for path in (first.run / "sites" / "south").iterdir())
    assert names == [f"private-000{number}.safetensors" for number in (1, 2, 3)]
    assert ask(to_train(tiny, 3, 2, (2,))[0], first)[0].base == 2
    names = sorted(path.name for path in (first.run / "sites" / "south").iterdir())
    assert names == [f"private-000{number}.safetensors" for number in (2, 3)]


def test_a_run_whose_making_was_killed_is_made_again(tiny: Tiny, first: SiteSettings) -> None:
    (first.run / "state.json").unlink()
    for path in first.run.rglob("*.safetensors"):
        path.unlink()
    (first.run / ".local.json.1.tmp").write_text("{")
    (first.run / ".lock").unlink()
    assert isinstance(ask(to_train(tiny, 1, 0)[0], first)[0], Trained)
    assert (first.run / "state.json").exists()


# ------------------------------------------------------------------------------------------------------- a lost disk


def test_a_site_that_lost_its_disk_starts_from_the_shared_parameters(tiny: Tiny, first: SiteSettings) -> None:
    shutil.rmtree(first.run)
    header, _, _ = ask(to_train(tiny, 3, 2)[0], first)
    assert (header.kind, header.round, header.base) == ("trained", 3, 0)
    assert "the private state of round 2 is gone: started from the shared parameters" in log(first)[-2]["outcome"]
    assert sorted(path.name for path in (first.run / "sites" / "south").iterdir()) == ["private-0003.safetensors"]


def test_a_coordinator_cannot_make_it_delete_the_states_it_has(tiny: Tiny, first: SiteSettings) -> None:
    ask(to_train(tiny, 3, 2)[0], first)
    assert (first.run / "sites" / "south" / "private-0001.safetensors").exists()


@pytest.mark.parametrize("kind", ["validate", "finish"])
def test_without_the_private_state_there_is_no_personalised_model(tiny: Tiny, first: SiteSettings, kind: str) -> None:
    shared = initial_shared(tiny.config, "south")
    layout = Layout.of(shared)
    common: dict[str, Any] = {
        "agreement": tiny.config.agreement_sha256(),
        "round": 3,
        "base": 2,
        "layout": layout.sha256,
    }
    rest: dict[str, Any] = {"selected": 0, "selected_score": None, "selected_base": 0, "keep": ()}
    header = Validate(**common) if kind == "validate" else Finish(**common, **rest)
    assert ask(Packet(header, {SHARED: layout.pack(shared)}), first)[0].reason == "lost"


def test_it_does_not_finish_before_the_end(tiny: Tiny, first: SiteSettings) -> None:
    shared = initial_shared(tiny.config, "south")
    layout = Layout.of(shared)
    header = Finish(
        agreement=tiny.config.agreement_sha256(),
        round=1,
        base=1,
        layout=layout.sha256,
        selected=0,
        selected_score=None,
        selected_base=0,
        keep=(),
    )
    packet = Packet(header, {SHARED: layout.pack(shared)})
    assert ask(packet, first)[0].reason == "message"
    assert ask(Packet(header.model_copy(update={"round": 3}), packet.arrays), first)[0] == Finished(
        agreement=header.agreement, round=3
    )


# ------------------------------------------------------------------------------------------------------------ refusals


def broken_data(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    shutil.copytree(tiny.prepared, tmp_path / "prepared")
    next((tmp_path / "prepared" / "south").rglob("*.safetensors")).unlink()
    return SiteSettings(settings.federation, "south", tmp_path / "prepared", settings.run)


def damaged_state(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    settings.run.mkdir()
    (settings.run / "state.json").write_text("{")
    return settings


def other_things(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    settings.run.mkdir()
    (settings.run / "thesis.txt").write_text("years of work")
    return settings


def full_disk(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    def fail(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    patch.setattr(site_module, "save_private", fail)
    return settings


def failing(kind: type[Exception]) -> Any:
    def fail(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
        def train_round(*_: Any) -> None:
            raise kind(f"{settings.run}: discriminators.T1w->T2w of sub-secret")

        patch.setattr(Site, "train_round", train_round)
        return settings

    return fail


def no_agreement(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    return SiteSettings(tmp_path / "nowhere.toml", "south", tiny.prepared, settings.run)


def no_site(tiny: Tiny, settings: SiteSettings, tmp_path: Path, patch: pytest.MonkeyPatch) -> SiteSettings:
    return SiteSettings(tiny.path, "west", tiny.prepared, settings.run)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (broken_data, "data"),
        (damaged_state, "state"),
        (other_things, "settings"),
        (full_disk, "disk"),
        (failing(UpdateRefused), "diverged"),
        (failing(RuntimeError), "unexpected"),
        (failing(MemoryError), "unexpected"),
        (no_agreement, "settings"),
        (no_site, "settings"),
    ],
)
def test_an_error_becomes_one_word(
    tiny: Tiny, settings: SiteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrange: Any, reason: str
) -> None:
    """Whatever the sentence holds: the site's log has it, and the wire does not."""
    settings = arrange(tiny, settings, tmp_path, monkeypatch)
    header, _, data = ask(to_train(tiny, 1, 0)[0], settings)
    assert isinstance(header, Declined)
    assert header.reason == reason
    assert log(settings)[-1]["outcome"].startswith(f"declined ({reason}): ")
    assert str(tmp_path.parent) in log(settings)[-1]["outcome"]
    for secret in (str(tmp_path), "sub-", "discriminators", "safetensors", "toml", "thesis"):
        assert secret.encode() not in data
    assert len(data) < 2000


@pytest.fixture
def held(first: SiteSettings) -> Iterator[SiteSettings]:
    with RunDirectory(first.run).lock():
        yield first


def test_a_site_that_is_still_busy_says_so(tiny: Tiny, held: SiteSettings) -> None:
    before = tree(held.run)
    assert ask(to_train(tiny, 2, 1)[0], held)[0].reason == "busy"
    assert tree(held.run) == before


def test_another_version_is_refused(tiny: Tiny, settings: SiteSettings) -> None:
    packet, _ = to_train(tiny, 1, 0)
    other = Packet(packet.header.model_copy(update={"pflsynth": "9.9"}), packet.arrays)
    assert ask(other, settings)[0].reason == "version"


def test_another_agreement_is_told_key_by_key(tiny: Tiny, settings: SiteSettings) -> None:
    theirs = changed(tiny.config, rounds=9)
    header, _, data = ask(
        Packet(Join(agreement=theirs.agreement_sha256(), site="south", content=theirs.agreement())), settings
    )
    assert header.agreement == tiny.config.agreement_sha256()
    assert header.content == json.loads(json.dumps(tiny.config.agreement()))
    assert (
        log(settings)[-2]["outcome"] == "the coordinator has another agreement: rounds is 9 at the coordinator, 3 here"
    )
    assert str(tiny.folder).encode() not in data
    given = Assignment(1, 0, initial_shared(tiny.config, "south"), {})
    packet = pack_assignment(given, (), theirs.agreement_sha256())
    assert ask(packet, settings)[0].reason == "agreement"
    assert not settings.run.exists()


def test_the_settings_of_another_site_are_told(tiny: Tiny, settings: SiteSettings) -> None:
    packet = Packet(Join(agreement=tiny.config.agreement_sha256(), site="north", content={}))
    assert ask(packet, settings)[0].reason == "name"
    assert "key as that of site north, and the settings here are those of site south" in log(settings)[-1]["outcome"]


def test_garbage_is_answered(tiny: Tiny, settings: SiteSettings) -> None:
    reply = answer(Message(RecordDict({"x": ConfigRecord({"y": 1})}), 11, KIND), settings)
    header: Any = from_message(reply).header
    assert header == Declined(agreement=tiny.config.agreement_sha256(), reason="message")
    assert ask(Packet(Joined(agreement=header.agreement)), settings)[0].reason == "message"


# ------------------------------------------------------------------------------------------------------------ settings


def test_settings_come_from_the_file_that_the_environment_names(
    settings: SiteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write(tmp_path / "site.json")
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path / "site.json"))
    assert SiteSettings.from_environment() == settings
    (tmp_path / "site.json").write_text('{"federation": "f", "site": "s", "prepared": "p", "run": "r", "more": 1}')
    with pytest.raises(UsageError, match=r"site\.json: more: "):
        SiteSettings.from_environment()
    reply, data = carried(answer_here(Message(RecordDict(), 11, KIND)))
    assert from_message(reply).header == Declined(agreement="", reason="settings")
    assert str(tmp_path).encode() not in data
    monkeypatch.delenv(SITE_VARIABLE)
    with pytest.raises(UsageError, match="PFLSYNTH_SITE is not set"):
        SiteSettings.from_environment()


HANGS = """
import time
from types import SimpleNamespace
from pflsynth.deployment import client
client.SiteSettings.from_environment = lambda: None
client.answer = lambda message, settings: time.sleep(600)
client.answer_here(SimpleNamespace(metadata=SimpleNamespace(ttl=1.0)))
"""


@pytest.mark.slow
def test_one_that_hangs_ends_itself_when_nobody_waits_any_more() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
