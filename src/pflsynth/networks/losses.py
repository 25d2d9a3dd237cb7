"""Least-squares adversarial losses (LSGAN, arXiv:1611.04076) as pFLSynth uses them (arXiv:2207.06509, Sec. III).

A generator minimises ``adversarial_loss(fake scores) + 100 · L1``, with L1 from ``torch.nn.functional.l1_loss``. All
losses are means over every element of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(fake_scores: Tensor, real_scores: Tensor) -> Tensor:
    """Return the loss of a discriminator: 0.5 · (mean of fake² + mean of (real - 1)²).

    Args:
        fake_scores: scores of synthetic images, of any shape; the images are detached from their generator.
        real_scores: scores of real images, of any shape.

    Returns:
        A scalar, 0 where every synthetic image scores 0 and every real one 1.
    """
    fake_loss = F.mse_loss(fake_scores, torch.zeros_like(fake_scores))
    real_loss = F.mse_loss(real_scores, torch.ones_like(real_scores))
    return 0.5 * (fake_loss + real_loss)


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """Return the adversarial loss of a generator: the mean of (fake - 1)².

    Args:
        fake_scores: scores that a discriminator gives to the generator's images, of any shape.

    Returns:
        A scalar, 0 where every synthetic image scores as real.
    """
    return F.mse_loss(fake_scores, torch.ones_like(fake_scores))
