"""Batch-norm running statistics of a personalised model, re-estimated at its site before it is used.

Aggregated running statistics fit no site's private layers nor its mix of tasks, and training with small batches
normalises by the batch. One pass over training slices in the final weights gives statistics that belong to them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch-norm layers of ``module``."""
    return [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]


@torch.no_grad()
def reestimate_batch_norm(generator: nn.Module, inputs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Replace running statistics by the cumulative mean over ``inputs``, dropout off; leaves ``eval()`` mode.

    Args:
        generator: changed in place.
        inputs: batches of (image (B, 1, H, W), code (B, K + 2C)).
    """
    generator.eval()
    norms = batch_norms(generator)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for image, code in inputs:
        generator(image, code)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    generator.eval()
