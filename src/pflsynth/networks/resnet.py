"""The residual generator of pix2pix-like baselines, which is told neither the site nor the task.

Shapes as in the public code of pFLSynth (icon-lab/pFLSynth, 2024-01), which trains it as the baseline FedGAN
(arXiv:2006.07228); the architecture is that of arXiv:1603.08155.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pflsynth.networks.checkpointing import Checkpointable
from pflsynth.networks.layers import ResidualLayer, check_stage_sizes, initialise, rectified, upsampling


class ResNetGenerator(Checkpointable):
    """Translates a source into a target contrast: the stages of the unified generator, without any personalization.

    Stages are numbered from "1" in :attr:`stages` as those of
    :class:`~pflsynth.networks.generators.PersonalizedGenerator`; the last one is a 7×7 convolution, and tanh follows.

    The public code differs in two ways, both left out here. It has two batch norms a layer, of which it only ever uses
    the first. And instead of a bias it adds a learnable image of 256×256 before tanh, which ties the network to one
    image size; here the bias is one number, as in the unified generator. With that image added to
    :meth:`before_tanh` the functions are the same, and the golden tests hold them to it.

    Args:
        width: channels of the first stage, at least 1; the bottleneck has four times as many.
        residual_layers: number of residual layers, at least 1.
        dropout: dropout probability inside the residual layers, in [0, 1).

    Raises:
        ValueError: if a size is not as above.
    """

    def __init__(self, *, width: int = 64, residual_layers: int = 9, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in (("width", width), ("residual_layers", residual_layers)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        stages: list[nn.Module] = [
            rectified(nn.Conv2d(1, width, 7, padding=3, padding_mode="reflect", bias=False)),
            rectified(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
            rectified(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)),
            *(ResidualLayer(4 * width, dropout) for _ in range(residual_layers)),
            rectified(upsampling(4 * width, 2 * width)),
            rectified(upsampling(2 * width, width)),
            nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect"),
        ]
        self.stages = nn.ModuleDict({str(i): stage for i, stage in enumerate(stages, 1)})
        initialise(self)

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Translate source images into target images.

        Args:
            image: source images (B, 1, H, W) in [-1, 1]; H and W are multiples of 4 and at least 8.
            code: ignored; it is there so that all generators are called alike.

        Returns:
            Target images (B, 1, H, W) in (-1, 1).

        Raises:
            DataError: if H or W is not as above.
        """
        return torch.tanh(self.before_tanh(image))

    def before_tanh(self, image: Tensor) -> Tensor:
        """Return the output of the last convolution (B, 1, H, W), unbounded; see :meth:`forward`."""
        check_stage_sizes(image)
        features = image
        for stage in self.stages.values():
            features = self.run(stage, _as_it_is, features)
        return features


def _as_it_is(features: Tensor) -> Tensor:
    return features
