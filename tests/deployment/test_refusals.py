"""What a site sends that must not be used: refused, named, and the federation goes on to the same bytes without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from pflsynth.config import FederationConfig
from pflsynth.deployment.flower import ENCODING, from_message, to_records
from pflsynth.deployment.headers import Joined
from pflsynth.deployment.messages import SHARED, Packet
from pflsynth.deployment.settings import CoordinatorSettings, log_of
from pflsynth.deployment.status import read_status
from pflsynth.errors import ModelError, UsageError
from pflsynth.runs import RunDirectory

from ..tiny import Silent, Tiny, changed, new_federation
from .grid import Hospitals, Letter
from .test_same_bytes import site_half, with_absences

Change = Callable[[Packet, Message], Message]


@pytest.fixture(scope="module")
def without(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds in one process, the second without south."""
    run = tmp_path_factory.mktemp("without") / "run"
    with_absences(tiny, run, {2: {"south"}}, quorum=1, rounds=2)
    return run


@pytest.fixture(scope="module")
def config(tiny: Tiny) -> FederationConfig:
    return changed(tiny.config, quorum=1, rounds=2)


def sends(packet: Packet, request: Message) -> Message:
    return Message(to_records(packet), reply_to=request)


def header(**changes: Any) -> Change:
    """A change of the header."""
    return lambda packet, request: sends(Packet(packet.header.model_copy(update=changes), packet.arrays), request)


def numbers(change: Callable[[np.ndarray], Any]) -> Change:
    """A change of the numbers."""

    def changed_numbers(packet: Packet, request: Message) -> Message:
        flat = np.frombuffer(packet.arrays[SHARED], np.float32).copy()
        data = np.asarray(change(flat), np.float32).tobytes()
        return sends(Packet(packet.header, {SHARED: data}), request)

    return changed_numbers


def records(*parts: Any) -> Change:
    """Other records of Flower."""
    return lambda packet, request: Message(
        RecordDict({f"part {index}": part for index, part in enumerate(parts)}), reply_to=request
    )


def claim(packet: Packet, request: Message) -> Message:
    """Ten gigabytes, of which four hundred bytes are there."""
    content = to_records(Packet(packet.header))
    array = Array(dtype="uint8", shape=(10_000_000_000,), stype=ENCODING, data=bytes(400))
    content["arrays"] = ArrayRecord({SHARED: array})
    return Message(content, reply_to=request)


def nan_at_five(flat: np.ndarray) -> np.ndarray:
    flat[5] = np.nan
    return flat


def unreadable(packet: Packet, request: Message) -> Message:
    raise ValueError("Flower cannot put this together")


CASES: dict[str, tuple[Change, str]] = {
    "garbage": (records(ConfigRecord({"a": "b"}), MetricRecord({"c": 1})), "does not hold the two records"),
    "nothing": (records(), "does not hold the two records"),
    "unreadable": (unreadable, "its reply cannot be read (ValueError)"),
    "error": (lambda _, request: Message(Error(8, "/home/x"), reply_to=request), "was killed or has ended"),
    "NaN": (numbers(nan_at_five), "holds NaN, Inf or no floating-point numbers"),
    "far": (numbers(lambda flat: flat + 100), "is the farthest that is plausible"),
    "old round": (header(round=1), "it is an update of round 1, and this is round 2"),
    "other names": (header(layout="0" * 64), "its tensors have other names, shapes or types"),
    "too short": (numbers(lambda flat: flat[:-1]), "bytes, wanted"),
    "10 GB": (claim, "claims the shape (10000000000,) and has 400 bytes"),
    "other agreement": (header(agreement="0" * 64), "it has another agreement"),
    "other version": (header(pflsynth="9.9"), "it runs pflsynth 9.9, this is"),
    "no slices": (header(slices=0), "0 slices; a total of 1 to"),
    "heavy": (header(slices=2**24), "16777216 slices; a total of 1 to"),
    "chatty": (header(metrics={"age of patient 3/T1w->T2w": 61.0, "l1/T1w->FLAIR": 0.1}), "not of one of its tasks"),
    "other reply": (lambda packet, request: sends(Packet(Joined(agreement="")), request), 'its reply is "joined"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_update_is_refused_and_named(
    config: FederationConfig, tiny: Tiny, without: Path, tmp_path: Path, case: str
) -> None:
    change, sentence = CASES[case]

    def spoil(letter: Letter, reply: Message) -> Message:
        if letter.site == "south" and letter.header.kind == "train" and letter.header.round == 2:
            return change(from_message(reply), letter.message)
        return reply

    hospitals = Hospitals(tmp_path, config, tiny.prepared, spoil=spoil)
    state = hospitals.serve()
    assert state.bases == {"north": 2, "south": 1}
    for name in ("round-0001.safetensors", "round-0002.safetensors"):
        assert (hospitals.coordinator / "shared" / name).read_bytes() == (without / "shared" / name).read_bytes()
    refused = RunDirectory(hospitals.coordinator).records("metrics.jsonl")[1]["refused"]
    assert refused.keys() == {"south"}
    assert sentence in refused["south"]
    assert "site south" in refused["south"]
    assert "/home/x" not in refused["south"]
    models = {name: data for name, data in site_half(hospitals.run_of("south"), "south").items() if "perso" in name}
    assert models
    assert models.items() <= site_half(without, "south").items()


@pytest.mark.slow
def test_a_message_that_answers_nothing_is_no_reply(config: FederationConfig, tiny: Tiny, tmp_path: Path) -> None:
    """When any reply is fetched, Flower hands out what a site sends unasked, too, without a word on who sent it."""
    unasked: list[Message] = []

    def spoil(letter: Letter, reply: Message) -> Message:
        if letter.site == "south" and letter.header.kind == "train" and not unasked:
            packet = from_message(reply)
            zeros = {name: bytes(len(data)) for name, data in packet.arrays.items()}
            unasked.append(sends(Packet(packet.header, zeros), letter.message))
            unasked[0].metadata.__dict__["_reply_to_message_id"] = ""
            return unasked[0]
        return reply

    with_absences(tiny, tmp_path / "in process", {}, quorum=1, rounds=2)
    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, spoil=spoil)
    hospitals.serve()
    assert unasked
    name = "shared/round-0002.safetensors"
    assert (hospitals.coordinator / name).read_bytes() == (tmp_path / "in process" / name).read_bytes()


# -------------------------------------------------------------------------------------------------- who may take part


@pytest.mark.slow
def test_two_nodes_of_one_name_are_both_refused(
    config: FederationConfig, tiny: Tiny, without: Path, tmp_path: Path
) -> None:
    def absent(number: int) -> set[str]:
        hospitals.strangers = {98: "mallory\n", **({99: "south"} if number == 2 else {})}
        return set()

    hospitals = Hospitals(tmp_path, config, tiny.prepared, absent=absent)
    states: list[dict[str, Any]] = []

    def watch(letter: Letter, reply: Message) -> Message:
        states.append(hospitals.status())
        return reply

    hospitals.spoil = watch
    hospitals.serve()
    records = RunDirectory(hospitals.coordinator).records("metrics.jsonl")
    assert [record["refused"] for record in records] == [{}, {"south": "site south: was not there"}]
    name = "shared/round-0002.safetensors"
    assert (hospitals.coordinator / name).read_bytes() == (without / name).read_bytes()
    strangers = [state["strangers"] for state in states if state["phase"] == "training" and state["round"] == 2]
    assert strangers == [{"mallory?": "is not the name of a site that trains", "south": "2 nodes have this name"}]
    assert {site for site, _ in hospitals.asked} == {"north", "south"}


@pytest.mark.slow
def test_a_site_is_who_its_key_is(config: FederationConfig, tiny: Tiny, tmp_path: Path) -> None:
    """South sends north's update as its own: it counts as south's, so north's tasks in it give it away."""
    updates: dict[int, Packet] = {}

    def spoil(letter: Letter, reply: Message) -> Message:
        if letter.header.kind != "train":
            return reply
        if letter.site == "north":
            updates[letter.header.round] = from_message(reply)
            return reply
        return sends(updates[letter.header.round], letter.message)

    hospitals = Hospitals(tmp_path, config, tiny.prepared, spoil=spoil)
    hospitals.serve()
    records = RunDirectory(hospitals.coordinator).records("metrics.jsonl")
    assert [record["refused"]["south"] for record in records] == [
        'site south: it tells a metric "adversarial/T1w->FLAIR" that is not of one of its tasks',
        "site south: it started from round 1, and was told to from round 0",
    ]
    assert all(record["losses"].keys() == {"north"} for record in records)


def test_the_settings_of_another_site_are_told(config: FederationConfig, tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, changed(config, quorum=2), tiny.prepared)
    (tmp_path / "south.json").write_bytes((tmp_path / "north.json").read_bytes())
    with pytest.raises(ModelError, match="no quorum"):
        hospitals.serve(patience_s=0.0)
    told = hospitals.status()["sites"]["south"]["refused"]
    assert told == "site south: its settings are those of another site than its key; its own log tells more"


@pytest.mark.slow
def test_another_agreement_keeps_a_site_out_and_both_sides_see_where(
    config: FederationConfig, tiny: Tiny, tmp_path: Path
) -> None:
    hospitals = Hospitals(tmp_path, config, tiny.prepared)
    other = changed(config, rounds=9, training={"learning_rate": 0.5})
    theirs = tmp_path / "theirs.toml"
    theirs.write_text(tomli_w.dumps(other.model_dump(mode="json", exclude_none=True)))
    settings = hospitals.settings("south")
    type(settings)(theirs, "south", settings.prepared, settings.run).write(tmp_path / "south.json")
    hospitals.serve()
    told = hospitals.status()["sites"]["south"]
    assert not told["joined"]
    assert told["refused"] == (
        "site south: it has another agreement: rounds is 2 here, 9 there; "
        "training.learning_rate is 0.001 here, 0.5 there"
    )
    lines = [json.loads(line)["outcome"] for line in log_of(settings.run).read_text().splitlines()]
    assert (
        "rounds is 2 at the coordinator, 9 here; training.learning_rate is 0.001 at the coordinator, 0.5 here"
        in lines[0]
    )
    assert {kind for site, kind in hospitals.asked if site == "south"} == {"join"}
    assert RunDirectory(hospitals.coordinator).state().bases == {"north": 2, "south": 0}


# -------------------------------------------------------------------------------------------------- a site that failed


@pytest.mark.slow
def test_a_site_that_lost_its_disk_comes_back(tiny: Tiny, tmp_path: Path) -> None:
    """The same bytes as in one process with a site that starts from the shared parameters."""
    config = tiny.config
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    south: Any = federation.sites[1]
    train_round = south.train_round
    south.train_round = lambda shared, number, base, *others: train_round(shared, number, base * (number != 3), *others)
    federation.train(Silent())

    def lose(letter: Letter, reply: Message) -> Message:
        if letter.header.kind == "train" and letter.header.round == 3 and letter.site == "north":
            shutil.rmtree(hospitals.run_of("south"))
        return reply

    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, spoil=lose)
    hospitals.serve()
    name = "shared/round-0003.safetensors"
    assert (hospitals.coordinator / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    name = "sites/south/personalised-0003.safetensors"
    assert (hospitals.run_of("south") / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    sites = hospitals.status()["sites"]
    assert (sites["north"]["lost_state"], sites["south"]["lost_state"]) == (None, 3)


@pytest.mark.slow
def test_without_a_quorum_a_round_asks_again_only_who_is_missing(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    failures = [1, 1, 2]

    def spoil(letter: Letter, reply: Message) -> Message:
        header = letter.header
        if letter.site == "south" and header.kind == "train" and header.round in failures:
            failures.remove(header.round)
            return Message(Error(3, "Node Unavailable"), reply_to=letter.message)
        return reply

    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, spoil=spoil)
    hospitals.serve()
    assert hospitals.order == ["north", "south", "south", "south", "north", "south", "south", "north", "south"]
    for name in ("metrics.jsonl", "shared/round-0003.safetensors"):
        assert (hospitals.coordinator / name).read_bytes() == (trained / name).read_bytes()


def test_no_quorum_ends_it_only_if_the_patience_is_limited(tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, absent=lambda number: {"south"})
    with pytest.raises(ModelError, match="no quorum within 0 seconds; not there: south"):
        hospitals.serve(patience_s=0.0)
    status = read_status(hospitals.coordinator)
    assert (status.phase, status.problem) == ("stopped", "no quorum within 0 seconds; not there: south")
    assert status.sites["north"].connected
    assert status.sites["north"].joined
    assert not status.sites["south"].connected


def test_a_quorum_that_keeps_failing_ends_it_only_if_the_patience_is_limited(tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared)
    shutil.copytree(tiny.prepared, tmp_path / "prepared")
    settings = hospitals.settings("south")
    type(settings)(settings.federation, "south", tmp_path / "prepared", settings.run).write(tmp_path / "south.json")
    for path in (tmp_path / "prepared" / "south").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match="round 1: no quorum: site south: its prepared data cannot be used"):
        hospitals.serve(patience_s=0.0)
    assert RunDirectory(hospitals.coordinator).state().round == 0


# ------------------------------------------------------------------------------------------------- before any training


def test_a_method_that_pools_data_is_not_trained_across_machines(tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, changed(tiny.config, method="pgan"), tiny.prepared)
    with pytest.raises(UsageError, match='method "pgan" pools the data of all sites at one place'):
        hospitals.serve()
    assert not hospitals.coordinator.exists()


def test_a_run_of_another_agreement_is_refused_key_by_key(tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, absent=lambda number: {"north", "south"})
    with pytest.raises(ModelError, match="no quorum"):
        hospitals.serve(patience_s=0.0)
    other = Hospitals(tmp_path, changed(tiny.config, seed=4), tiny.prepared)
    with pytest.raises(ModelError, match="seed is 3 in the run, 4 now"):
        other.serve()


def test_the_coordinator_has_no_folder_for_sites(tiny: Tiny, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, absent=lambda number: {"north", "south"})
    with pytest.raises(ModelError, match="no quorum"):
        hospitals.serve(patience_s=0.0)
    assert not list((hospitals.coordinator / "sites").iterdir())
    assert not (hospitals.coordinator / "local.json").exists()


@pytest.mark.parametrize(("key", "value"), [("wave", 0), ("deadline_s", -1.0), ("poll_s", "soon")])
def test_settings_have_limits(tiny: Tiny, tmp_path: Path, key: str, value: Any) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared)
    CoordinatorSettings(hospitals.federation, hospitals.coordinator).write(tmp_path / "good.json")
    content = json.loads((tmp_path / "good.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**content, key: value}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFLSYNTH_COORDINATOR", str(tmp_path / "bad.json"))
        with pytest.raises(UsageError, match=rf"bad\.json: {key}: "):
            CoordinatorSettings.from_environment()
