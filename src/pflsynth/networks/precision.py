"""Convolutions in bfloat16, everything between them in float32 (``training.precision = "bfloat16"``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def convolve_in_bfloat16(network: nn.Module) -> None:
    """Have all convolutions multiply bfloat16 numbers, in place, by autocast; parameters stay as they are.

    What a convolution gives is float32 again, so that norms, gates, losses and the optimizer see float32 alone.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.forward = partial(_in_bfloat16, module.forward)  # type: ignore[method-assign]


def _in_bfloat16(convolution: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, torch.bfloat16):
        return convolution(features).float()
