"""The inference form of a generator: what is left of it once site and task are fixed and training is over.

Mapper, styles and gates become numbers, batch norm becomes part of the convolution before it, dropout is gone, and a
personalization block is one layer: an instance norm whose affine function holds statistics and gates. Outputs are those
of the generator in evaluation mode up to rounding (tested to 1e-4). Tensors are channels-last, in which convolutions,
and above all transposed ones, are faster on a CPU.
"""

from __future__ import annotations

import copy
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.inference_layers import (
    ConstantCode,
    Gates,
    InstanceAffine,
    Residual,
    Stack,
    Stages,
    UNetForm,
)
from pflsynth.networks.layers import ResidualLayer
from pflsynth.networks.multicontrast import MultiContrastUNet
from pflsynth.networks.personalization import PersonalizationBlock
from pflsynth.networks.resnet import ResNetGenerator
from pflsynth.networks.switchable import SwitchableUNet, Switched
from pflsynth.networks.unet import ConvolutionBlock, UNet, UNetGenerator, UpsamplingBlock, read_task


@torch.no_grad()
def inference_form(generator: nn.Module, code: Tensor) -> nn.Module:
    """Fold a generator for one code.

    Args:
        generator: any generator, called as ``generator(image, code)``; not changed, and no memory is shared with it.
        code: code vector (K + 2C,) of the site and task, on the generator's device.

    Returns:
        A network in evaluation mode, without gradients, from source images (B, 1, H, W) to target images (B, 1, H, W).

    Raises:
        ValueError: if the generator does not know the task that the code tells.
    """
    network = _form(generator, code[None]).eval().requires_grad_(False)
    lay_out(network, torch.channels_last)
    return network


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Give the weights of convolutions a memory format, in place; what the network computes takes it over."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


@singledispatch
def _form(generator: nn.Module, code: Tensor) -> nn.Module:
    """Build the inference form of a generator for a code (1, K + 2C)."""
    return ConstantCode(generator, code)


@_form.register
def _(generator: PersonalizedGenerator, code: Tensor) -> nn.Module:
    latent = generator.mapper(code)
    layers: list[nn.Module] = []
    for number, stage in generator.stages.items():
        layers.append(_folded(stage))
        if number in generator.personalization:
            layers.append(_personalised(generator.personalization[number], latent))
    return Stages(layers)


@_form.register
def _(generator: ResNetGenerator, code: Tensor) -> nn.Module:
    return Stages([*map(_folded, generator.stages.values()), nn.Tanh()])


@_form.register
def _(generator: UNetGenerator, code: Tensor) -> nn.Module:
    return _unet(generator, nn.Identity(), copy.deepcopy(generator.decoder.output))


@_form.register
def _(generator: MultiContrastUNet, code: Tensor) -> nn.Module:
    source, target = (
        int(part.argmax()) for part in read_task(code, sites=generator.sites, contrasts=generator.contrasts)
    )
    whole = generator.decoder.output
    output = nn.Conv2d(whole.in_channels, 1, 1, device=whole.weight.device)
    output.load_state_dict({name: tensor[target, None] for name, tensor in whole.state_dict().items()})
    return _unet(generator, Stack(source, generator.contrasts, generator.fill), output)


@_form.register
def _(generator: SwitchableUNet, code: Tensor) -> nn.Module:
    latent = generator.mapper(generator.state(code))
    encoder, upsamplings, decoder = (
        [_switched(block, latent) for block in blocks]
        for blocks in (generator.encoder, generator.upsamplings, generator.decoder)
    )
    return UNetForm(encoder, upsamplings, decoder, before=nn.Identity(), after=nn.Identity())


def _unet(network: UNet, before: nn.Module, after: nn.Module) -> UNetForm:
    down, up = network.encoder, network.decoder
    blocks = (map(_block, own) for own in (down.blocks, up.upsamplings, up.blocks))
    return UNetForm(*blocks, before=before, after=after)


def _folded(stage: nn.Module) -> nn.Module:
    """A stage of a residual generator without batch norm and dropout."""
    if isinstance(stage, ResidualLayer):
        first, second = _fused(stage.conv1, stage.norm1), _fused(stage.conv2, stage.norm2)
        return Residual(nn.Sequential(first, nn.ReLU(inplace=True), second))
    if isinstance(stage, nn.Sequential):
        convolution, norm, *rest = stage
        if isinstance(norm, nn.BatchNorm2d):
            return nn.Sequential(_fused(convolution, norm), *map(copy.deepcopy, rest))
    return copy.deepcopy(stage)


def _fused(convolution: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """A convolution, or several one after another, of which the last one holds the batch norm that followed."""
    if isinstance(convolution, nn.Sequential):
        *others, last = convolution
        return nn.Sequential(*map(copy.deepcopy, others), _fused(last, norm))
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    return fuse_conv_bn_eval(convolution, norm, transpose=isinstance(convolution, nn.ConvTranspose2d))


def _personalised(block: nn.Module, latent: Tensor) -> nn.Module:
    """A personalization block at a latent (1, LATENT): one layer."""
    assert isinstance(block, PersonalizationBlock)
    scale, shift = block.style(latent)
    return Gates(scale[0]) if shift is None else InstanceAffine(scale[0], shift[0])


def _switched(switched: nn.Module, latent: Tensor) -> nn.Module:
    """A block of the switchable U-Net at a latent (1, LATENT)."""
    assert isinstance(switched, Switched)
    scale, shift = switched.adain.statistics(latent)
    return nn.Sequential(_block(switched.block), InstanceAffine(scale[0], shift[0]))


def _block(block: nn.Module) -> nn.Module:
    """A block of a U-Net without dropout."""
    if isinstance(block, ConvolutionBlock):
        return nn.Sequential(*_normalised(block.conv1), *_normalised(block.conv2))
    if isinstance(block, UpsamplingBlock):
        return nn.Sequential(*_normalised(block.conv))
    if isinstance(block, nn.Sequential):
        return nn.Sequential(*map(_block, block))
    return copy.deepcopy(block)


def _normalised(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    like = convolution.weight.new_ones(convolution.out_channels)
    return copy.deepcopy(convolution), InstanceAffine(like, torch.zeros_like(like)), nn.LeakyReLU(0.2, inplace=True)
