"""Instance norm with an affine function of every channel: exact and in few passes, in either memory format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-5
"""Added to variances."""


def instance_affine(features: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Instance norm (eps 1e-5, no running statistics) and an affine function of every channel.

    The instance norm of one sample is the batch norm of a batch of one, for which torch has fast kernels.

    Args:
        features: (B, C, H, W) with more than one pixel.
        scale: standard deviations (B, C) of the output; default 1.
        shift: means (B, C) of the output; default 0.
    """
    count = len(features)
    scales: Sequence[Tensor | None] = [None] * count if scale is None else scale.unbind()
    shifts: Sequence[Tensor | None] = [None] * count if shift is None else shift.unbind()
    normalised = [_affine(*own) for own in zip(features.split(1), scales, shifts, strict=True)]
    return torch.cat(normalised) if count > 1 else normalised[0]


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances (C,) of the channels of channels-last features (1, C, H, W) on a CPU.

    torch sums each channel of such features pixel by pixel in float32, which loses four digits at 256 × 256. Here it
    sums each column of pixels, and the columns are put together.
    """
    _, channels, height, width = features.shape
    columns = features.permute(0, 2, 3, 1).reshape(height, width * channels)
    means, variances = (
        part.view(width, channels) for part in torch.batch_norm_update_stats(columns, None, None, momentum=0.0)
    )
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)


def is_channels_last(features: Tensor) -> bool:
    """Whether :func:`statistics` are wanted: torch's own of these features are inexact, and are what runs."""
    on_cpu = features.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and features.is_contiguous(memory_format=torch.channels_last)


def _affine(features: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The function for one sample (1, C, H, W), with scale and shift (C,)."""
    if not is_channels_last(features):
        return F.batch_norm(features, None, None, scale, shift, training=True, eps=EPSILON)
    normalised: Tensor = _ChannelsLast.apply(features, scale, shift)  # type: ignore[no-untyped-call]
    return normalised


class _ChannelsLast(torch.autograd.Function):
    """The batch norm of a batch of one by exact statistics, with the gradient that torch has for it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        mean, variance = statistics(features)
        ctx.save_for_backward(features, scale, mean, torch.rsqrt(variance + EPSILON))
        return F.batch_norm(features, mean, variance, scale, shift, training=False, eps=EPSILON)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, scale, mean, inverse = ctx.saved_tensors
        gradients: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
            gradient, features, scale, None, None, mean, inverse, True, EPSILON, ctx.needs_input_grad
        )
        return tuple(own if wanted else None for own, wanted in zip(gradients, ctx.needs_input_grad, strict=True))
