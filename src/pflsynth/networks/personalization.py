"""Code vector, mapper and personalization block: how a generator is told the site and the task.

A one-hot code of site, source and target contrast is mapped to a latent; after each stage of the generator but the
last, a personalization block turns the latent into the statistics (AdaIN) and the weights (AdaCW) of every channel
(arXiv:2207.06509, Sec. III).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.networks.instance_norm import instance_affine
from pflsynth.networks.layers import EqualizedLinear

LATENT = 512
"""Length of the latent that the mapper produces."""

CODE_PARTS = ("site", "task")
"""What a code vector can tell: the site, and the task (source and target contrast)."""


BLOCK_PARTS = ("adain", "adacw")
"""What a personalization block is made of, in this order."""


def make_code(
    site: int, source: int, target: int, *, sites: int, contrasts: int, live: Sequence[str] = CODE_PARTS
) -> Tensor:
    """Return the code vector of one site and task: one-hot site, one-hot source contrast, one-hot target contrast.

    Args:
        site: index of the site, in [0, sites).
        source: index of the source contrast, in [0, contrasts).
        target: index of the target contrast, in [0, contrasts).
        sites: number of sites of the federation.
        contrasts: number of contrasts of the federation.
        live: which of "site" and "task" the code tells; the entries of the others are zero (for ablations).

    Returns:
        A float32 tensor of shape (sites + 2·contrasts,).

    Raises:
        ValueError: if an index is out of range or ``live`` holds another word.
    """
    for name, index, count in (("site", site, sites), ("source", source, contrasts), ("target", target, contrasts)):
        if not 0 <= index < count:
            raise ValueError(f"{name} index {index} is not in 0..{count - 1}")
    if not set(live) <= set(CODE_PARTS):
        raise ValueError(f"live code parts are {', '.join(CODE_PARTS)}; got {', '.join(live)}")
    code = torch.zeros(sites + 2 * contrasts)
    if "site" in live:
        code[site] = 1.0
    if "task" in live:
        code[sites + source] = 1.0
        code[sites + contrasts + target] = 1.0
    return code


class Mapper(nn.Module):
    """The mapper from code vectors to latents: equalized linear layers, each followed by LeakyReLU(0.2).

    Args:
        code_length: length of the code vector.
        latent: length of the latent.
        layers: number of linear layers.
    """

    def __init__(self, code_length: int, latent: int = LATENT, layers: int = 6) -> None:
        super().__init__()
        sizes = [code_length] + [latent] * layers
        self.layers = nn.ModuleList(
            EqualizedLinear(sizes[i], sizes[i + 1], gain=math.sqrt(2.0), lr_multiplier=0.01) for i in range(layers)
        )

    def forward(self, code: Tensor) -> Tensor:
        """Map codes (B, code_length) to latents (B, latent)."""
        for layer in self.layers:
            code = F.leaky_relu(layer(code), 0.2)
        return code


class AdaIN(nn.Module):
    """Adaptive instance normalization: every channel gets the standard deviation 1 + γ and the mean β.

    [γ, β] is an equalized linear function of the latent (the journal's "site-task instance normalization").

    Args:
        channels: channels C of the feature map.
        latent: length of the latent.
    """

    def __init__(self, channels: int, latent: int = LATENT) -> None:
        super().__init__()
        self.affine = EqualizedLinear(latent, 2 * channels)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """Map features (B, C, H, W) with more than one pixel and latents (B, latent) to features (B, C, H, W)."""
        return instance_affine(features, *self.statistics(latent))

    def statistics(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the standard deviations 1 + γ (B, C) and the means β (B, C) that latents (B, latent) ask for."""
        gamma, beta = self.affine(latent).chunk(2, dim=1)
        return 1.0 + gamma, beta


class AdaCW(nn.Module):
    """Adaptive channel weighting: every channel is scaled by a gate in (0, 1) that depends on the latent alone.

    The gates are ``sigmoid(W2 · ReLU(W1 · latent))`` without biases (the journal's "site-task channel attention").

    Args:
        channels: channels C of the feature map, a multiple of 8.
        latent: length of the latent.
    """

    def __init__(self, channels: int, latent: int = LATENT) -> None:
        super().__init__()
        self.reduce = nn.Linear(latent, channels // 8, bias=False)
        self.expand = nn.Linear(channels // 8, channels, bias=False)

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """Map features (B, C, H, W) and latents (B, latent) to features (B, C, H, W)."""
        return features * self.gates(latent)[:, :, None, None]

    def gates(self, latent: Tensor) -> Tensor:
        """Return the gates (B, C) of latents (B, latent)."""
        return torch.sigmoid(self.expand(F.relu(self.reduce(latent))))


class Style(NamedTuple):
    """What a personalization block does to the channels of B samples.

    Attributes:
        scale: (B, C), gate · (1 + γ): the standard deviations of the output, or factors if there is no ``shift``.
        shift: (B, C), gate · β: the means of the output; ``None`` in a block without AdaIN, which does not normalise.
    """

    scale: Tensor
    shift: Tensor | None

    def of(self, samples: Tensor) -> Style:
        """The styles of other samples, each one of these by its index."""
        return Style(self.scale[samples], None if self.shift is None else self.shift[samples])


class PersonalizationBlock(nn.Module):
    """A personalization block: AdaIN, then AdaCW, both driven by the latent of site and task.

    The gates of AdaCW scale what AdaIN makes, so both together are one instance norm with one affine function of
    every channel (:class:`Style`), and the feature map is read and written once.

    Args:
        channels: channels C of the feature map, a multiple of 8.
        latent: length of the latent.
        parts: "adain", "adacw" or both; the paper's ablations leave one out.
    """

    def __init__(self, channels: int, latent: int = LATENT, parts: Sequence[str] = BLOCK_PARTS) -> None:
        super().__init__()
        kinds: dict[str, type[AdaIN] | type[AdaCW]] = {"adain": AdaIN, "adacw": AdaCW}
        self.parts = tuple(part for part in BLOCK_PARTS if part in parts)
        for part in self.parts:
            self.add_module(part, kinds[part](channels, latent))

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """Map features (B, C, H, W) and latents (B, latent) to features (B, C, H, W)."""
        return personalised(features, self.style(latent))

    def style(self, latent: Tensor) -> Style:
        """Return what latents (B, latent) do to the channels."""
        parts = dict(self.named_children())
        adain, adacw = parts.get("adain"), parts.get("adacw")
        gates = adacw.gates(latent) if isinstance(adacw, AdaCW) else None
        if not isinstance(adain, AdaIN):
            assert gates is not None
            return Style(gates, None)
        deviations, means = adain.statistics(latent)
        return Style(deviations, means) if gates is None else Style(gates * deviations, gates * means)


def personalised(features: Tensor, style: Style) -> Tensor:
    """Give features (B, C, H, W) the style of their samples."""
    if style.shift is None:
        return features * style.scale[:, :, None, None]
    return instance_affine(features, style.scale, style.shift)
