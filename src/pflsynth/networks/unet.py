"""The U-Net of the baselines FedMRI, FedMed-GAN and MM-GAN, and what their variants of it share.

The shapes are those of the U-Nets in the public code of pFLSynth (icon-lab/pFLSynth, 2024-01), with which
arXiv:2207.06509 compares; the architecture is that of arXiv:1505.04597 with instance norm. As there, weights start as
torch starts them; N(0, 0.02) would silence the last 1×1 convolution of a narrow U-Net for many rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.errors import DataError
from pflsynth.networks.instance_norm import instance_affine


class ConvolutionBlock(nn.Module):
    """A level of a U-Net: twice a 3×3 convolution, instance norm, LeakyReLU(0.2) and dropout of channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dropout: probability that a channel is dropped in training, in [0, 1).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W) with more than one pixel."""
        for convolution in (self.conv1, self.conv2):
            features = self.dropout(normalised_and_rectified(convolution(features)))
        return features


class UpsamplingBlock(nn.Module):
    """Doubles height and width: a transposed 2×2 convolution of stride 2, instance norm and LeakyReLU(0.2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, 2H, 2W)."""
        return normalised_and_rectified(self.conv(features))


class Encoder(nn.Module):
    """The way down of a U-Net: convolution blocks with 2×2 average pooling between them, the bottleneck last.

    Args:
        channels: channels of the images.
        width: channels of the first block; each later one has twice as many as the one before.
        levels: number of poolings.
        dropout: probability that a channel is dropped in training, in [0, 1).
    """

    def __init__(self, channels: int, width: int, levels: int, dropout: float) -> None:
        super().__init__()
        sizes = [channels, *block_channels(width, levels)]
        self.blocks = nn.ModuleList(ConvolutionBlock(sizes[i], sizes[i + 1], dropout) for i in range(levels + 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of every block, from those of full size to the bottleneck's.

        Args:
            images: (B, channels, H, W); H and W are multiples of 2**levels.

        Returns:
            Features (B, width·2**i, H/2**i, W/2**i) for i = 0..levels.
        """
        features: list[Tensor] = []
        for block in self.blocks:
            features.append(block(F.avg_pool2d(features[-1], 2) if features else images))
        return features


class Decoder(nn.Module):
    """The way up of a U-Net: upsampling, concatenation with the encoder's features, convolution block; last 1×1, tanh.

    Args:
        channels: channels of the images.
        width: channels of the encoder's first block.
        levels: number of upsamplings.
        dropout: probability that a channel is dropped in training, in the convolution blocks, in [0, 1).
    """

    def __init__(self, channels: int, width: int, levels: int, dropout: float) -> None:
        super().__init__()
        sizes = block_channels(width, levels)[::-1]
        self.upsamplings = nn.ModuleList(UpsamplingBlock(sizes[i], sizes[i + 1]) for i in range(levels))
        self.blocks = nn.ModuleList(ConvolutionBlock(sizes[i], sizes[i + 1], dropout) for i in range(levels))
        self.output = nn.Conv2d(width, channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the features of an :class:`Encoder` to images (B, channels, H, W) in (-1, 1)."""
        *skips, hidden = features
        for upsampling, block, skip in zip(self.upsamplings, self.blocks, reversed(skips), strict=True):
            hidden = block(torch.cat((upsampling(hidden), skip), dim=1))
        return torch.tanh(self.output(hidden))


class UNet(nn.Module):
    """A U-Net from and to images of some channels; :attr:`encoder` (bottleneck included) and :attr:`decoder`.

    7,756,097 parameters with one channel, width 32 and 4 levels.

    Args:
        channels: channels of the input and of the output, at least 1.
        width: channels of the first block, at least 1; the bottleneck has ``width·2**levels``.
        levels: number of poolings, at least 1.
        dropout: probability that a channel is dropped in training, in the convolution blocks, in [0, 1).

    Raises:
        ValueError: if a size is not as above.
    """

    def __init__(self, channels: int = 1, *, width: int = 32, levels: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        check_sizes(channels=channels, width=width, levels=levels)
        self.levels = levels
        self.encoder = Encoder(channels, width, levels, dropout)
        self.decoder = Decoder(channels, width, levels, dropout)

    def translate(self, images: Tensor) -> Tensor:
        """Translate all channels at once.

        Args:
            images: (B, channels, H, W) in [-1, 1]; H and W are greater than 2**levels, otherwise free.

        Returns:
            Images (B, channels, H, W) in (-1, 1).

        Raises:
            DataError: if H or W is too small.
        """
        height, width = images.shape[-2:]
        translated: Tensor = self.decoder(self.encoder(padded(images, self.levels)))
        return translated[..., :height, :width]


class UNetGenerator(UNet):
    """The U-Net as a generator of one contrast from another, which is told neither the site nor the task.

    Args:
        width: channels of the first block.
        levels: number of poolings.
        dropout: probability that a channel is dropped in training, in the convolution blocks, in [0, 1).
    """

    def __init__(self, *, width: int = 32, levels: int = 4, dropout: float = 0.0) -> None:
        super().__init__(1, width=width, levels=levels, dropout=dropout)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Translate source into target images (B, 1, H, W), as :meth:`UNet.translate`; the code is ignored."""
        return self.translate(image)


def padded(images: Tensor, levels: int) -> Tensor:
    """Reflect images at their bottom and right edges up to the next multiples of 2**levels; none where not needed.

    Args:
        images: (B, C, H, W); H and W are greater than 2**levels. Then there is enough to reflect, and the bottleneck
            has at least 2×2 pixels, as instance norm needs more than one.
        levels: number of poolings of the U-Net.

    Returns:
        Images (B, C, H', W') with ``[..., :H, :W]`` equal to the input.

    Raises:
        DataError: if H or W is too small.
    """
    height, width = images.shape[-2:]
    multiple = 2**levels
    if min(height, width) <= multiple:
        raise DataError(
            f"image sizes must be at least {multiple + 1} pixels for a U-Net of {levels} levels, "
            f"got {height} × {width}: use larger images or fewer levels"
        )
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def normalised_and_rectified(features: Tensor) -> Tensor:
    """Return LeakyReLU(0.2) of the instance norm (eps 1e-5, nothing to learn) of features (B, C, H, W)."""
    return F.leaky_relu(instance_affine(features), 0.2)


def block_channels(width: int, levels: int) -> list[int]:
    """Return the channels of the encoder's blocks, the bottleneck last: width, 2·width, ..., width·2**levels."""
    return [width * 2**level for level in range(levels + 1)]


def check_sizes(**sizes: int) -> None:
    """Raise ValueError if a named size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def read_task(code: Tensor, *, sites: int, contrasts: int) -> tuple[Tensor, Tensor]:
    """Return the parts of a code that tell the task.

    Args:
        code: code vectors (B, K + 2C), see :func:`pflsynth.networks.personalization.make_code`.
        sites: number K of sites of the federation.
        contrasts: number C of contrasts of the federation.

    Returns:
        One-hot source contrasts (B, C) and one-hot target contrasts (B, C).

    Raises:
        ValueError: if the code has another length, or a part is not one-hot (as where the task is not live).
    """
    if code.ndim != 2 or code.shape[1] != sites + 2 * contrasts:
        raise ValueError(
            f"codes of {sites} sites and {contrasts} contrasts have the shape (B, {sites + 2 * contrasts}), "
            f"got {tuple(code.shape)}"
        )
    source, target = code[:, sites:].split(contrasts, dim=1)
    for name, part in (("source", source), ("target", target)):
        if not torch.all(((part == 0) | (part == 1)) & (part.sum(dim=1, keepdim=True) == 1)):
            raise ValueError(f"the {name} contrast of a code must be one-hot, got {part.tolist()}")
    return source, target
