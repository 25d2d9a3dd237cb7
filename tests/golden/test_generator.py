"""The generator computes the same function as the authors' public code, and has its parameter counts."""

from __future__ import annotations

import pytest
import torch

from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.official import load_generator

from .fill import check_digests, img, max_difference, read_arrays, read_digests

RESIDUAL = (1_180_672, 287_232)
COUNTS = {  # PFLSYNTH.md, section 2: stage: parameters of the stage and of its personalization block
    "1": (3_264, 70_272),
    "2": (73_984, 141_568),
    "3": (295_424, 287_232),
    **{str(i): RESIDUAL for i in range(4, 13)},
    "13": (295_168, 141_568),
    "14": (73_856, 70_272),
    "15": (3_137, 0),
}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_fill_reproduces_its_digests(generator_weights):
    check_digests(generator_weights, read_digests("personalized_generator"))


def test_the_test_image_is_the_golden_one():
    assert max_difference(img(0, 64, 2), read_arrays("personalized_generator")["x"]) < 1e-6


def test_outputs_match(generator_weights):
    golden = read_arrays("personalized_generator")
    generator = load_generator(generator_weights)
    with torch.no_grad():
        latent = generator.mapper(golden["z"])
        y_eval = generator(golden["x"], golden["z"])
        y_train = generator.train()(golden["x"], golden["z"])
    torch.testing.assert_close(latent, golden["latent"], rtol=1e-5, atol=1e-4)
    assert max_difference(y_eval, golden["y_eval"]) < 1e-4
    assert max_difference(y_train, golden["y_train"]) < 1e-3


@pytest.fixture(scope="module")
def generator() -> PersonalizedGenerator:
    with torch.device("meta"):
        return PersonalizedGenerator(12)


def test_parameter_counts(generator):
    assert count(generator) == 15_986_817
    assert count(generator.mapper) == 1_319_936
    blocks = generator.personalization
    counts = {n: (count(stage), count(blocks[n]) if n in blocks else 0) for n, stage in generator.stages.items()}
    assert counts == COUNTS


def test_shared_parameter_count(generator):
    shared = count(generator.mapper, *(generator.stages[str(i)] for i in range(9, 16)))
    assert shared == 6_414_785
