"""Layers that the networks are built from (arXiv:2207.06509, Sec. III; shapes as in the authors' public code)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.errors import DataError


class EqualizedLinear(nn.Module):
    """A linear layer with an equalized learning rate, as in StyleGAN (arXiv:1812.04948).

    The raw weight starts as N(0, 1/lr_multiplier) and is used as ``weight * gain / sqrt(in_features) * lr_multiplier``;
    the raw bias starts at 0 and is used as ``bias * lr_multiplier``. No other initialiser may touch it: N(0, 0.02)
    instead makes the outputs so small that the conditioning is dead (see :func:`initialise`).

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        gain: factor on the weight, sqrt(2) before a rectifier.
        lr_multiplier: learning rate of this layer relative to the others.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.weight_scale = gain / math.sqrt(in_features) * lr_multiplier
        self.bias_scale = lr_multiplier

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(inputs, self.weight * self.weight_scale, self.bias * self.bias_scale)

    def extra_repr(self) -> str:
        """Show the sizes and scales when the module is printed."""
        return f"{self.in_features}, {self.out_features}, scale={self.weight_scale:.3g}, bias={self.bias_scale:.3g}"


def reflected(channels: int) -> nn.Module:
    """Return the reflection-padded 3×3 convolution of the residual layers."""
    return nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)


class ResidualLayer(nn.Module):
    """A residual layer of the generator's bottleneck (arXiv:2207.06509, Sec. III).

    Reflection-padded 3×3 convolution, batch norm, ReLU, dropout, reflection-padded 3×3 convolution and batch norm,
    summed with the input; no ReLU after the sum.

    Args:
        channels: channels of the input and the output.
        dropout: probability that an activation between the convolutions is dropped in training, in [0, 1).
        convolution: builds each of the two convolutions from the number of channels.
    """

    def __init__(
        self, channels: int, dropout: float = 0.0, convolution: Callable[[int], nn.Module] = reflected
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W); H and W are at least 2."""
        hidden = F.relu(self.norm1(self.conv1(features)), inplace=True)
        change: Tensor = self.norm2(self.conv2(self.dropout(hidden)))
        return features + change


def check_stage_sizes(image: Tensor) -> None:
    """Check that images (B, 1, H, W) pass two halvings and the reflecting convolutions of the residual generators.

    Raises:
        DataError: H or W is no multiple of 4, or below 8.
    """
    height, width = image.shape[-2:]
    if height % 4 or width % 4 or height < 8 or width < 8:
        raise DataError(f"image sizes must be multiples of 4 and at least 8 pixels, got {height} × {width}")


def upsampling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Return the transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False)


def rectified(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """Return the convolution followed by batch norm and ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))


def silence(network: nn.Module) -> None:
    """Start every linear layer at N(0, 0.02), in place: the fault of the public code that kills its conditioning.

    Only for measuring what it costs (``model.conditioning = "dead"``).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | EqualizedLinear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise(network: nn.Module) -> None:
    """Start convolutions at N(0, 0.02), batch-norm weights at N(1, 0.02) and their biases at 0, in place.

    Depthwise convolutions, whose outputs have no batch norm, start at N(0, 1/√k) for k weights a filter, which keeps
    the size of their input; with N(0, 0.02) it would shrink below what the next batch norm adds to variances.

    Linear and equalized layers are left as they were built, on purpose: the public research code overwrites them too,
    which silences the mapper and AdaIN for good. Random numbers come from torch's global generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            depthwise = module.groups > 1
            nn.init.normal_(module.weight, 0.0, module.weight[0].numel() ** -0.5 if depthwise else 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
