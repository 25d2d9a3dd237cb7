"""Properties of the networks at any size: shapes, batches, initialisation, a live conditioner, losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pflsynth.errors import DataError
from pflsynth.networks.discriminator import PatchDiscriminator
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.layers import EqualizedLinear, ResidualLayer
from pflsynth.networks.losses import adversarial_loss, discriminator_loss
from pflsynth.networks.personalization import LATENT, AdaCW, AdaIN, Mapper, make_code

CODE = 12
few = settings(max_examples=12, deadline=None, derandomize=True)


def code(site: int = 0, source: int = 0, target: int = 1) -> torch.Tensor:
    return make_code(site, source, target, sites=4, contrasts=4)[None]


def small_generator(seed: int = 0, **sizes) -> PersonalizedGenerator:
    torch.manual_seed(seed)
    return PersonalizedGenerator(CODE, **({"width": 8, "residual_layers": 2} | sizes))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------- codes


def test_code_layout():
    assert make_code(1, 0, 2, sites=3, contrasts=4).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert make_code(1, 0, 2, sites=3, contrasts=4, live=["site"]).tolist() == [0, 1, 0] + [0] * 8
    assert make_code(1, 0, 2, sites=3, contrasts=4, live=["task"]).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert make_code(1, 0, 2, sites=3, contrasts=4, live=[]).tolist() == [0] * 11
    assert make_code(0, 0, 1, sites=1, contrasts=2).dtype == torch.float32


@pytest.mark.parametrize(
    ("site", "source", "target", "live", "named"),
    [
        (4, 0, 1, ["site"], "site index 4"),
        (-1, 0, 1, ["site"], "site index -1"),
        (0, 3, 1, ["site"], "source index 3"),
        (0, 0, 3, ["site"], "target index 3"),
        (0, 0, 1, ["scanner"], "scanner"),
    ],
)
def test_wrong_codes_are_refused(site, source, target, live, named):
    with pytest.raises(ValueError, match=named):
        make_code(site, source, target, sites=4, contrasts=3, live=live)


# ------------------------------------------------------------------------------------------------------------ layers


def test_equalized_linear_scales_raw_values():
    torch.manual_seed(0)
    layer = EqualizedLinear(3, 2, gain=math.sqrt(2.0), lr_multiplier=0.01)
    with torch.no_grad():
        layer.bias.fill_(5.0)
    inputs = torch.tensor([[1.0, -2.0, 0.5]])
    expected = inputs @ layer.weight.T * math.sqrt(2.0 / 3.0) * 0.01 + 0.05
    torch.testing.assert_close(layer(inputs), expected)


def test_initialisation():
    generator = small_generator(width=64, residual_layers=1)
    mapper = torch.cat([layer.weight.flatten() for layer in generator.mapper.layers])
    assert mapper.std().item() == pytest.approx(100.0, rel=0.02)
    assert generator.personalization["3"].adain.affine.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert generator.personalization["3"].adacw.reduce.weight.abs().max() <= 1 / math.sqrt(LATENT)
    assert generator.personalization["3"].adacw.expand.weight.abs().max() > 0.1
    for module in (*generator.modules(), *PatchDiscriminator().modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.4)
            assert module.weight.mean().item() == pytest.approx(1.0, rel=0.02)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | EqualizedLinear):
            assert module.bias is None or not module.bias.any()


def test_the_same_seed_gives_the_same_network():
    first, second = small_generator(3).state_dict(), small_generator(3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_adain_sets_the_statistics_of_every_channel():
    torch.manual_seed(0)
    features, latent = 3 * images(2, 8, 16, 16) + 4, torch.randn(2, LATENT)
    adain = AdaIN(8)
    gamma, beta = adain.affine(latent).split(8, dim=1)
    out = adain(features, latent)
    torch.testing.assert_close(out.mean(dim=(2, 3)), beta, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.std(dim=(2, 3), correction=0), (1 + gamma).abs(), atol=1e-4, rtol=1e-4)


def test_adacw_scales_channels_by_the_latent_alone():
    torch.manual_seed(0)
    latent, adacw = torch.randn(2, LATENT), AdaCW(8)
    gates = adacw(torch.ones(2, 8, 4, 4), latent)
    assert gates.min() > 0
    assert gates.max() < 1
    features = images(2, 8, 4, 4)
    torch.testing.assert_close(adacw(features, latent), features * gates)


def test_residual_layer_has_no_rectifier_after_the_sum():
    torch.manual_seed(0)
    layer = ResidualLayer(4).eval()
    nn.init.zeros_(layer.norm2.weight)
    features = images(1, 4, 8, 8)
    torch.testing.assert_close(layer(features), features)


def test_mapper_activates_after_its_last_layer_too():
    torch.manual_seed(0)
    mapper = Mapper(CODE)
    before = mapper.layers[-1](Mapper.forward(_without_last(mapper), code()))
    torch.testing.assert_close(mapper(code()), F.leaky_relu(before, 0.2))
    assert mapper(code()).shape == (1, LATENT)


def _without_last(mapper: Mapper) -> Mapper:
    shorter = Mapper(CODE, layers=len(mapper.layers) - 1)
    shorter.load_state_dict({k: v for k, v in mapper.state_dict().items() if not k.startswith("layers.5")})
    return shorter


# --------------------------------------------------------------------------------------------------------- generator


@few
@given(
    width=st.sampled_from([8, 16]),
    layers=st.integers(1, 3),
    height=st.integers(2, 9),
    breadth=st.integers(2, 9),
    batch=st.integers(1, 3),
    training=st.booleans(),
)
def test_output_shape_is_input_shape(width, layers, height, breadth, batch, training):
    generator = small_generator(width=width, residual_layers=layers).train(training)
    x = images(batch, 1, 4 * height, 4 * breadth)
    with torch.no_grad():
        y = generator(x, code().expand(batch, -1))
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    assert list(generator.stages) == [str(i) for i in range(1, layers + 7)]
    assert list(generator.personalization) == [str(i) for i in range(1, layers + 6)]


@pytest.mark.parametrize("size", [(4, 8), (8, 4), (30, 32), (32, 33)])
def test_sizes_that_cannot_come_back_are_refused(size):
    with pytest.raises(DataError, match=f"{size[0]} × {size[1]}"):
        small_generator()(torch.zeros(1, 1, *size), code())


@pytest.mark.parametrize("sizes", [{"width": 12}, {"width": 0}, {"residual_layers": 0}])
def test_impossible_networks_are_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        small_generator(**sizes)


@few
@given(seed=st.integers(0, 1000), other=st.integers(0, 3), target=st.integers(1, 3))
def test_a_batch_of_two_equals_two_batches_of_one(seed, other, target):
    generator = small_generator(seed).eval()
    x = images(2, 1, 16, 24)
    codes = torch.cat((code(site=0, target=1), code(site=other, target=target)))
    with torch.no_grad():
        together = generator(x, codes)
        apart = torch.cat([generator(x[i : i + 1], codes[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_dropout_acts_in_training_only():
    generator = small_generator(dropout=0.5)
    x = images(1, 1, 16, 16)
    with torch.no_grad():
        assert not torch.equal(generator(x, code()), generator(x, code()))
        generator.eval()
        assert torch.equal(generator(x, code()), generator(x, code()))


# ------------------------------------------------------------------------------------- the conditioner must be alive
# The public research code starts every linear layer at N(0, 0.02): its outputs do not depend on the code at all.


def code_effects(generator: PersonalizedGenerator) -> tuple[float, float]:
    """Return the largest change of an output pixel when the site changes, and when the target contrast changes."""
    x = images(1, 1, 32, 32)
    outputs = []
    for one in (code(), code(site=1), code(target=2)):
        torch.manual_seed(1)  # the same dropout
        with torch.no_grad():
            outputs.append(generator(x, one))
    return tuple((outputs[0] - other).abs().max().item() for other in outputs[1:])


def mapper_gradients(generator: PersonalizedGenerator) -> list[float]:
    """Return the norms of the gradients with respect to the effective weights of the mapper's layers."""
    x = images(1, 1, 32, 32)
    generator.zero_grad()
    F.l1_loss(generator(x, code()), torch.full_like(x, 0.5)).backward()
    return [(layer.weight.grad.norm() / layer.weight_scale).item() for layer in generator.mapper.layers]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_depend_on_site_and_task_at_initialisation(seed, training):
    site, task = code_effects(small_generator(seed).train(training))
    assert site > 0.2
    assert task > 0.2


@pytest.mark.parametrize("training", [False, True])
def test_the_mapper_gets_a_gradient(training):
    assert min(mapper_gradients(small_generator().train(training))) > 0.02


def test_the_two_tests_above_notice_a_blanket_initialiser():
    generator = small_generator()
    for module in generator.modules():
        if isinstance(module, EqualizedLinear | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
    assert max(code_effects(generator)) < 1e-6
    assert max(mapper_gradients(generator)) < 1e-6


# ------------------------------------------------------------------------------------------ discriminator and losses


@few
@given(height=st.integers(24, 70), breadth=st.integers(24, 70), width=st.sampled_from([4, 8]))
def test_discriminator_output_size(height, breadth, width):
    x = images(2, 1, height, breadth)
    with torch.no_grad():
        scores = PatchDiscriminator(width=width)(x, x)
    assert scores.shape == (2, 1, height // 8 - 2, breadth // 8 - 2)


def test_discriminator_sees_source_and_image():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8).eval()
    x, y = images(2, 1, 32, 32).split(1)
    with torch.no_grad():
        assert not torch.allclose(discriminator(x, y), discriminator(y, x))


def test_losses():
    fake, real = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert discriminator_loss(fake, real).item() == pytest.approx(0.5 * (2.0 + 0.5))
    assert adversarial_loss(fake).item() == pytest.approx(1.0)
    assert discriminator_loss(torch.zeros(3), torch.ones(3)).item() == 0
    assert adversarial_loss(torch.ones(3)).item() == 0
