"""What a method shares and what it keeps private: a partition of a state dict.

Partial network aggregation (arXiv:2207.06509, Sec. III-C), FedBN, FedPer, LG-FedAvg, "share everything" and
"share nothing" are all values of :class:`Sharing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

Selector = str | type[nn.Module]


@dataclass(frozen=True)
class Partition:
    """State-dict keys of one module, each in exactly one part, in state-dict order."""

    shared: tuple[str, ...]
    private: tuple[str, ...]


@dataclass(frozen=True)
class Sharing:
    """Which parts of a module are shared and which are private.

    A selector is a whole dotted name (``"generator.mapper"`` selects that module or tensor and all below it, and
    never ``"generator.mapper2"``) or a module type (selects every module of that type and all below it). ``None``
    for one of the two sides means "everything that the other side does not select". Integer buffers are private
    always, whatever is selected.
    """

    shared: tuple[Selector, ...] | None
    private: tuple[Selector, ...] | None

    def __post_init__(self) -> None:
        if self.shared is None and self.private is None:
            raise ValueError("either shared or private must be given")

    def partition(self, module: nn.Module) -> Partition:
        """Partition the state dict of ``module``.

        Raises:
            ValueError: if a selector selects nothing, or keys fall in both parts or in none; all are listed.
        """
        state = module.state_dict()
        countable = [key for key, tensor in state.items() if tensor.is_floating_point()]
        shared = _select(self.shared, module, countable)
        private = _select(self.private, module, countable)
        if shared is None:
            shared = set(countable) - (private or set())
        if private is None:
            private = set(countable) - shared
        both = [key for key in countable if key in shared and key in private]
        neither = [key for key in countable if key not in shared and key not in private]
        if both or neither:
            raise ValueError(f"keys that are shared and private: {both}; keys that are neither: {neither}")
        return Partition(
            shared=tuple(key for key in state if key in shared),
            private=tuple(key for key in state if key not in shared),
        )


def _select(selectors: tuple[Selector, ...] | None, module: nn.Module, keys: Iterable[str]) -> set[str] | None:
    if selectors is None:
        return None
    selected: set[str] = set()
    for selector in selectors:
        names = [selector] if isinstance(selector, str) else _names_of_type(module, selector)
        found = {key for key in keys if any(_is_within(key, name) for name in names)}
        if not found:
            raise ValueError(f"{selector!r} selects no parameter or buffer")
        selected |= found
    return selected


def _names_of_type(module: nn.Module, wanted: type[nn.Module]) -> list[str]:
    return [name for name, child in module.named_modules() if isinstance(child, wanted)]


def _is_within(key: str, name: str) -> bool:
    return name == "" or key == name or key.startswith(name + ".")


def shared_tensors(module: nn.Module, partition: Partition) -> dict[str, torch.Tensor]:
    """Copies of the shared tensors of ``module``, detached, on the CPU, float32, in torch's default memory format."""
    state, wanted = module.state_dict(), torch.contiguous_format
    return {
        key: state[key].detach().to("cpu", torch.float32, copy=True, memory_format=wanted) for key in partition.shared
    }
