"""The stages of the lite family: those of the paper's generator with fewer operations for the same image.

Stages have the numbers, the channels and the places of personalization blocks of the full generator, and the latent
grid between them is the same (a quarter of the image's height and width). What differs: the image is taken in and
given out at half resolution (a strided convolution, and sub-pixel convolution as in arXiv:1609.05158), and the 3×3
convolutions of the residual layers are depthwise separable (arXiv:1704.04861).
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
        rectified(nn.Conv2d(1, width, 6, stride=2, padding=2, padding_mode="reflect", bias=False)),
        rectified(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
        rectified(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)),
        *(ResidualLayer(4 * width, dropout, separable) for _ in range(residual_layers)),
        rectified(nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False)),
        rectified(upsampling(2 * width, width)),
        nn.Sequential(nn.Conv2d(width, 4, 3, padding=1, padding_mode="reflect"), nn.PixelShuffle(2), nn.Tanh()),
    ]


def separable(channels: int) -> nn.Sequential:
    """Return a 3×3 convolution in two: of each channel by itself (reflection-padded), then 1×1 over channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )
