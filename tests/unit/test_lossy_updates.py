"""Trainings with lossy updates: what is owed follows the accepted rounds, stays private, and survives any stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pflsynth.config import FederationConfig
from pflsynth.federation import site as site_module
from pflsynth.federation.aggregate import Update, UpdateRefused
from pflsynth.federation.checkpoint import RESIDUAL
from pflsynth.federation.coordinator import Coordinator
from pflsynth.federation.methods import METHODS
from pflsynth.federation.newcomer import serve_newcomer
from pflsynth.federation.site import Site
from pflsynth.federation.update_encoding import SCALE, Tensors, decode, encode
from pflsynth.files import load_tensors
from pflsynth.runs import RunDirectory

from ..tiny import Silent, Tiny, changed, initial_shared, new_federation, train
from .test_methods import resumed_to_the_same_bytes
from .test_rounds import Watched, with_nan

BIAS, WEIGHT = "generator.mapper.layers.0.bias", "generator.mapper.layers.0.weight"
LOSSY = ("bfloat16", "int8")


def lossy(tiny: Tiny, encoding: str, **sections: Any) -> FederationConfig:
    """The tiny federation with an encoding, and the shortest mapper."""
    return changed(tiny.config, updates={"encoding": encoding}, model={"mapper_layers": 1}, **sections)


@dataclass
class Encoded:
    """What one call of :func:`encode` was given and gave."""

    encoding: Any
    trained: Tensors
    received: Tensors
    residual: Tensors
    sent: Tensors
    lacking: Tensors

    def arrived(self, name: str) -> torch.Tensor:
        return decode(self.encoding, self.sent, self.received)[name].double() - self.received[name].double()

    def learnt(self, name: str) -> torch.Tensor:
        return self.trained[name].double() - self.received[name].double()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """Every update that a site encodes, in order."""
    calls: list[Encoded] = []

    def watched(encoding: Any, trained: Any, received: Any, residual: Any) -> Any:
        sent, lacking = encode(encoding, trained, received, residual)
        calls.append(Encoded(encoding, dict(trained), dict(received), dict(residual), sent, lacking))
        return sent, lacking

    monkeypatch.setattr(site_module, "encode", watched)
    return calls


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("encoding", LOSSY)
def test_update_and_private_residual_are_what_was_trained(tiny: Tiny, tmp_path: Path, encoding: str) -> None:
    updates = {}
    for name in ("float32", encoding):
        config, folder = lossy(tiny, name), tmp_path / name
        folder.mkdir()
        site = Site(config, "north", {"north": tiny.store("north")}, folder)
        updates[name] = site.train_round(initial_shared(config, "north"), 1, 0)
        assert updates[name].megabytes == METHODS["pflsynth"].sent_megabytes(config, "north")
    trained, update = updates["float32"].tensors, updates[encoding]
    shared = initial_shared(config, "north")
    decoded = decode(config.updates.encoding, update.tensors, shared)
    private, _ = load_tensors(tmp_path / encoding / "private-0001.safetensors", kind="private")
    residual = {key.removeprefix(RESIDUAL): value for key, value in private.items() if key.startswith(RESIDUAL)}
    assert residual.keys() == {name for name in trained if trained[name].ndim > 1}
    assert any(bool(tensor.any()) for tensor in residual.values())
    for name, tensor in trained.items():
        torch.testing.assert_close(decoded[name] + residual.get(name, 0.0), tensor, rtol=2**-23, atol=0.0)
    plain, _ = load_tensors(tmp_path / "float32" / "private-0001.safetensors", kind="private")
    assert equal(plain, {key: value for key, value in private.items() if not key.startswith(RESIDUAL)})
    assert {f"{name}{SCALE}" for name in residual} == update.tensors.keys() - trained.keys() or encoding != "int8"


def test_a_refused_update_is_as_if_it_had_not_been(tiny: Tiny, tmp_path: Path, encoded: list[Encoded]) -> None:
    """South's second update is refused: in round 3 it owes what its first one lacked, and so do the sums."""
    config = lossy(tiny, "int8", rounds=4, quorum=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    south = Watched(federation.sites[1], lambda update: with_nan(update, BIAS), rounds=(2,))
    federation.train(Silent())
    first, refused, third, fourth = encoded[1::2]
    assert list(south.bases.values()) == [0, 1, 1, 3]
    assert first.residual == {}
    assert first.lacking
    assert equal(refused.residual, first.lacking)
    assert not equal(refused.lacking, first.lacking)
    assert equal(third.residual, first.lacking)
    assert equal(fourth.residual, third.lacking)
    for name, owed in fourth.lacking.items():
        accepted = (first, third, fourth)
        arrived = torch.stack([each.arrived(name) for each in accepted]).sum(0)
        learnt = torch.stack([each.learnt(name) for each in accepted]).sum(0)
        rounding = 1e-6 * (1 + first.received[name].abs().max())
        torch.testing.assert_close(arrived + owed, learnt, rtol=0.0, atol=float(rounding))


def test_the_mean_is_that_of_the_decoded_updates(tiny: Tiny, tmp_path: Path, encoded: list[Encoded]) -> None:
    config = lossy(tiny, "int8", rounds=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    federation.train(Silent())
    slices = [site.slices for site in federation.sites]
    found, _ = load_tensors(tmp_path / "run" / "shared" / "round-0001.safetensors", kind="shared")
    for name, tensor in found.items():
        decoded = [decode("int8", each.sent, each.received)[name].double() for each in encoded]
        mean = (slices[0] * decoded[0] + slices[1] * decoded[1]) / sum(slices)
        torch.testing.assert_close(tensor.double(), mean, rtol=2**-23, atol=2**-24)
    assert not equal(found, encoded[0].trained)


@pytest.mark.parametrize("encoding", LOSSY)
def test_stopped_and_resumed_gives_the_same_bytes(tiny: Tiny, tmp_path: Path, encoding: str) -> None:
    resumed_to_the_same_bytes(lossy(tiny, encoding, rounds=2), tiny, tmp_path)


def test_a_newcomer_sends_nothing_so_nothing_is_rounded(tiny: Tiny, tmp_path: Path, encoded: list[Encoded]) -> None:
    config = lossy(tiny, "int8", rounds=1, held_out=["south"])
    train(config, tiny.prepared, tmp_path / "run")
    models = serve_newcomer(RunDirectory(tmp_path / "run"), config, "south", tiny.store("south"), 1)
    assert models.keys() == {0, 1}
    assert [each.encoding for each in encoded] == ["int8", "float32"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda sent: {name: tensor.float() for name, tensor in sent.items()}, "it is not encoded as int8: tensor .*"),
        (lambda sent: {name: tensor for name, tensor in sent.items() if not name.endswith(SCALE)}, "is not there"),
        (lambda sent: sent | {f"{WEIGHT}{SCALE}": sent[f"{WEIGHT}{SCALE}"] * torch.nan}, "holds NaN, Inf or no"),
        (lambda sent: sent | {f"{WEIGHT}{SCALE}": sent[f"{WEIGHT}{SCALE}"] + 1e3}, "is not below 16384"),
    ],
)
def test_a_wrong_encoding_is_refused_with_a_sentence(tiny: Tiny, tmp_path: Path, spoil: Any, sentence: str) -> None:
    config = lossy(tiny, "int8")
    RunDirectory.create(tmp_path / "run", config, None, {}, config.participants, ())
    made = Coordinator(config, RunDirectory(tmp_path / "run"))
    made.resume()
    current = made.begin()
    shared = current.assignment("north").shared
    sent, _ = encode("int8", {name: tensor + 1.0 for name, tensor in shared.items()}, shared, {})
    with pytest.raises(UpdateRefused, match=f"update of site north, round 1.*{sentence}"):
        current.accept(Update("north", 1, spoil(sent), 10))
    assert current.accepted == frozenset()
    current.accept(Update("north", 1, sent, 10))
    assert current.accepted == {"north"}
