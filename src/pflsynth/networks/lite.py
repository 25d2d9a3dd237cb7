"""Stages of the lite generator: fewer operations for the same image.

Stages have the numbers, the channels, the resolutions and the places of personalization blocks of the full generator.
What differs: the 3×3 convolutions of the residual layers are depthwise separable (arXiv:1704.04861), the image is
taken in and given out by 3×3 instead of 7×7 convolutions, and the step to and from the grid of the residual layers is
one of 2×2 patches: space to depth and 1×1, and back.
"""

from __future__ import annotations

from torch import nn

from pflsynth.networks.layers import ResidualLayer, rectified, upsampling


def lite_stages(width: int, residual_layers: int, dropout: float) -> list[nn.Module]:
    """Stages of the lite generator, in order.

    Args:
        width: channels of the first stage; the residual layers have four times as many.
        residual_layers: their number.
        dropout: probability inside them, in [0, 1).
    """
    return [
        rectified(nn.Conv2d(1, width, 3, padding=1, padding_mode="reflect", bias=False)),
        rectified(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
        rectified(nn.Conv2d(2 * width, 4 * width, 2, stride=2, bias=False)),
        *(ResidualLayer(4 * width, dropout, separable) for _ in range(residual_layers)),
        rectified(nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2, bias=False)),
        rectified(upsampling(2 * width, width)),
        nn.Sequential(nn.Conv2d(width, 1, 3, padding=1, padding_mode="reflect"), nn.Tanh()),
    ]


def separable(channels: int) -> nn.Sequential:
    """Return a 3×3 convolution in two: of each channel by itself (reflection-padded), then 1×1 over channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )
