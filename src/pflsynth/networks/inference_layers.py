"""Layers of the inference forms: what site and task decide is a constant in them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.networks.instance_norm import EPSILON, instance_affine, is_channels_last
from pflsynth.networks.layers import check_stage_sizes
from pflsynth.networks.unet import padded


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

        A group norm of one channel a group is an instance norm in one pass, if features are not channels-last. In an
        exported network it is spelt out, with rows and then columns summed: ONNX Runtime sums all pixels in a row in
        float32, which loses two digits at 256 × 256.
        """
        features = features.to(self.weight.dtype)  # what autocast made bfloat16
        if torch.compiler.is_exporting():
            centred = features - _mean(features)
            deviations = torch.rsqrt(_mean(centred.square()) + EPSILON)
            return centred * (deviations * self.weight[:, None, None]) + self.bias[:, None, None]
        if is_channels_last(features):
            scale, shift = (own.expand(len(features), -1) for own in (self.weight, self.bias))
            return instance_affine(features, scale, shift)
        return F.group_norm(features, len(self.weight), self.weight, self.bias, eps=EPSILON)


def _mean(features: Tensor) -> Tensor:
    return features.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


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
