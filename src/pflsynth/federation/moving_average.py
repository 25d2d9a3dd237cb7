"""The exponential moving average of a site's generator (``training.ema_decay``): what its finished models are made of.

It is the site's own and stays there. Of what the site keeps private, every step counts; of what is shared, the
aggregate that begins a round counts for all of the round's steps. Sent, aggregated and trained on are the weights
themselves, so the average changes no training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pflsynth.federation.method import SiteNetworks
from pflsynth.federation.sharing import Partition

GENERATOR = "generator."


class MovingAverage:
    """An average of the generator's parameters; buffers are not averaged, batch norm is re-estimated in any case.

    Args:
        networks: on their device, as the round begins with them.
        partition: what of them is shared.
        decay: in (0, 1); early steps forget faster, see :func:`kept`.
        known: the average so far by name; empty if there is none, then it begins with the networks as they are.
    """

    def __init__(
        self, networks: SiteNetworks, partition: Partition, decay: float, known: Mapping[str, torch.Tensor]
    ) -> None:
        self._decay, self._step = decay, 0
        self._parameters = {
            name: parameter for name, parameter in networks.named_parameters() if name.startswith(GENERATOR)
        }
        self._shared = [name for name in self._parameters if name in partition.shared]
        self._private = [name for name in self._parameters if name in partition.private]
        self.tensors = {
            name: known[name].to(parameter.device) if known else parameter.detach().clone()
            for name, parameter in self._parameters.items()
        }

    def begin_round(self, first: int, steps: int) -> None:
        """Count the shared parameters, as they are now, for all steps of a round, of which the first has a number."""
        self._step = first
        self._count(self._shared, math.prod(kept(self._decay, first + step) for step in range(steps)))

    def count_step(self) -> None:
        """Count the private parameters after the next step of the round."""
        self._count(self._private, kept(self._decay, self._step))
        self._step += 1

    def apply(self) -> None:
        """Give the networks the average."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.tensors[name])

    def _count(self, names: list[str], kept_share: float) -> None:
        for name in names:
            self.tensors[name].lerp_(self._parameters[name].detach(), 1 - kept_share)


def kept(decay: float, step: int) -> float:
    """What a step leaves of the average: the decay, or (1 + step) / (10 + step) while that is less."""
    return min(decay, (1 + step) / (10 + step))
