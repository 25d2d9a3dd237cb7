"""The generators of the baselines: one interface, the task read off the code, and refusals of what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pflsynth.errors import DataError
from pflsynth.networks.discriminator import PatchDiscriminator
from pflsynth.networks.layers import EqualizedLinear
from pflsynth.networks.multicontrast import MultiContrastDiscriminator, MultiContrastUNet
from pflsynth.networks.personalization import AdaIN, make_code
from pflsynth.networks.resnet import ResNetGenerator
from pflsynth.networks.switchable import SwitchableUNet
from pflsynth.networks.unet import ConvolutionBlock, Encoder, UNet, UNetGenerator, padded, read_task

SITES, CONTRASTS = 2, 3
PAIRS = [(0, 1), (0, 2), (2, 0)]
few = settings(max_examples=8, deadline=None, derandomize=True)

MAKERS: dict[str, Callable[..., nn.Module]] = {
    "resnet": lambda **sizes: ResNetGenerator(width=4, residual_layers=1, **sizes),
    "unet": lambda **sizes: UNetGenerator(width=4, **sizes),
    "multicontrast": lambda **sizes: MultiContrastUNet(CONTRASTS, sites=SITES, width=4, **sizes),
    "switchable": lambda **sizes: SwitchableUNet(PAIRS, sites=SITES, contrasts=CONTRASTS, width=4, **sizes),
}
UNETS = [name for name in MAKERS if name != "resnet"]


def make(name: str, seed: int = 0, **sizes) -> nn.Module:
    torch.manual_seed(seed)
    return MAKERS[name](**sizes)


def codes(*tasks: tuple[int, int], site: int = 0) -> torch.Tensor:
    return torch.stack([make_code(site, s, t, sites=SITES, contrasts=CONTRASTS) for s, t in tasks])


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------------------------------------------- all generators


@pytest.mark.parametrize("name", MAKERS)
@few
@given(height=st.integers(6, 17), breadth=st.integers(6, 17), batch=st.integers(1, 2), training=st.booleans())
def test_output_shape_is_input_shape(name, height, breadth, batch, training):
    x = images(batch, 1, 4 * height, 4 * breadth)
    with torch.no_grad():
        y = make(name).train(training)(x, codes((0, 1)).expand(batch, -1))
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert y.abs().max() <= 1
    assert y.std() > 0


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_of_tasks_equals_batches_of_one(name):
    generator, x, code = make(name).eval().double(), images(3, 1, 24, 28).double(), codes(*PAIRS).double()
    with torch.no_grad():
        apart = torch.cat([generator(x[i : i + 1], code[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(generator(x, code), apart, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_gets_a_gradient(name):
    generator, x = make(name), images(3, 1, 32, 32)
    F.l1_loss(generator(x, codes(*PAIRS)), 0.5 * x.flip(2)).backward()
    assert [key for key, p in generator.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_gives_the_same_network(name):
    first, second, other = (make(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["unet", "multicontrast", "switchable"])
def test_u_nets_start_as_torch_starts_them(name):
    """As in the public code; N(0, 0.02) would leave the last 1×1 convolution of a narrow U-Net almost silent."""
    for module in make(name).modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound
            if module.weight.numel() > 200:
                assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
        if isinstance(module, EqualizedLinear):
            assert module.weight.std().item() == pytest.approx(0.01**-1 if module.bias_scale == 0.01 else 1, rel=0.1)


def test_the_residual_generator_starts_small():
    for module in make("resnet").modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            spread = module.weight.std().item() if module.weight.numel() > 200 else 0.02
            assert spread == pytest.approx(0.02, rel=0.2)
            assert module.weight.abs().max() < 0.12
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", MAKERS)
def test_dropout_acts_in_training_only(name):
    generator, x, code = make(name, dropout=0.2), images(1, 1, 32, 32), codes((0, 1))
    with torch.no_grad():
        assert not torch.equal(generator(x, code), generator(x, code))
        generator.eval()
        assert torch.equal(generator(x, code), generator(x, code))


@pytest.mark.parametrize("name", ["resnet", "unet"])
def test_these_ignore_the_code(name):
    generator, x = make(name).eval(), images(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(generator(x, codes((0, 1))), generator(x, codes((2, 0), site=1)))


@pytest.mark.parametrize("name", ["multicontrast", "switchable"])
def test_these_depend_on_the_task_and_not_on_the_site(name):
    generator, x = make(name).eval(), images(1, 1, 32, 32)
    with torch.no_grad():
        y = generator(x, codes((0, 1)))
        assert torch.equal(y, generator(x, codes((0, 1), site=1)))
        for task in PAIRS[1:]:
            assert (y - generator(x, codes(task))).abs().max() > 0.01


@pytest.mark.parametrize("name", ["multicontrast", "switchable"])
def test_a_code_of_another_federation_is_refused(name):
    code = make_code(0, 0, 1, sites=SITES + 1, contrasts=CONTRASTS)[None]
    with pytest.raises(ValueError, match=r"2 sites and 3 contrasts .* \(B, 8\), got \(1, 9\)"):
        make(name)(images(1, 1, 24, 24), code)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("unet", {"levels": 0}), ("multicontrast", {"levels": 0}), ("switchable", {"levels": 0})],
)
def test_impossible_levels_are_refused(name, sizes):
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        make(name, **sizes)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: ResNetGenerator(width=0), "width"),
        (lambda: ResNetGenerator(residual_layers=0), "residual_layers"),
        (lambda: UNet(0), "channels"),
        (lambda: UNetGenerator(width=0), "width"),
        (lambda: MultiContrastUNet(0, sites=1), "contrasts"),
        (lambda: MultiContrastUNet(2, sites=0), "sites"),
        (lambda: MultiContrastDiscriminator(0), "contrasts"),
        (lambda: SwitchableUNet([(0, 1)], sites=0, contrasts=2), "sites"),
        (lambda: SwitchableUNet([], sites=1, contrasts=2), "pairs"),
        (lambda: SwitchableUNet([(0, 1), (0, 1)], sites=1, contrasts=2), "pairs"),
        (lambda: SwitchableUNet([(0, 2)], sites=1, contrasts=2), re.escape("(0, 2)")),
        (lambda: SwitchableUNet([(-1, 0)], sites=1, contrasts=2), re.escape("(-1, 0)")),
    ],
)
def test_impossible_networks_are_refused(build, named):
    with pytest.raises(ValueError, match=named):
        build()


# ------------------------------------------------------------------------------------------------------------- sizes


def test_padding_by_hand():
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    assert padded(image, levels=1)[0, 0].tolist() == [[1, 2, 3, 2], [4, 5, 6, 5], [7, 8, 9, 8], [4, 5, 6, 5]]


def test_sizes_that_fit_are_not_padded():
    image = images(1, 1, 16, 24)
    assert torch.equal(padded(image, levels=3), image)


@pytest.mark.parametrize("name", UNETS)
def test_padding_is_what_one_would_do_by_hand(name):
    generator, x, code = make(name).eval(), images(1, 1, 24, 44), codes((0, 1))
    larger = torch.cat((x, x[..., 15:23, :].flip(2)), dim=2)  # rows 22, 21, ..., 15 follow row 23
    larger = torch.cat((larger, larger[..., 39:43].flip(3)), dim=3)
    assert larger.shape[-2:] == (32, 48)
    with torch.no_grad():
        assert torch.equal(generator(x, code), generator(larger, code)[..., :24, :44])


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("training", [False, True])
def test_the_smallest_unet_image(name, training):
    generator = make(name).train(training)
    with torch.no_grad():
        assert generator(images(1, 1, 17, 17), codes((0, 1))).shape == (1, 1, 17, 17)
    with pytest.raises(DataError, match="at least 17 pixels for a U-Net of 4 levels, got 16 × 32"):
        generator(images(1, 1, 16, 32), codes((0, 1)))
    with pytest.raises(DataError, match="got 64 × 1"):
        generator(images(1, 1, 64, 1), codes((0, 1)))


@pytest.mark.parametrize("size", [(4, 8), (8, 4), (30, 32), (32, 33)])
def test_sizes_that_cannot_come_back_are_refused_by_the_resnet(size):
    with pytest.raises(DataError, match=f"{size[0]} × {size[1]}"):
        make("resnet")(torch.zeros(1, 1, *size), codes((0, 1)))


# ------------------------------------------------------------------------------------------------------------- U-Net


def test_the_unet_is_an_encoder_and_a_decoder():
    unet = UNet(1)
    assert {name.partition(".")[0] for name in unet.state_dict()} == {"encoder", "decoder"}
    assert count(unet) == 7_756_097
    assert count(unet.encoder) == 288 + 9 * (32**2 + 64 * 96 + 128 * 192 + 256 * 384 + 512 * 768)


def test_the_encoder_averages_between_its_blocks():
    encoder = Encoder(1, 1, 2, 0.0)
    for number in range(3):
        encoder.blocks[number] = nn.Identity()
    image = torch.tensor([[[[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 8.0]]]])
    full, half, quarter = encoder(image)
    assert torch.equal(full, image)
    assert half[0, 0].tolist() == [[4, 0], [0, 2]]
    assert quarter[0, 0].tolist() == [[1.5]]


def test_dropout_drops_whole_channels():
    torch.manual_seed(0)
    features = ConvolutionBlock(1, 8, 0.5)(images(1, 1, 8, 8))
    dropped = (features == 0).all(dim=(2, 3))
    assert 0 < dropped.sum() < 8
    assert not (features == 0).any(dim=(2, 3))[~dropped].any()


def test_the_task_is_read_off_the_code():
    source, target = read_task(codes((0, 1), (2, 0), site=1), sites=SITES, contrasts=CONTRASTS)
    assert source.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert target.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (make_code(0, 0, 1, sites=SITES, contrasts=CONTRASTS, live=["site"]), "source contrast of a code"),
        (torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1]), "target contrast of a code"),
        (torch.tensor([1.0, 0, 2, -1, 0, 0, 1, 0]), "source contrast of a code"),
    ],
)
def test_codes_without_one_task_are_refused(code, named):
    with pytest.raises(ValueError, match=named):
        read_task(code[None], sites=SITES, contrasts=CONTRASTS)
    with pytest.raises(ValueError, match=r"got \(8,\)"):
        read_task(code, sites=SITES, contrasts=CONTRASTS)


# ---------------------------------------------------------------------------------------------------- multi-contrast


def test_the_source_goes_into_its_channel_and_the_target_is_read_from_its_own():
    generator = make("multicontrast", fill=-0.5)
    stacks = []

    def translate(stack: torch.Tensor) -> torch.Tensor:
        stacks.append(stack)
        return stack + torch.tensor([10.0, 20.0, 30.0])[:, None, None]

    generator.translate = translate
    x = images(2, 1, 4, 4)
    y = generator(x, codes((0, 1), (2, 2)))
    empty = torch.full((4, 4), -0.5)
    assert torch.equal(stacks[0][0], torch.stack((x[0, 0], empty, empty)))
    assert torch.equal(stacks[0][1], torch.stack((empty, empty, x[1, 0])))
    assert torch.equal(y[0, 0], torch.full((4, 4), 19.5))
    assert torch.equal(y[1], x[1] + 30.0)


def test_missing_channels_hold_minus_one_by_default():
    stack = make("multicontrast").stack(torch.zeros(1, 1, 2, 2), torch.tensor([[0.0, 1.0, 0.0]]))
    assert stack[0, :, 0, 0].tolist() == [-1, 0, -1]


def test_whole_stacks_are_translated():
    generator, stack = make("multicontrast").eval(), images(2, CONTRASTS, 24, 28)
    with torch.no_grad():
        y = generator.translate(stack)
        changed = generator.translate(torch.cat((stack[:, :2], -stack[:, 2:]), dim=1))
    assert y.shape == stack.shape
    assert all((y - changed)[:, c].abs().max() > 1e-4 for c in range(CONTRASTS))
    with pytest.raises(DataError, match="16 × 64"):
        generator.translate(images(1, CONTRASTS, 16, 64))


@few
@given(height=st.integers(24, 70), breadth=st.integers(24, 70), contrasts=st.integers(1, 4))
def test_the_discriminator_gives_a_map_for_each_contrast(height, breadth, contrasts):
    x = images(2, contrasts, height, breadth)
    with torch.no_grad():
        scores = MultiContrastDiscriminator(contrasts, width=4)(x, x)
    assert scores.shape == (2, contrasts, height // 8 - 2, breadth // 8 - 2)


def test_the_discriminator_of_one_contrast_is_the_patch_discriminator():
    patch, multi = PatchDiscriminator(width=8), MultiContrastDiscriminator(1, width=8)
    multi.load_state_dict(patch.state_dict())
    x, y = images(2, 1, 32, 32).split(1)
    with torch.no_grad():
        assert torch.equal(multi.eval()(x, y), patch.eval()(x, y))
        assert not torch.allclose(multi(x, y), multi(y, x))


def test_initialisation_of_the_discriminator():
    for module in MultiContrastDiscriminator(3, width=16).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_parameters_of_the_discriminator():
    more = 4 * 4 * 64 * 6 + (4 * 4 * 512 + 1) * 3  # eight channels in instead of two, four out instead of one
    with torch.device("meta"):
        assert count(MultiContrastDiscriminator(4)) == 2_764_609 + more


# -------------------------------------------------------------------------------------------------------- switchable


def test_states_follow_from_the_code():
    generator = make("switchable")
    assert generator.state(codes((2, 0), (0, 1), (0, 2))).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert generator.double().state(codes((0, 2)).double()).dtype == torch.float64


def test_a_task_that_is_no_state_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 1\), \(0, 2\), \(2, 0\), got sources \[0, 1\] and targets \[1, 0\]"):
        make("switchable")(images(2, 1, 24, 24), codes((0, 1), (1, 0)))


def test_adain_follows_every_block():
    generator = make("switchable")
    assert sum(isinstance(module, AdaIN) for module in generator.modules()) == 5 + 4 + 4
    assert len(generator.mapper.layers) == 2
    assert generator.mapper.layers[0].in_features == len(PAIRS)


def switch_effect(generator: nn.Module) -> float:
    """Return the smallest largest change of a pixel from one state to another."""
    x = images(1, 1, 32, 32)
    with torch.no_grad():
        one, two, three = (generator(x, codes(task)) for task in PAIRS)
    return min((a - b).abs().max().item() for a, b in ((one, two), (one, three), (two, three)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_depend_on_the_state_at_initialisation(seed, training):
    assert switch_effect(make("switchable", seed).train(training)) > 0.2


def test_the_test_above_notices_a_blanket_initialiser():
    generator = make("switchable")
    for module in generator.modules():
        if isinstance(module, EqualizedLinear):
            nn.init.normal_(module.weight, 0.0, 0.02)
    assert switch_effect(generator) < 1e-4


# ------------------------------------------------------------------------------------------------------------ ResNet


def test_stages_are_numbered_as_those_of_the_unified_generator():
    generator = ResNetGenerator(width=4, residual_layers=3)
    assert list(generator.stages) == [str(number) for number in range(1, 10)]
    x, code = images(1, 1, 16, 16), codes((0, 1))
    generator.eval()
    with torch.no_grad():
        torch.testing.assert_close(generator(x, code), torch.tanh(generator.before_tanh(x)))


def test_parameters_of_the_resnet():
    with torch.device("meta"):
        stages = 3_264 + 73_984 + 295_424 + 9 * 1_180_672 + 295_168 + 73_856 + 3_137
        assert count(ResNetGenerator()) == stages == 11_370_881
