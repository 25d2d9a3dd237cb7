"""The unified generator of pFLSynth (arXiv:2207.06509, Sec. III)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pflsynth.networks.checkpointing import Checkpointable
from pflsynth.networks.layers import ResidualLayer, check_stage_sizes, initialise, rectified, upsampling
from pflsynth.networks.lite import lite_stages
from pflsynth.networks.personalization import BLOCK_PARTS, Mapper, PersonalizationBlock, Style, personalised

StageBuilder = Callable[[int, int, float], list[nn.Module]]
"""Builds the stages of a generator from its width, number of residual layers and dropout."""


def full_stages(width: int, residual_layers: int, dropout: float) -> list[nn.Module]:
    """The stages of the paper."""
    return [
        rectified(nn.Conv2d(1, width, 7, padding=3, padding_mode="reflect", bias=False)),
        rectified(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
        rectified(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)),
        *(ResidualLayer(4 * width, dropout) for _ in range(residual_layers)),
        rectified(upsampling(4 * width, 2 * width)),
        rectified(upsampling(2 * width, width)),
        nn.Sequential(nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect"), nn.Tanh()),
    ]


FAMILIES: Mapping[str, StageBuilder] = MappingProxyType({"full": full_stages, "lite": lite_stages})
"""What the stages of a personalised generator may be made of; all else about it is the same."""


class PersonalizedGenerator(Checkpointable):
    """Translates a source into a target contrast, specialised to a site and a task by a code vector.

    Stages 1–3 encode (7×7 convolution, then two 3×3 of stride 2), the next ``residual_layers`` stages are residual
    layers, the last three decode (two transposed 3×3 of stride 2, then 7×7 and tanh): 15 stages in the paper. A
    personalization block follows every stage but the last. Stages and blocks are numbered from "1" in
    :attr:`stages` and :attr:`personalization`, so ``stages.9`` is the paper's ninth stage.

    That is the family "full". In "lite", stages of the same number have the same channels, but spend fewer operations:
    see :mod:`pflsynth.networks.lite`.

    Args:
        code_length: length of the code vector, at least 1; K + 2C for K sites and C contrasts.
        width: channels of the first stage, a multiple of 8; the bottleneck has four times as many.
        residual_layers: number of residual layers, at least 1.
        dropout: dropout probability inside the residual layers, in [0, 1).
        blocks: parts of the personalization blocks.
        mapper_layers: linear layers of the mapper, at least 1.
        family: what the stages are made of, a key of :data:`FAMILIES`.

    Raises:
        ValueError: if a size is not as above.
    """

    def __init__(
        self,
        code_length: int,
        *,
        width: int = 64,
        residual_layers: int = 9,
        dropout: float = 0.5,
        blocks: Sequence[str] = BLOCK_PARTS,
        mapper_layers: int = 6,
        family: str = "full",
    ) -> None:
        super().__init__()
        if code_length < 1:
            raise ValueError(f"code_length must be at least 1, got {code_length}")
        if width < 8 or width % 8:
            raise ValueError(f"width must be a positive multiple of 8, got {width}")
        if residual_layers < 1:
            raise ValueError(f"residual_layers must be at least 1, got {residual_layers}")
        self.code_length = code_length
        self.width = width
        self.residual_layers = residual_layers
        self.dropout = dropout
        self.family = family

        stages = FAMILIES[family](width, residual_layers, dropout)
        channels = [width, 2 * width, *[4 * width] * (1 + residual_layers), 2 * width, width]
        self.mapper = Mapper(code_length, layers=mapper_layers)
        self.stages = nn.ModuleDict({str(i): stage for i, stage in enumerate(stages, 1)})
        self.personalization = nn.ModuleDict(
            {str(i): PersonalizationBlock(c, parts=blocks) for i, c in enumerate(channels, 1)}
        )
        initialise(self)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Translate source images into target images.

        Args:
            image: source images (B, 1, H, W) in [-1, 1]; H and W are multiples of 4 and at least 8.
            code: code vectors (B, code_length), see :func:`pflsynth.networks.personalization.make_code`.

        Returns:
            Target images (B, 1, H, W) in (-1, 1).

        Raises:
            DataError: if H or W is not as above.
        """
        check_stage_sizes(image)
        styles = self.styles(code)
        features = image
        for number, stage in self.stages.items():
            features = self.run(stage, partial(_styled, style=styles.get(number)), features)
        return features

    def styles(self, code: Tensor) -> dict[str, Style]:
        """Return what each personalization block does to samples with codes (B, code_length), by its number.

        Latents and styles are computed once for every distinct code.
        """
        which = None
        if len(code) > 1:
            code, which = torch.unique(code, dim=0, return_inverse=True)
        latent = self.mapper(code)
        styles: dict[str, Style] = {}
        for number, block in self.personalization.items():
            assert isinstance(block, PersonalizationBlock)
            style = block.style(latent)
            styles[number] = style if which is None else style.of(which)
        return styles


def _styled(features: Tensor, style: Style | None) -> Tensor:
    return features if style is None else personalised(features, style)
