"""The lite family: a quarter of the operations or less, and all else of a personalised generator as it was."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.config_sections import ModelConfig
from pflsynth.errors import DataError, ModelError
from pflsynth.federation.methods import METHODS
from pflsynth.federation.operations import forward_gflop
from pflsynth.federation.personalised import open_personalised
from pflsynth.networks.generators import FAMILIES, PersonalizedGenerator
from pflsynth.networks.official import to_official
from pflsynth.networks.personalization import PersonalizationBlock

from ..tiny import Tiny, changed
from .test_ablations import config, differences, networks, trained
from .test_inference import TOLERANCE, images, largest_difference, settled
from .test_methods import resumed_to_the_same_bytes

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER_FLOP = 97_468_061_696
"""Of the paper's generator for a slice of 256², a multiply-add as two: worked out from PFLSYNTH.md's layers."""


def lite(**model: object) -> FederationConfig:
    return config(family="lite", **model)


def gflop(family: str, width: int = 64, layers: int = 9, size: int = 256) -> float:
    with torch.device("meta"):
        generator = PersonalizedGenerator(12, width=width, residual_layers=layers, family=family)
        return forward_gflop(generator, torch.empty(1, 12), size)


def stage_shapes(family: str, height: int, width: int) -> list[tuple[int, ...]]:
    """Of the features after each stage."""
    generator = PersonalizedGenerator(4, width=8, residual_layers=2, family=family).eval()
    shapes: list[tuple[int, ...]] = []
    for stage in generator.stages.values():
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        generator(torch.zeros(1, 1, height, width), torch.eye(4)[:1])
    return shapes


def test_the_papers_generator_takes_the_operations_that_are_told() -> None:
    assert gflop("full") * 1e9 == PAPER_FLOP


@pytest.mark.parametrize(
    ("width", "layers", "size"), [(64, 9, 256), (32, 9, 256), (16, 4, 88), (16, 4, 96), (64, 16, 128)]
)
def test_lite_takes_at_most_a_quarter_of_the_operations_at_the_same_width(width: int, layers: int, size: int) -> None:
    assert gflop("lite", width, layers, size) <= gflop("full", width, layers, size) / 4


def test_stages_have_the_same_channels_and_resolutions() -> None:
    assert stage_shapes("lite", 24, 40) == stage_shapes("full", 24, 40)
    assert stage_shapes("lite", 24, 40)[2:5] == [(32, 6, 10)] * 3


@pytest.mark.parametrize("shape", [(30, 32), (4, 32)])
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    generator = PersonalizedGenerator(4, width=8, residual_layers=1, family="lite").eval()
    with pytest.raises(DataError, match="image sizes must be multiples of 4 and at least 8 pixels, got"):
        generator(torch.zeros(1, 1, *shape), torch.eye(4)[:1])


def test_personalization_follows_the_same_stages() -> None:
    full, own = (networks(settings).generator for settings in (config(), lite()))
    blocks = [
        {name: tuple(own.shape) for name, own in generator.personalization.state_dict().items()}
        for generator in (full, own)
    ]
    assert blocks[0] == blocks[1]
    assert all(isinstance(block, PersonalizationBlock) for block in own.personalization.values())
    assert list(full.stages) == list(own.stages)


@pytest.mark.parametrize(
    "name", ["pflsynth", "fedavg", "fedper", "lg-fedavg", "fedftn", "fedbadam", "local", "fedrep", "ditto"]
)
def test_every_method_of_the_personalised_generator_divides_it_as_the_full_one(name: str) -> None:
    """By stage and block: the names of tensors within a stage may differ."""

    def parts(settings: FederationConfig) -> tuple[set[str], set[str]]:
        method = METHODS[name]
        found = method.sharing(settings).partition(method.networks(settings, "a"))
        shared, private = ({".".join(key.split(".")[:3]) for key in own} for own in (found.shared, found.private))
        return shared, private

    assert parts(lite()) == parts(config())


@pytest.mark.parametrize("stage", [1, 4, 7, 8])
def test_partial_network_aggregation_splits_at_any_stage(stage: int) -> None:
    settings = lite(split_stage=stage)
    partition = METHODS["pflsynth"].sharing(settings).partition(networks(settings))
    shared = {int(key.split(".")[2]) for key in partition.shared if key.startswith("generator.stages")}
    assert shared == set(range(stage, 8))


@pytest.mark.parametrize("blocks", [["adain"], ["adacw"], ["adain", "adacw"]])
def test_the_output_depends_on_the_code(blocks: list[str]) -> None:
    """A dead conditioner gives the same bits. With AdaCW alone the gates of a narrow generator start nearly equal."""
    settings = lite(blocks=blocks)
    for model in (networks(settings), trained(settings)):
        assert min(differences(settings, model.generator)) > (1e-2 if "adain" in blocks else 1e-4)


@pytest.mark.parametrize("blocks", [["adain"], ["adacw"], ["adain", "adacw"]])
def test_the_inference_form_gives_the_same(blocks: list[str]) -> None:
    torch.manual_seed(2)
    generator = PersonalizedGenerator(6, width=16, residual_layers=2, mapper_layers=2, blocks=blocks, family="lite")
    for source in (images(1, 8, 8), images(3, 24, 40)):
        assert largest_difference(settled(generator), torch.eye(6)[2], source) < TOLERANCE


def test_depthwise_convolutions_start_large_enough_to_be_heard() -> None:
    generator = PersonalizedGenerator(4, width=16, residual_layers=1, family="lite")
    depthwise = [own for own in generator.modules() if isinstance(own, nn.Conv2d) and own.groups > 1]
    assert len(depthwise) == 2
    assert all(0.25 < float(own.weight.detach().std()) < 0.42 for own in depthwise)  # 1/3, of 576 numbers


def test_a_lite_generator_has_no_official_names() -> None:
    with pytest.raises(ModelError, match="family lite has no names in the authors' public code"):
        to_official(PersonalizedGenerator(4, width=8, residual_layers=1, family="lite"))


def test_a_configuration_can_name_every_family() -> None:
    assert get_args(ModelConfig.model_fields["family"].annotation) == tuple(FAMILIES)


def test_the_default_family_is_no_part_of_the_hash_and_lite_is() -> None:
    """It came after runs that are to be opened still."""
    assert "family" not in config().agreement()["model"]
    assert config(family="full").agreement_sha256() == config().agreement_sha256()
    assert lite().agreement()["model"]["family"] == "lite"
    assert lite().agreement_sha256() != config().agreement_sha256()


@pytest.mark.parametrize("name", ["phantom", "realdata", "paper-variable"])
def test_lite_recipes_differ_from_theirs_in_the_family_and_the_learning_rate(name: str) -> None:
    base = {"phantom": "phantom-variable"}.get(name, name)
    own, full = (load_config(RECIPES / f"{file}.toml").federation for file in (f"{name}-lite", base))
    assert own.model == full.model.model_copy(update={"family": "lite"})
    training = full.training.model_copy(update={"learning_rate": own.training.learning_rate})
    assert own.training == training
    assert own.training.learning_rate in (full.training.learning_rate, 2 * full.training.learning_rate)
    same = {"name": full.name, "model": full.model, "training": full.training}
    assert own.model_copy(update=same).agreement() == full.agreement()
    site, method = own.participants[0], METHODS["pflsynth"]
    assert method.sent_megabytes(own, site) < method.sent_megabytes(full, site)


def test_a_federation_of_it_trains_resumes_and_gives_models(tiny: Tiny, tmp_path: Path) -> None:
    settings = changed(tiny.config, rounds=2, model={"family": "lite"})
    whole = resumed_to_the_same_bytes(settings, tiny, tmp_path)
    generator = open_personalised(whole, "north").generator
    assert isinstance(generator, PersonalizedGenerator)
    assert generator.family == "lite"
