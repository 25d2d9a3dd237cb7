"""The inference form of every generator gives what the generator gives, and holds nothing that training alone needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pflsynth.config import FederationConfig
from pflsynth.data.manifest import SiteIntensity
from pflsynth.errors import DataError
from pflsynth.federation.methods import METHODS, task_code
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.inference import inference_form
from pflsynth.networks.inference_layers import ConstantCode
from pflsynth.networks.layers import EqualizedLinear
from pflsynth.networks.multicontrast import MultiContrastUNet
from pflsynth.networks.resnet import ResNetGenerator
from pflsynth.networks.switchable import SwitchableUNet
from pflsynth.networks.unet import UNetGenerator

from ..data_builders import federation

TOLERANCE = 1e-4
TASKS = {"here": ["T1w->T2w", "T2w->FLAIR"], "there": ["T1w->T2w"]}


def settled(generator: nn.Module, seed: int = 0) -> nn.Module:
    """The generator with batch norm as training may leave it, in evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in (module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2, generator=random)
            norm.bias.normal_(0, 0.3, generator=random)
            norm.running_mean.normal_(0, 0.3, generator=random)
            norm.running_var.uniform_(0.3, 3, generator=random)
    return generator.eval()


def images(number: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Source images in [-1, 1] with background on the left."""
    made = torch.rand(number, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    made[..., : width // 4] = -1
    return made


@torch.inference_mode()
def largest_difference(generator: nn.Module, code: torch.Tensor, source: torch.Tensor) -> float:
    """Between the generator and its inference form."""
    wanted = generator(source, code.expand(len(source), -1))
    found = inference_form(generator, code)(source)
    assert found.shape == wanted.shape
    assert wanted.std() > 1e-3  # there is something to compare
    return float((found - wanted).abs().max())


def config_of(name: str, folder: Path, **model: object) -> FederationConfig:
    sizes = {"width": 8, "residual_layers": 2, "mapper_layers": 2, **model}
    return federation(folder, TASKS, method=name, model=sizes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_one_that_gives_the_same(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path)
    generator = settled(METHODS[name].generator(config, "here"))
    for task in config.sites["here"].tasks:
        code = task_code(config, "here", task)
        assert largest_difference(generator, code, images(3)) < TOLERANCE
        kinds = {type(module) for module in inference_form(generator, code).modules()}
        assert not kinds & {nn.BatchNorm2d, nn.Linear, EqualizedLinear, nn.Dropout, nn.Dropout2d, ConstantCode}


@pytest.mark.parametrize("blocks", [["adain"], ["adacw"], ["adain", "adacw"]])
def test_every_ablation_of_the_blocks(blocks: list[str], tmp_path: Path) -> None:
    config = config_of("pflsynth", tmp_path, blocks=blocks)
    generator = settled(METHODS["pflsynth"].generator(config, "here"))
    codes = [task_code(config, "here", task) for task in config.sites["here"].tasks]
    with torch.inference_mode():
        one, other = (inference_form(generator, code)(images(2)) for code in codes)
    for code in codes:
        difference = largest_difference(generator, code, images(2))
        assert difference < TOLERANCE
        assert difference < float((one - other).abs().max()) / 20  # the code's task is in the form


@settings(max_examples=25)
@given(
    width=st.sampled_from([8, 16, 24]),
    layers=st.integers(1, 3),
    height=st.integers(2, 12),
    across=st.integers(2, 12),
    number=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_residual_generators_of_any_size(
    width: int, layers: int, height: int, across: int, number: int, seed: int
) -> None:
    torch.manual_seed(seed)
    source = images(number, 4 * height, 4 * across, seed)
    code = torch.eye(6)[seed % 6]
    for generator in (
        PersonalizedGenerator(6, width=width, residual_layers=layers, mapper_layers=2),
        ResNetGenerator(width=width, residual_layers=layers),
    ):
        assert largest_difference(settled(generator, seed), code, source) < TOLERANCE


@settings(max_examples=15)
@given(
    width=st.integers(2, 6),
    levels=st.integers(1, 3),
    height=st.integers(9, 41),
    across=st.integers(9, 41),
    number=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_u_nets_of_any_size_odd_ones_too(
    width: int, levels: int, height: int, across: int, number: int, seed: int
) -> None:
    torch.manual_seed(seed)
    source = images(number, height, across, seed)
    code = torch.tensor([1.0, 1, 0, 0, 0, 0, 1])  # one site, contrast 0 to contrast 2
    shape = {"width": width, "levels": levels, "dropout": 0.3}
    for generator in (
        UNetGenerator(**shape),
        MultiContrastUNet(3, sites=1, **shape),
        SwitchableUNet([(1, 0), (0, 2)], sites=1, contrasts=3, **shape),
    ):
        assert largest_difference(generator.eval(), code, source) < TOLERANCE


def test_at_the_papers_width_and_depth() -> None:
    torch.manual_seed(1)
    generator = settled(PersonalizedGenerator(12, width=64, residual_layers=9))
    assert largest_difference(generator, torch.eye(12)[3], images(1)) < TOLERANCE


@pytest.mark.parametrize("shape", [(30, 32), (32, 33), (4, 32)])
def test_sizes_that_the_generator_refuses_are_refused_alike(shape: tuple[int, int]) -> None:
    form = inference_form(PersonalizedGenerator(4, width=8, residual_layers=1).eval(), torch.eye(4)[0])
    with pytest.raises(DataError, match="image sizes must be multiples of 4 and at least 8 pixels, got"):
        form(images(1, *shape))


def test_a_task_that_the_generator_does_not_know() -> None:
    generator = SwitchableUNet([(0, 1)], sites=1, contrasts=2, width=2, levels=1).eval()
    with pytest.raises(ValueError, match="none of the states of this network"):
        inference_form(generator, torch.tensor([1.0, 0, 1, 1, 0]))


def test_a_generator_that_nobody_has_folded() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.5))

        def forward(self, image: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
            return self.factor * image + code[:, 0, None, None, None]

    assert largest_difference(Own(), torch.tensor([0.25, 0]), images(3)) == 0


def test_the_generator_is_not_touched_and_its_later_changes_are_not_seen() -> None:
    generator = settled(PersonalizedGenerator(4, width=8, residual_layers=1))
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    form = inference_form(generator, torch.eye(4)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in generator.state_dict().values())
    assert all(parameter.requires_grad for parameter in generator.parameters())
    with torch.inference_mode():
        first = form(images(1))
        for parameter in generator.parameters():
            parameter.zero_()
        assert torch.equal(form(images(1)), first)
    assert not form.training
    assert not any(parameter.requires_grad for parameter in form.parameters())


# ------------------------------------------------------------------------------------------------------- the model


@pytest.fixture
def model(tmp_path: Path) -> PersonalisedModel:
    config = config_of("pflsynth", tmp_path)
    generator = settled(METHODS["pflsynth"].generator(config, "here"))
    return PersonalisedModel(config, "here", 1, generator, SiteIntensity(normalizer="percentile", contrasts={}), "")


def test_batches_change_nothing_but_rounding(model: PersonalisedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    task = model.config.sites["here"].tasks[0]
    slices = images(7)[:, 0].numpy()
    whole = model.synthesize(slices, task)
    assert whole.shape == slices.shape
    assert np.array_equal(whole, model.synthesize(slices, task))
    sizes: list[int] = []
    form = model.network(task)
    counted = model.with_network(task, lambda batch: sizes.append(len(batch)) or form(batch))
    monkeypatch.setattr(PersonalisedModel, "slices_at_once", lambda *_: 3)
    assert np.abs(counted.synthesize(slices, task) - whole).max() < 1e-5
    assert sizes == [3, 3, 1]


def test_batches_are_as_large_as_feature_maps_allow(model: PersonalisedModel) -> None:
    assert model.slices_at_once(32 * 32) == 2**24 // (4 * 8 * 32 * 32) == 512
    assert model.slices_at_once(1024 * 1024) == 1  # never none


def test_another_generator_gets_forms_of_its_own(model: PersonalisedModel) -> None:
    task = model.config.sites["here"].tasks[0]
    slices = images(1)[:, 0].numpy()
    made = model.synthesize(slices, task)
    torch.manual_seed(5)
    config = model.config.model_copy(update={"seed": 5})
    other = replace(model, generator=settled(METHODS["pflsynth"].generator(config, "here"), seed=5))
    assert np.abs(other.synthesize(slices, task) - made).max() > 1e-3
    assert model.network(task) is model.network(task)


def test_a_network_in_place_of_a_form(model: PersonalisedModel) -> None:
    one, other = model.config.sites["here"].tasks
    replaced = model.with_network(one, torch.neg)
    slices = images(2)[:, 0].numpy()
    assert np.array_equal(replaced.synthesize(slices, one), -slices)
    assert np.array_equal(replaced.synthesize(slices, other), model.synthesize(slices, other))
    assert not np.array_equal(model.synthesize(slices, one), -slices)
