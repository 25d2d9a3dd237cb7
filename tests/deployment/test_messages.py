"""Packets: what is packed comes back to the bit, and what does not fit is refused before anything is made of it."""

from __future__ import annotations

import math
import re
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pflsynth import __version__
from pflsynth.config import FederationConfig
from pflsynth.deployment.flower import ARRAYS, ENCODING, HEADER, KIND, from_message, to_records
from pflsynth.deployment.headers import (
    LONGEST,
    Declined,
    Joined,
    MessageRefused,
    Scored,
    Trained,
    printable,
    read_header,
)
from pflsynth.deployment.messages import (
    PREVIOUS,
    SHARED,
    Layout,
    Packet,
    check_agreement,
    check_version,
    pack_assignment,
    pack_update,
    read_assignment,
    read_update,
)
from pflsynth.federation.aggregate import Update
from pflsynth.federation.coordinator import Assignment
from pflsynth.federation.methods import method_of
from pflsynth.federation.update_encoding import encode

from ..tiny import Tiny, changed, initial_shared

HASH = "0" * 64


@pytest.fixture(autouse=True)
def _in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(records: RecordDict) -> Message:
    return Message(records, 11, KIND)


# ------------------------------------------------------------------------------------------------------- flat arrays


def test_a_layout_is_names_in_order_with_their_shapes_and_types() -> None:
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0)}
    layout = Layout.of(tensors)
    assert layout.parts == (("a", (), torch.float32), ("b", (1, 2), torch.float32))
    assert layout.size == 12
    assert layout.pack(tensors) == np.array([3.0, 1.0, 2.0], "<f4").tobytes()
    assert layout.sha256 == Layout.of(dict(reversed(tensors.items()))).sha256


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(()), "b": torch.zeros(2, 1)},
        {"a": torch.zeros(()), "c": torch.zeros(1, 2)},
        {"a": torch.zeros(()), "b": torch.zeros(1, 2), "c": torch.zeros(0)},
        {"a": torch.zeros(()), "b": torch.zeros(1, 2, dtype=torch.bfloat16)},
    ],
)
def test_another_name_shape_or_type_is_another_layout(other: dict[str, torch.Tensor]) -> None:
    layout = Layout.of({"a": torch.zeros(()), "b": torch.zeros(1, 2)})
    assert layout.sha256 != Layout.of(other).sha256
    with pytest.raises(MessageRefused, match="other names, shapes or types"):
        layout.unpack(Layout.of(other).sha256, bytes(12))


@given(
    st.lists(
        arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
        max_size=4,
    )
)
def test_what_is_packed_comes_back_to_the_bit(values: list[np.ndarray]) -> None:
    tensors = {f"name {index}": torch.from_numpy(np.array(value)) for index, value in enumerate(values)}
    layout = Layout.of(tensors)
    found = layout.unpack(layout.sha256, layout.pack(tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("data", [b"", bytes(11), bytes(16), None])
def test_another_size_is_refused(data: bytes | None) -> None:
    layout = Layout.of({"a": torch.zeros(3)})
    with pytest.raises(MessageRefused, match=r"wanted 12|is missing"):
        layout.unpack(layout.sha256, data)


# ----------------------------------------------------------------------------------------------------------- headers


def test_headers_come_back() -> None:
    for header in (
        Scored(agreement=HASH, round=3, score=0.1 + 0.2),
        Scored(agreement=HASH, round=3, score=None),
        Joined(agreement=HASH, content={"a": [1, {"b": None}]}),
        Declined(agreement="", reason="busy"),
        Trained(agreement=HASH, round=1, base=0, layout=HASH, slices=7, metrics={"l1/T1w->T2w": 1 / 3}),
    ):
        packet = Packet(header)
        assert read_header(packet.text) == header
        assert packet.size == len(packet.text)


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan])
def test_scores_that_are_not_finite_come_back(score: float) -> None:
    header = read_header(Packet(Scored(agreement=HASH, round=1, score=score)).text)
    assert isinstance(header, Scored)
    assert repr(header.score) == repr(score)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"kind": "unknown"}',
        f'{{"kind": "declined", "agreement": "{HASH}", "reason": "because of /home/someone"}}',
        f'{{"kind": "scored", "agreement": "{HASH}", "round": 1, "score": 1.0, "more": 1}}',
        f'{{"kind": "scored", "agreement": "{HASH}", "round": "1", "score": 1.0}}',
        f'{{"kind": "scored", "agreement": "{HASH}", "round": -1, "score": 1.0}}',
        '{"kind": "scored", "agreement": "x", "round": 1, "score": 1.0}',
        "[" * 100000,
        " " * (LONGEST + 1),
    ],
)
def test_other_headers_are_refused(text: str) -> None:
    with pytest.raises(MessageRefused, match="its header"):
        read_header(text)


def test_what_others_write_is_shown_on_one_short_line() -> None:
    assert printable("a\nb\x1b[31m" + "x" * 300) == "a?b?[31m" + "x" * 192


def test_version_and_agreement(tiny: Tiny) -> None:
    own = tiny.config.agreement_sha256()
    check_version(Joined(agreement=own))
    check_agreement(Joined(agreement=own), tiny.config)
    with pytest.raises(MessageRefused, match=rf"it runs pflsynth 9\.9, this is {__version__}") as refused:
        check_version(Joined(agreement=own, pflsynth="9.9"))
    assert refused.value.reason == "version"
    with pytest.raises(MessageRefused, match="another agreement") as refused:
        check_agreement(Joined(agreement=HASH), tiny.config)
    assert refused.value.reason == "agreement"


# ------------------------------------------------------------------------------------------- assignments and updates


@pytest.fixture(scope="module")
def fedmri(tiny: Tiny) -> FederationConfig:
    return changed(tiny.config, method="fedmri")


@pytest.fixture(scope="module")
def assignment(fedmri: FederationConfig) -> Assignment:
    """South's, in round 2, with the last updates of both sites."""
    previous = {
        site: {name: tensor + add for name, tensor in method_of(fedmri).initial_shared(fedmri, site).items()}
        for site, add in (("north", 1.0), ("south", 2.0))
    }
    return Assignment(2, 1, initial_shared(fedmri, "south"), previous)


def test_an_assignment_comes_back(fedmri: FederationConfig, assignment: Assignment) -> None:
    packet = pack_assignment(assignment, (1,), fedmri.agreement_sha256())
    assert packet.arrays.keys() == {SHARED, f"{PREVIOUS}north", f"{PREVIOUS}south"}
    header: Any = read_header(packet.text)
    found = read_assignment(header, packet.arrays, fedmri, "south")
    assert (found.round, found.base, header.keep) == (2, 1, (1,))
    pairs = [(found.shared, assignment.shared)]
    pairs += [(found.previous[site], assignment.previous[site]) for site in ("north", "south")]
    for got, given_ in pairs:
        assert got.keys() == given_.keys()
        assert all(torch.equal(got[name], given_[name]) for name in given_)


@pytest.mark.parametrize(("number", "base"), [(0, 0), (4, 1), (1, 1), (2, 3)])
def test_a_round_that_there_is_not_is_refused(
    fedmri: FederationConfig, assignment: Assignment, number: int, base: int
) -> None:
    packet = pack_assignment(replace(assignment, round=number, base=base), (), HASH)
    with pytest.raises(MessageRefused, match="is not one of 3 rounds"):
        read_assignment(packet.header, packet.arrays, fedmri, "south")  # type: ignore[arg-type]


def test_an_update_of_a_stranger_is_not_taken_on(fedmri: FederationConfig, assignment: Assignment) -> None:
    strange = replace(assignment, previous={"mallory\n": assignment.shared})
    packet = pack_assignment(strange, (), HASH)
    with pytest.raises(MessageRefused, match=r'update of "mallory\?", which does not train'):
        read_assignment(packet.header, packet.arrays, fedmri, "south")  # type: ignore[arg-type]


def an_update(assignment: Assignment) -> Update:
    return Update("south", 2, assignment.shared, 12, {"l1/T1w->T2w": 0.5, "l1/T2w->T1w": 0.25})


def test_an_update_comes_back(fedmri: FederationConfig, assignment: Assignment) -> None:
    update = an_update(assignment)
    packet = pack_update(update, 1, fedmri.agreement_sha256())
    header: Any = read_header(packet.text)
    found = read_update(header, packet.arrays, assignment, "south", fedmri)
    assert (found.site, found.round, found.slices, found.metrics) == ("south", 2, 12, update.metrics)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in update.tensors.items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"round": 1}, "it is an update of round 1, and this is round 2"),
        ({"base": 2}, "it started from round 2, and was told to from round 1"),
        ({"layout": HASH}, "other names, shapes or types"),
        ({"metrics": {"l1/FLAIR->T1w": 1.0}}, "not of one of its tasks"),
        ({"metrics": {"/data/sub-01/T1w->T2w": 1.0}}, "not of one of its tasks"),
        ({"metrics": {f"loss {index}/T1w->T2w": 1.0 for index in range(1001)}}, "not of one of its tasks"),
    ],
)
def test_another_update_is_refused(
    fedmri: FederationConfig, assignment: Assignment, change: dict[str, Any], sentence: str
) -> None:
    packet = pack_update(an_update(assignment), 1, HASH)
    header: Any = packet.header.model_copy(update=change)
    with pytest.raises(MessageRefused, match=sentence):
        read_update(header, packet.arrays, assignment, "south", fedmri)


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_encoded_update_comes_back(fedmri: FederationConfig, assignment: Assignment, encoding: Any) -> None:
    config = changed(fedmri, updates={"encoding": encoding})
    trained = {name: tensor * 1.01 for name, tensor in assignment.shared.items()}
    sent, _ = encode(encoding, trained, assignment.shared, {})
    packet = pack_update(replace(an_update(assignment), tensors=sent), 1, HASH)
    assert len(packet.arrays[SHARED]) == round(1e6 * method_of(config).sent_megabytes(config, "south"))
    found = read_update(packet.header, packet.arrays, assignment, "south", config)  # type: ignore[arg-type]
    assert found.tensors.keys() == sent.keys()
    for name, tensor in sent.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    with pytest.raises(MessageRefused, match="other names, shapes or types"):
        read_update(packet.header, packet.arrays, assignment, "south", fedmri)  # type: ignore[arg-type]
    with pytest.raises(MessageRefused, match=r"its array has \d+ bytes, wanted \d+"):
        read_update(packet.header, {SHARED: packet.arrays[SHARED][:-1]}, assignment, "south", config)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- Flower's records


def test_a_packet_goes_through_flowers_records() -> None:
    packet = Packet(Joined(agreement=HASH), {"one": bytes(8), "none": b""})
    assert from_message(message(to_records(packet))) == packet


def flower(array: Array) -> RecordDict:
    header = ConfigRecord({HEADER: Packet(Joined(agreement=HASH)).text})
    return RecordDict({HEADER: header, ARRAYS: ArrayRecord({SHARED: array})})


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({HEADER: ConfigRecord({HEADER: "{}"})}),
        RecordDict({HEADER: MetricRecord({"a": 1}), ARRAYS: ArrayRecord()}),
        RecordDict({HEADER: ConfigRecord({HEADER: b"{}"}), ARRAYS: ArrayRecord()}),
        RecordDict({HEADER: ConfigRecord({HEADER: "{}", "more": 1}), ARRAYS: ArrayRecord()}),
        RecordDict({HEADER: ConfigRecord({HEADER: "{}"}), ARRAYS: ArrayRecord(), "more": ConfigRecord()}),
        flower(Array(np.zeros(2, np.float32))),
        flower(Array(dtype="float32", shape=(8,), stype=ENCODING, data=bytes(8))),
        flower(Array(dtype="uint8", shape=(8,), stype=ENCODING, data=bytes(9))),
        flower(Array(dtype="uint8", shape=(1, 8), stype=ENCODING, data=bytes(8))),
    ],
)
def test_other_records_are_refused(records: RecordDict) -> None:
    with pytest.raises(MessageRefused):
        from_message(message(records))


def test_a_claim_of_ten_gigabytes_is_refused_before_anything_is_allocated() -> None:
    claim = message(flower(Array(dtype="uint8", shape=(10_000_000_000,), stype=ENCODING, data=bytes(400))))
    tracemalloc.start()
    try:
        with pytest.raises(MessageRefused, match=r"claims the shape \(10000000000,\) and has 400 bytes"):
            from_message(claim)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (3, "what it was asked is lost, as after a stop of the SuperLink, or came too late"),
        (5, "its connection is lost: its machine, its network or its SuperNode stopped"),
        (8, "the process that was to answer was killed or has ended"),
        (600, "Flower reports an error (code 600)"),
    ],
)
def test_an_error_of_flower_is_no_packet(code: int, cause: str) -> None:
    error = Message(Error(code=code, reason="/home/x"), reply_to=message(RecordDict()))
    with pytest.raises(MessageRefused, match=f"^{re.escape(cause)}$"):
        from_message(error)
