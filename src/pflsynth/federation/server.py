"""What the server makes of the mean of a round's updates: take it, or step towards it with momentum or Adam.

The difference ``mean - before`` is treated as a gradient that points the right way (Reddi et al., Adaptive Federated
Optimization, arXiv:2003.00295). The rules' own moments are part of a training's state and are checkpointed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Tensors = dict[str, torch.Tensor]
_BUFFERS = ("running_mean", "running_var")


class ServerRule(Protocol):
    """Maps the shared tensors before a round, their mean after it, and the rule's state, to the next of both."""

    def __call__(self, before: Tensors, mean: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """Return the shared tensors to go on with, and the rule's state."""


@dataclass(frozen=True)
class Mean:
    """Takes the mean as it is (FedAvg, arXiv:1602.05629)."""

    def __call__(self, before: Tensors, mean: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """See :class:`ServerRule`; there is no state."""
        return dict(mean), {}


@dataclass(frozen=True)
class Momentum:
    """Server momentum (FedAvgM, arXiv:1909.06335): v <- beta v + (mean - before); next = before + rate v."""

    beta: float = 0.9
    rate: float = 1.0

    def __call__(self, before: Tensors, mean: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """See :class:`ServerRule`; the state holds ``velocity/<name>``."""
        after, moments = dict(mean), Tensors()
        for name in learnt(mean):
            velocity = self.beta * state.get(f"velocity/{name}", torch.zeros_like(mean[name]))
            velocity = velocity + (mean[name] - before[name])
            after[name] = before[name] + self.rate * velocity
            moments[f"velocity/{name}"] = velocity
        return after, moments


@dataclass(frozen=True)
class Adam:
    """Server Adam (FedAdam, arXiv:2003.00295, Algorithm 2): no bias correction; ``tau`` bounds the adaptivity."""

    rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    def __call__(self, before: Tensors, mean: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """See :class:`ServerRule`; the state holds ``first/<name>`` and ``second/<name>``."""
        after, moments = dict(mean), Tensors()
        for name in learnt(mean):
            change = mean[name] - before[name]
            zero = torch.zeros_like(change)
            first = self.betas[0] * state.get(f"first/{name}", zero) + (1 - self.betas[0]) * change
            second = self.betas[1] * state.get(f"second/{name}", zero) + (1 - self.betas[1]) * change**2
            after[name] = before[name] + self.rate * first / (second.sqrt() + self.tau)
            moments[f"first/{name}"], moments[f"second/{name}"] = first, second
        return after, moments


MEAN = Mean()


def learnt(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of what was learnt; running statistics of batch norm are always taken as their mean."""
    return [name for name in tensors if not name.endswith(_BUFFERS)]
