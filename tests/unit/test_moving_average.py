"""The moving average of a generator: by hand, over a training that it does not change, and after a stop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pflsynth.federation.method import SiteNetworks
from pflsynth.federation.moving_average import MovingAverage, kept
from pflsynth.federation.personalised import open_personalised
from pflsynth.federation.sharing import Partition
from pflsynth.files import load_tensors

from ..tiny import Tiny, changed, train
from .test_methods import resumed_to_the_same_bytes

PARTITION = Partition(shared=("generator.weight",), private=("generator.bias", "discriminators.a.weight"))


def networks(weight: float, bias: float) -> SiteNetworks:
    generator = nn.Linear(1, 1)
    nn.init.constant_(generator.weight, weight)
    nn.init.constant_(generator.bias, bias)
    return SiteNetworks(generator, {"a": nn.Linear(1, 1, bias=False)})


def test_early_steps_forget_faster() -> None:
    assert [kept(0.9, step) for step in (0, 1, 8, 79, 80, 1000)] == [0.1, 2 / 11, 0.5, 80 / 89, 0.9, 0.9]


def test_what_is_shared_counts_by_rounds_and_what_is_private_by_steps() -> None:
    own = networks(weight=4.0, bias=2.0)
    known = {"generator.weight": torch.tensor([[0.0]]), "generator.bias": torch.tensor([0.0])}
    average = MovingAverage(own, PARTITION, 0.5, known)
    average.begin_round(first=20, steps=3)
    assert average.tensors["generator.weight"].item() == 4.0 * (1 - 0.5**3)
    for bias, wanted in ((2.0, 1.0), (3.0, 2.0), (0.0, 1.0)):
        nn.init.constant_(own.generator.bias, bias)
        nn.init.constant_(own.generator.weight, 100.0)  # trained here, but what counts is what all sites send
        average.count_step()
        assert average.tensors["generator.bias"].item() == wanted
    assert average.tensors["generator.weight"].item() == 3.5
    assert average.tensors.keys() == {"generator.weight", "generator.bias"}
    average.apply()
    assert (own.generator.weight.item(), own.generator.bias.item()) == (3.5, 1.0)


def test_without_an_average_so_far_it_begins_with_the_networks() -> None:
    own = networks(weight=4.0, bias=2.0)
    average = MovingAverage(own, PARTITION, 0.9, {})
    nn.init.constant_(own.generator.bias, 7.0)
    assert average.tensors["generator.bias"].item() == 2.0
    average.begin_round(first=0, steps=2)
    assert average.tensors["generator.weight"].item() == pytest.approx(4.0)


def test_a_training_is_the_same_with_it_and_its_models_are_not(tiny: Tiny, tmp_path) -> None:
    config = changed(tiny.config, rounds=2)
    train(config, tiny.prepared, tmp_path / "last")
    train(changed(config, training={"ema_decay": 0.9}), tiny.prepared, tmp_path / "average")
    path = "shared/round-0002.safetensors"
    last, average = (load_tensors(tmp_path / run / path, kind="shared")[0] for run in ("last", "average"))
    assert all(torch.equal(average[name], tensor) for name, tensor in last.items())
    last, average = (open_personalised(tmp_path / run, "north").generator.state_dict() for run in ("last", "average"))
    differing = {name for name, tensor in last.items() if not torch.equal(average[name], tensor)}
    assert {"stages.1.0.weight", "personalization.1.adain.affine.weight"} <= differing


def test_it_resumes_to_the_same_bytes(tiny: Tiny, tmp_path) -> None:
    resumed_to_the_same_bytes(changed(tiny.config, rounds=2, training={"ema_decay": 0.9}), tiny, tmp_path)
