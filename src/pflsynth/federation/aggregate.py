"""The slice-weighted mean of updates, exact to the last bit whatever the order in which they arrive.

Values become 64-bit fixed-point numbers (24 fractional bits) that are multiplied by the site's slice count and
added as integers, so addition is associative, memory does not grow with the number of sites, and the result is
within 2**-25 of the real mean (before rounding to float32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pflsynth.errors import ModelError
from pflsynth.federation.server import learnt

FRACTION = 2.0**24
LARGEST_VALUE = 2.0**14
LARGEST_COUNT = 2**24


@dataclass(frozen=True)
class Update:
    """What a site sends after a round: shared tensors, the number of its training slices, and metrics.

    The tensors are as the agreement has them encoded (:mod:`pflsynth.federation.update_encoding`), until the
    coordinator decodes them.
    """

    site: str
    round: int
    tensors: Mapping[str, torch.Tensor]
    slices: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        """Size of the tensors in MB (10**6 bytes)."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values()) / 1e6


class UpdateRefused(ModelError):  # noqa: N818
    """An update that must not enter the mean; names site and tensor. The round goes on with the other sites."""


class Aggregation:
    """Accumulates the updates of one round: ``sum_k n_k * theta_k / sum_k n_k`` over the holders of each tensor."""

    def __init__(
        self,
        current: Mapping[str, torch.Tensor],
        holders: Mapping[str, frozenset[str]],
        farthest: float = math.inf,
    ):
        """Start a round.

        Args:
            current: shared tensors before the round; names and shapes that updates must have.
            holders: for each site, the names that it must send; follows from the agreement.
            farthest: largest :func:`distance` from ``current`` that is plausible.
        """
        self._current = current
        self._holders = holders
        self._farthest = farthest
        self._sums = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in current.items()}
        self._counts = dict.fromkeys(current, 0)
        self.accepted: dict[str, int] = {}
        self.distances: dict[str, float] = {}

    def add(self, update: Update) -> None:
        """Add one update, wholly or not at all.

        Raises:
            UpdateRefused: unknown site, second update of a site, wrong names or shapes, NaN, Inf, values of 2**14 or
                more, a slice count below 1 or beyond a total of 2**24, or an implausible distance.
        """
        self._check(update)
        moved = distance(update.tensors, self._current)
        if moved > self._farthest:
            raise UpdateRefused(
                f"update of site {update.site}, round {update.round}: is {moved:g} away from the shared parameters; "
                f"after the rounds before, {self._farthest:g} is the farthest that is plausible"
            )
        for name, tensor in update.tensors.items():
            fixed_point = torch.round(tensor.to("cpu", torch.float64) * FRACTION).to(torch.int64)
            self._sums[name] += fixed_point * update.slices
            self._counts[name] += update.slices
        self.accepted[update.site] = update.slices
        self.distances[update.site] = moved

    def result(self) -> dict[str, torch.Tensor]:
        """The means (float32); a tensor that no accepted site holds keeps its current value."""
        return {name: self._mean(name) if count else self._current[name] for name, count in self._counts.items()}

    def _mean(self, name: str) -> torch.Tensor:
        return (self._sums[name].to(torch.float64) / (self._counts[name] * FRACTION)).to(torch.float32)

    def _check(self, update: Update) -> None:
        where = f"update of site {update.site}, round {update.round}"
        if update.site not in self._holders:
            raise UpdateRefused(f"{where}: this site is not in the agreement")
        if update.site in self.accepted:
            raise UpdateRefused(f"{where}: this site's update was already accepted")
        if update.slices < 1 or sum(self.accepted.values()) + update.slices >= LARGEST_COUNT:
            raise UpdateRefused(f"{where}: {update.slices} slices; a total of 1 to {LARGEST_COUNT - 1} is possible")
        required = self._holders[update.site]
        missing, unknown = required - update.tensors.keys(), update.tensors.keys() - required
        if missing or unknown:
            raise UpdateRefused(f"{where}: missing tensors {sorted(missing)}, unknown tensors {sorted(unknown)}")
        for name, tensor in update.tensors.items():
            if tensor.shape != self._current[name].shape:
                wanted = tuple(self._current[name].shape)
                raise UpdateRefused(f"{where}, tensor {name}: shape {tuple(tensor.shape)}, wanted {wanted}")
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                raise UpdateRefused(f"{where}, tensor {name}: holds NaN, Inf or no floating-point numbers")
            if bool((tensor.abs() >= LARGEST_VALUE).any()):
                largest = float(tensor.abs().max())
                raise UpdateRefused(f"{where}, tensor {name}: value {largest:g} is not below {LARGEST_VALUE:g}")


def distance(tensors: Mapping[str, torch.Tensor], current: Mapping[str, torch.Tensor]) -> float:
    """Euclidean distance of an update's learnt parameters to the shared ones, to six digits.

    Running statistics of batch norm are left out: a site's first ones jump, with nothing wrong.
    """
    squares = ((tensors[name].double() - current[name].double()).square().sum() for name in learnt(tensors))
    return float(f"{math.sqrt(sum(map(float, squares))):.6g}")
