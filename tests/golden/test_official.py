"""Official checkpoints are read under both namings, written back unchanged, and refused when they do not fit."""

from __future__ import annotations

import re

import pytest
import torch

from pflsynth.errors import ModelError
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.official import load_generator, to_official

from .fill import read_digests


def with_dropout_names(state_dict):
    """Rename conv_block.5/.6 to .6/.7, as networks built with dropout have it."""
    return {
        re.sub(r"conv_block\.([56])", lambda match: f"conv_block.{int(match[1]) + 1}", name): tensor
        for name, tensor in state_dict.items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def small():
    """The official state dict of a small generator."""
    torch.manual_seed(0)
    return to_official(PersonalizedGenerator(7, width=8, residual_layers=2, dropout=0.0))


def test_round_trip_without_dropout(generator_weights):
    generator = load_generator(generator_weights)
    assert generator.dropout == 0.0
    assert not generator.training
    assert equal(to_official(generator), generator_weights)


def test_round_trip_with_dropout(generator_weights):
    official = with_dropout_names(generator_weights)
    generator = load_generator({f"module.{name}": tensor for name, tensor in official.items()})
    assert generator.dropout == 0.5
    assert generator.stages["4"].dropout.p == 0.5
    assert equal(to_official(generator), official)
    assert equal(generator.state_dict(), load_generator(generator_weights).state_dict())


def test_sizes_are_read_off_the_shapes(small):
    generator = load_generator(small)
    assert (generator.code_length, generator.width, generator.residual_layers) == (7, 8, 2)
    assert equal(to_official(generator), small)


def test_values_are_copied_as_float32_without_drawing_random_numbers(small):
    state = torch.random.get_rng_state()
    generator = load_generator({name: t.double() if t.is_floating_point() else t for name, t in small.items()})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in generator.parameters())
    with torch.no_grad():
        generator.stages["1"][0].weight.zero_()
    assert small["model_1.1.weight"].abs().sum() > 0


def test_aggregated_keys_are_the_shared_part(generator_weights):
    names = set(to_official(load_generator(generator_weights)))
    stages = {f"model_{i}" for i in range(9, 16)}
    shared = {name for name in names if name.split(".")[0] in stages | {"mapper"}}
    digest = read_digests("aggregate")["digest"]
    assert set(digest) == {name for name in shared if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["model_4.conv_block.1.weight", "model_1.1.weight", "mapper.map.dense0.weight"])
def test_missing_names_are_listed(small, name):
    del small[name]
    with pytest.raises(ModelError, match=f"missing {re.escape(name)}"):
        load_generator(small)


def test_every_kind_of_problem_is_listed(small):
    del small["model_2.1.bias"]
    small["surprise.weight"] = torch.zeros(1)
    small["model_3.0.weight"] = small["model_3.0.weight"][:, :3]
    with pytest.raises(ModelError) as caught:
        load_generator(small)
    message = str(caught.value)
    assert "missing model_2.1.bias;" in message
    assert "unexpected surprise.weight;" in message
    assert "wrong shape model_3.0.weight (32, 3, 3, 3) instead of (32, 16, 3, 3)" in message


def test_mixed_namings_are_refused(small):
    small["model_4.conv_block.7.weight"] = small.pop("model_4.conv_block.6.weight")
    with pytest.raises(ModelError, match=r"model_5\.conv_block\.7\.weight"):
        load_generator(small)


def test_impossible_sizes_are_refused(small):
    with pytest.raises(ModelError, match="multiple of 8"):
        load_generator(small | {"model_1.1.weight": torch.zeros(6, 1, 7, 7)})
    with pytest.raises(ModelError, match="code_length"):
        load_generator(small | {"mapper.map.dense0.weight": torch.zeros(512, 0)})
    with pytest.raises(ModelError, match="2 dimensions"):
        load_generator(small | {"mapper.map.dense0.weight": torch.zeros(512)})


def test_other_networks_are_refused():
    with pytest.raises(ModelError, match=r"missing mapper\.map\.dense0\.weight"):
        load_generator({"encoder.weight": torch.zeros(1)})
