"""The paired adversarial step: discriminators first, then the generator (arXiv:2207.06509), and its parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from pflsynth.config_sections import TrainingConfig
from pflsynth.federation.batches import Batch
from pflsynth.federation.method import LocalRound, Optimizers, SiteNetworks, StepLosses
from pflsynth.networks.losses import adversarial_loss, discriminator_loss

Penalty = Callable[[SiteNetworks, LocalRound], torch.Tensor]
ImageLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_optimizers(
    networks: SiteNetworks, training: TrainingConfig, *, fused: bool = True
) -> dict[str, torch.optim.Adam]:
    """One Adam for the generator, every discriminator and every helper, keyed by the module's name.

    A helper that is itself a :class:`SiteNetworks` has optimizers of its own for its parts. Fused ones compute real
    numbers only, so networks on the meta device need others.
    """
    modules: dict[str, nn.Module] = {"generator": networks.generator}
    modules |= {f"discriminators.{task}": module for task, module in networks.discriminators.items()}
    nested: dict[str, torch.optim.Adam] = {}
    for name, helper in networks.helpers.items():
        if isinstance(helper, SiteNetworks):
            inner = make_optimizers(helper, training, fused=fused)
            nested |= {f"helpers.{name}.{key}": optimizer for key, optimizer in inner.items()}
        else:
            modules[f"helpers.{name}"] = helper
    return {
        name: torch.optim.Adam(module.parameters(), lr=training.learning_rate, betas=training.betas, fused=fused)
        for name, module in modules.items()
    } | nested


def training_step(
    networks: SiteNetworks,
    optimizers: Optimizers,
    batch: Batch,
    local: LocalRound,
    index: int,
    *,
    penalty: Penalty | None = None,
    image_loss: ImageLoss | None = None,
) -> StepLosses:
    """Update the discriminators of the tasks in the batch, then the generator.

    Losses are means over samples; each sample goes to its own task's discriminator, and a discriminator without
    samples takes no step.

    Args:
        networks: in training mode; without discriminators there is no adversarial loss.
        optimizers: of :func:`make_optimizers`.
        batch: B samples, tasks mixed at will.
        local: the round.
        index: of the step in the round.
        penalty: added to the generator's loss, once a step.
        image_loss: of (synthetic, real) images of a task, added to the generator's loss.
    """
    training = local.config.training
    fake = networks.generator(batch.source, local.codes[batch.tasks])
    rows = local.rows(batch)
    losses = StepLosses({task: len(own) for task, own in rows.items()})
    if networks.discriminators:
        for task, own in rows.items():
            losses.add(
                "discriminator",
                task,
                discriminator_step(
                    networks.discriminators[task],
                    optimizers[f"discriminators.{task}"],
                    batch.source[own],
                    fake[own],
                    batch.target[own],
                ),
            )
    total = torch.zeros((), dtype=fake.dtype, device=fake.device)
    for task, own in rows.items():
        l1 = functional.l1_loss(fake[own], batch.target[own])
        losses.add("l1", task, l1)
        loss = training.l1_weight * l1
        if networks.discriminators:
            adversarial = adversarial_loss(networks.discriminators[task](batch.source[own], fake[own]))
            losses.add("adversarial", task, adversarial)
            loss = training.adversarial_weight * adversarial + loss
        if image_loss is not None:
            loss = loss + image_loss(fake[own], batch.target[own])
        total = total + len(own) / len(batch.tasks) * loss
    if penalty is not None:
        total = total + penalty(networks, local)
    optimizers["generator"].zero_grad(set_to_none=True)
    total.backward()
    optimizers["generator"].step()
    return losses


def discriminator_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    source: torch.Tensor,
    fake: torch.Tensor,
    real: torch.Tensor,
    *,
    before_step: Callable[[nn.Module], None] | None = None,
) -> torch.Tensor:
    """Update one discriminator and leave it frozen, for the generator's turn.

    Args:
        discriminator: of (source, image).
        optimizer: its own.
        source: (B, 1, H, W).
        fake: synthetic images; detached here.
        real: real images.
        before_step: changes the gradients.

    Returns:
        Its loss.
    """
    discriminator.requires_grad_(True)
    loss = discriminator_loss(discriminator(source, fake.detach()), discriminator(source, real))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if before_step is not None:
        before_step(discriminator)
    optimizer.step()
    discriminator.requires_grad_(False)
    return loss


def learning_rate_factor(round_number: int, rounds: int) -> float:
    """1 in the first half of the rounds, then falling linearly to ``1 / (rounds / 2 + 1)`` in the last round.

    Rounds count from 1. (The public code drops one round earlier, so that its last round has rate 0.)
    """
    if round_number <= rounds / 2:
        return 1.0
    return (rounds - round_number + 1) / (rounds / 2 + 1)
