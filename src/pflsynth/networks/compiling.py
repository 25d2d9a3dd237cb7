"""Networks compiled by ``torch.compile``, or as they are where nothing can be compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn

OPTIONS = {"fallback_random": True}
"""Dropout draws what it draws without compiling."""

GRAPHS = 64
"""Most variants of one network: sizes of batches, with and without gradients of its weights."""


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> bool:
    """Have networks compiled when they are first called, in place; names of their tensors stay.

    What is compiled belongs to the code and the shapes, not to the networks, so networks that are built alike (of the
    next round, of another site) use it again. Where this machine cannot compile, a warning says so, once in a process.

    Args:
        networks: on the device.
        device: that they are on.

    Returns:
        Whether they will be compiled.
    """
    if not can_compile(device.type):
        return False
    from torch._dynamo import config  # slow to import, and seldom wanted

    config.cache_size_limit = GRAPHS
    config.suppress_errors = True  # a network that cannot be compiled runs as it is
    for network in networks:
        network.compile(dynamic=False, options=OPTIONS)
    return True


@cache
def can_compile(kind: str) -> bool:
    """Whether a small function and its gradient can be compiled for a kind of device; if not, a warning says why."""
    numbers = torch.ones(8, device=kind, requires_grad=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own imports
            torch.compile(_trial)(numbers).backward()
    except Exception as fault:  # of the compiler, its tools or their files: each has its own class
        reason = str(fault).strip().splitlines()[0]
        warnings.warn(
            f"compile = true: torch.compile does not work on this machine ({reason}); training goes on without it. "
            "On a CPU it needs a C++ compiler (g++).",
            stacklevel=2,
        )
        return False
    return True


def _trial(numbers: Tensor) -> Tensor:
    return torch.tanh(numbers * 2).sum()
