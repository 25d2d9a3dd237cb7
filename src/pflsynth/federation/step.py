"""One optimisation step of a site's networks: discriminators first, then the generator (arXiv:2207.06509)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from pflsynth.config import TrainingConfig
from pflsynth.federation.batches import Batch
from pflsynth.federation.methods import SiteNetworks
from pflsynth.networks.losses import adversarial_loss, discriminator_loss


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step, detached: means over the samples of each task in the batch, keyed by task index."""

    samples: dict[int, int]
    discriminator: dict[int, torch.Tensor]
    adversarial: dict[int, torch.Tensor]
    l1: dict[int, torch.Tensor]


def make_optimizers(networks: SiteNetworks, training: TrainingConfig) -> dict[str, torch.optim.Adam]:
    """One Adam for the generator and one for every discriminator, keyed by the module's name in ``networks``."""
    modules: dict[str, nn.Module] = {"generator": networks.generator}
    modules |= {f"discriminators.{task}": module for task, module in networks.discriminators.items()}
    return {
        name: torch.optim.Adam(module.parameters(), lr=training.learning_rate, betas=training.betas)
        for name, module in modules.items()
    }


def training_step(
    networks: SiteNetworks,
    optimizers: dict[str, torch.optim.Adam],
    batch: Batch,
    codes: torch.Tensor,
    training: TrainingConfig,
) -> StepLosses:
    """Update the discriminators of the tasks in the batch, then the generator.

    Losses are means over samples; each sample goes to its own task's discriminator, and a discriminator without
    samples takes no step.

    Args:
        networks: in training mode.
        optimizers: of :func:`make_optimizers`.
        batch: B samples, tasks mixed at will.
        codes: (tasks, K + 2C), the code of each task of the site.
        training: weights of the losses.
    """
    fake = networks.generator(batch.source, codes[batch.tasks])
    rows = {int(task): (batch.tasks == task).nonzero().flatten() for task in batch.tasks.unique()}
    names = list(networks.discriminators)
    losses = StepLosses({task: len(index) for task, index in rows.items()}, {}, {}, {})
    for task, index in rows.items():
        discriminator, optimizer = networks.discriminators[names[task]], optimizers[f"discriminators.{names[task]}"]
        discriminator.requires_grad_(True)
        source = batch.source[index]
        loss = discriminator_loss(
            discriminator(source, fake[index].detach()), discriminator(source, batch.target[index])
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        discriminator.requires_grad_(False)
        losses.discriminator[task] = loss.detach()
    total = torch.zeros((), dtype=fake.dtype, device=fake.device)
    for task, index in rows.items():
        adversarial = adversarial_loss(networks.discriminators[names[task]](batch.source[index], fake[index]))
        l1 = functional.l1_loss(fake[index], batch.target[index])
        losses.adversarial[task], losses.l1[task] = adversarial.detach(), l1.detach()
        share = len(index) / len(batch.tasks)
        total = total + share * (training.adversarial_weight * adversarial + training.l1_weight * l1)
    optimizers["generator"].zero_grad(set_to_none=True)
    total.backward()
    optimizers["generator"].step()
    return losses


def learning_rate_factor(round_number: int, rounds: int) -> float:
    """1 in the first half of the rounds, then falling linearly to ``1 / (rounds / 2 + 1)`` in the last round.

    Rounds count from 1. (The public code drops one round earlier, so that its last round has rate 0.)
    """
    if round_number <= rounds / 2:
        return 1.0
    return (rounds - round_number + 1) / (rounds / 2 + 1)
