"""How long a round of a training will take on this machine, and how much memory it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pflsynth.config import FederationConfig
from pflsynth.data.slices import OPEN_SUBJECTS
from pflsynth.federation.methods import CENTRAL, method_of
from pflsynth.measuring import Measured, busiest, measure, thread_counts

GOOD_ENOUGH = 1.05
"""The fewest threads are suggested whose step takes at most this many times the fastest one's."""


@dataclass(frozen=True)
class TrainerEstimate:
    """One trainer's part of a round.

    Attributes:
        slices: training slices, each of which is seen once in a local epoch.
        steps: optimisation steps.
        seconds: of its part of the round.
        images_mb: prepared images that it maps into memory (2**20 bytes); the system may drop and read them again.
    """

    slices: int
    steps: int
    seconds: float
    images_mb: float


@dataclass(frozen=True)
class Estimate:
    """What a training will cost here, by trainer: the sites whose data was checked, or the one with all data."""

    measured: Measured
    trainers: Mapping[str, TrainerEstimate]

    @property
    def round_seconds(self) -> float:
        """Of a round in which the trainers take turns on this machine."""
        return math.fsum(own.seconds for own in self.trainers.values())

    @property
    def peak_memory_mb(self) -> float:
        """Peak resident memory of a training of these trainers, mapped images included (2**20 bytes)."""
        return self.measured.memory_mb + math.fsum(own.images_mb for own in self.trainers.values())

    @property
    def best_threads(self) -> int:
        """The fewest threads that are nearly as fast as the fastest."""
        fastest = min(self.measured.threads.values())
        return min(number for number, seconds in self.measured.threads.items() if seconds <= GOOD_ENOUGH * fastest)


def estimate(config: FederationConfig, slices: Mapping[str, Mapping[str, int]]) -> Estimate:
    """Measure a few training steps and extrapolate them to a round.

    Args:
        config: the federation.
        slices: of sites that train, the training subjects' numbers of slices.

    Raises:
        PflsynthError: as :func:`pflsynth.measuring.measure`.
    """
    measured = measure(config, busiest(config), thread_counts())
    central = method_of(config).central
    groups = {CENTRAL: tuple(slices)} if central else {site: (site,) for site in slices}
    return Estimate(measured, {name: _of(config, measured, slices, sites) for name, sites in groups.items()})


def _of(
    config: FederationConfig, measured: Measured, slices: Mapping[str, Mapping[str, int]], sites: tuple[str, ...]
) -> TrainerEstimate:
    training = config.training
    every = sum(sum(slices[site].values()) for site in sites)
    steps = training.local_epochs * -(-every // training.batch_size)
    # The last batch of an epoch is as full as it is; so is its time.
    full_batches = training.local_epochs * every / training.batch_size
    images = math.fsum(_images_mb(config, site, slices[site]) for site in sites)
    return TrainerEstimate(every, steps, measured.other_seconds + full_batches * measured.step_seconds, images)


def _images_mb(config: FederationConfig, site: str, slices: Mapping[str, int]) -> float:
    """The images of the subjects that stay mapped, of the contrasts that the site's tasks read."""
    contrasts = {contrast for task in config.sites[site].tasks for contrast in (task.source, task.target)}
    mapped = sum(sorted(slices.values(), reverse=True)[:OPEN_SUBJECTS])
    return mapped * len(contrasts) * config.image.size**2 * 4 / 2**20
