"""How many floating-point operations a configuration spends on a slice: of a generator, and of a training step.

Counted are convolutions and matrix products as torch counts them, a multiply-add as **two** operations; norms,
activations and optimizers are left out. Networks are on torch's meta device: nothing is computed or allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from pflsynth.config import FederationConfig
from pflsynth.errors import ModelError
from pflsynth.federation.batches import Batch
from pflsynth.federation.method import CENTRAL, LocalRound, Method, SiteNetworks, task_code
from pflsynth.federation.step import make_optimizers

_META = torch.device("meta")


@dataclass(frozen=True)
class Operations:
    """GFLOP (10**9 operations) of one slice; a batch of B slices takes B times as many.

    Attributes:
        forward: of the generator, once.
        step: of a training step, with all that it does with generator and discriminators.
    """

    forward: float
    step: float


def count_operations(method: Method, config: FederationConfig) -> Operations | None:
    """Count the operations of one slice of a configuration; they are the same at every site.

    Args:
        method: that of the configuration.
        config: the agreement.

    Returns:
        ``None`` for methods whose networks look at the numbers of a code, or that need a file that is not there.
    """
    trainer = method.trainers(config)[0]
    site = config.participants[0] if trainer == CENTRAL else trainer
    try:
        with torch.random.fork_rng(devices=[]):
            with _META:
                networks = method.networks(config, trainer).train()
            local, batch = _one_slice(method, config, networks, site)
            forward = forward_gflop(networks.generator, local.codes, config.image.size)
            with counting() as counter:
                method.step(networks, make_optimizers(networks, config.training, fused=False), batch, local, 0)
    except (RuntimeError, ModelError):  # the meta device has no numbers to look at
        return None
    return Operations(forward, counter.get_total_flops() / 1e9)


def counting() -> FlopCounterMode:
    """A counter of operations; torch's own takes the gradients of a grouped convolution for those of a dense one."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def forward_gflop(generator: nn.Module, code: torch.Tensor, size: int) -> float:
    """GFLOP of a generator for one slice.

    Args:
        generator: on the meta device.
        code: (1, K + 2C), on the meta device.
        size: rows and columns of the slice.
    """
    with counting() as counter, torch.no_grad():
        generator(torch.empty(1, 1, size, size, device=_META), code)
    return float(counter.get_total_flops()) / 1e9


def _convolution_backward(
    gradient: Sequence[int], images: Sequence[int], weight: Sequence[int], *others: object, **_: object
) -> int:
    """Each gradient of a convolution, for its images and for its weight, takes as much as the convolution."""
    transposed, wanted = bool(others[4]), others[7]
    assert isinstance(wanted, Sequence)
    forward = int(conv_flop_count(list(images), list(weight), list(gradient), transposed=transposed))
    return forward * sum(map(bool, wanted[:2]))


def _one_slice(method: Method, config: FederationConfig, networks: SiteNetworks, site: str) -> tuple[LocalRound, Batch]:
    """A round of one step and its batch, of one slice for a site's first task, without numbers."""
    tasks = config.sites[site].tasks[:1]
    codes, reverse_codes = (
        torch.stack([task_code(config, site, task) for task in own]).to(_META)
        for own in (tasks, [task.reversed for task in tasks])
    )
    partition = method.sharing(config).partition(networks)
    received = {key: tensor for key, tensor in networks.state_dict().items() if key in partition.shared}
    previous = dict.fromkeys(method.trainers(config), received) if method.passes_on else {}
    local = LocalRound(config, tasks, codes, reverse_codes, partition, received, previous, 1, 1)
    size, contrasts = config.image.size, len(config.contrasts)
    images = torch.empty(2, 1, 1, size, size, device=_META)
    batch = Batch(images[0], images[1], torch.zeros(1, dtype=torch.int64))
    if method.all_contrasts:
        every = torch.empty(1, contrasts, size, size, device=_META)
        batch = replace(batch, contrasts=every, present=torch.ones(1, contrasts, dtype=torch.bool))
    return local, batch
