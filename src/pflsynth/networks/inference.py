"""The inference form of a generator: what is left of it once site and task are fixed and training is over.

Mapper, styles and gates become numbers, batch norm becomes part of the convolution before it, dropout is gone, and a
personalization block is one layer: an instance norm whose affine function holds statistics and gates. Outputs are those
of the generator in evaluation mode up to rounding (tested to 1e-4). Tensors are channels-last, in which convolutions,
and above all transposed ones, are faster on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.layers import ResidualLayer, check_stage_sizes
from pflsynth.networks.multicontrast import MultiContrastUNet
from pflsynth.networks.personalization import AdaCW, AdaIN
from pflsynth.networks.resnet import ResNetGenerator
from pflsynth.networks.switchable import SwitchableUNet, Switched
from pflsynth.networks.unet import ConvolutionBlock, UNet, UNetGenerator, UpsamplingBlock, padded, read_task


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


class InstanceAffine(nn.Module):
    """Instance norm (eps 1e-5) and an affine function of every channel.

    Args:
        weight: standard deviations (C,) of the output.
        bias: means (C,) of the output.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) with more than one pixel to features (B, C, H, W).

        A group norm of one channel a group is an instance norm in one pass. But on channels-last tensors torch takes
        its variance as E[x²] - E[x]², which cancels, and its instance norm is slow there.
        """
        if not features.is_contiguous(memory_format=torch.channels_last):
            return F.group_norm(features, len(self.weight), self.weight, self.bias, eps=1e-5)
        centred = features - features.mean(dim=(2, 3), keepdim=True)
        variance = centred.square().mean(dim=(2, 3), keepdim=True)
        return torch.addcmul(
            self.bias[:, None, None], centred, self.weight[:, None, None] * torch.rsqrt(variance + 1e-5)
        )


class Gates(nn.Module):
    """Scales every channel by a constant.

    Args:
        gates: (channels,).
    """

    def __init__(self, gates: Tensor) -> None:
        super().__init__()
        self.gates: Tensor
        self.register_buffer("gates", gates[:, None, None].clone())

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features (B, C, H, W)."""
        return features * self.gates


class Residual(nn.Module):
    """Adds what its layers make of the features to the features.

    Args:
        change: layers that keep the shape.
    """

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to features (B, C, H, W)."""
        change: Tensor = self.change(features)
        return features + change


class Stages(nn.Module):
    """The inference form of a residual generator: layers one after another.

    Args:
        layers: from images to images.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Translate images (B, 1, H, W); H and W are multiples of 4 and at least 8, or DataError is raised."""
        check_stage_sizes(image)
        translated: Tensor = self.layers(image)
        return translated


class UNetForm(nn.Module):
    """The inference form of the U-Nets.

    Args:
        encoder: blocks of the way down, the bottleneck last.
        upsamplings: of the way up.
        decoder: blocks of the way up, each after its upsampling.
        before: makes the encoder's input of the image.
        after: makes the image of what the last block gives.
    """

    def __init__(
        self,
        encoder: Iterable[nn.Module],
        upsamplings: Iterable[nn.Module],
        decoder: Iterable[nn.Module],
        *,
        before: nn.Module,
        after: nn.Module,
    ) -> None:
        super().__init__()
        self.before = before
        self.encoder = nn.ModuleList(encoder)
        self.upsamplings = nn.ModuleList(upsamplings)
        self.decoder = nn.ModuleList(decoder)
        self.after = after

    def forward(self, image: Tensor) -> Tensor:
        """Translate images (B, 1, H, W); DataError if H or W is too small for the levels."""
        height, width = image.shape[-2:]
        hidden = self.before(padded(image, len(self.upsamplings)))
        features: list[Tensor] = []
        for block in self.encoder:
            features.append(block(F.avg_pool2d(features[-1], 2) if features else hidden))
        *skips, hidden = features
        for upsampling, block, skip in zip(self.upsamplings, self.decoder, reversed(skips), strict=True):
            hidden = block(torch.cat((upsampling(hidden), skip), dim=1))
        translated: Tensor = torch.tanh(self.after(hidden))
        return translated[..., :height, :width]


class Stack(nn.Module):
    """Puts an image into its channel of a stack whose other channels hold a constant.

    Args:
        channel: of the image.
        channels: of the stack.
        fill: the constant.
    """

    def __init__(self, channel: int, channels: int, fill: float) -> None:
        super().__init__()
        self.around = (channel, channels - channel - 1)
        self.fill = fill

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, H, W) to stacks (B, channels, H, W)."""
        return F.pad(image, (0, 0, 0, 0, *self.around), value=self.fill)


class ConstantCode(nn.Module):
    """A generator that is always told the same code: the form of generators that nobody has folded yet.

    Args:
        generator: called as ``generator(image, code)``.
        code: (1, K + 2C).
    """

    def __init__(self, generator: nn.Module, code: Tensor) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator)
        self.code: Tensor
        self.register_buffer("code", code.clone())

    def forward(self, image: Tensor) -> Tensor:
        """Translate images (B, 1, H, W)."""
        translated: Tensor = self.generator(image, self.code.expand(len(image), -1))
        return translated


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
            layers += _personalised(generator.personalization[number], latent)
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


def _personalised(block: nn.Module, latent: Tensor) -> list[nn.Module]:
    """A personalization block at a latent (1, LATENT): one layer."""
    parts = dict(block.named_children())
    adain, adacw = parts.get("adain"), parts.get("adacw")
    gates = adacw.gates(latent)[0] if isinstance(adacw, AdaCW) else None
    if not isinstance(adain, AdaIN):
        return [] if gates is None else [Gates(gates)]
    return [_affine(adain, latent, gates)]


def _affine(adain: AdaIN, latent: Tensor, gates: Tensor | None = None) -> InstanceAffine:
    deviations, means = (part[0] for part in adain.statistics(latent))
    if gates is not None:
        deviations, means = deviations * gates, means * gates
    return InstanceAffine(deviations, means)


def _switched(switched: nn.Module, latent: Tensor) -> nn.Module:
    """A block of the switchable U-Net at a latent (1, LATENT)."""
    assert isinstance(switched, Switched)
    return nn.Sequential(_block(switched.block), _affine(switched.adain, latent))


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
