"""The in-process engine: the rounds of a federation, one site after another, on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from pflsynth.config import FederationConfig
from pflsynth.data.slices import SliceStore
from pflsynth.errors import DataError
from pflsynth.federation.aggregate import UpdateRefused
from pflsynth.federation.coordinator import Coordinator, Round
from pflsynth.federation.personalised import save_personalised
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory, RunState

Validate = Callable[[str, SliceStore, nn.Module], float | None]


class RoundObserver(Protocol):
    """Hears of a training's progress; the command line draws bars from it."""

    def on_site(self, round_number: int, site: str, steps: int) -> None:
        """A site begins its round of ``steps`` steps."""

    def on_step(self, done: int, steps: int) -> None:
        """The site has done ``done`` of ``steps`` steps."""

    def on_round(self, record: Mapping[str, object]) -> None:
        """A round is whole; ``record`` is its line of ``metrics.jsonl``."""


class Federation:
    """A training: its agreement, its sites and its run directory."""

    def __init__(self, config: FederationConfig, sites: Sequence[Site], run: RunDirectory):
        """Build the common initialisation of the shared parameters from the seed.

        Args:
            config: the agreement.
            sites: those that train, or the one of a centralised method.
            run: created before.
        """
        self.config, self.sites, self.run = config, sites, run
        self._coordinator = Coordinator(config, run)

    def train(self, observer: RoundObserver, validate: Validate | None = None) -> RunState:
        """Train all rounds that are not yet whole, then save every site's personalised model.

        Args:
            observer: hears of the progress.
            validate: score of a personalised model on its site's validation subjects (higher is better, ``None``
                without such subjects); called every ``validate_every`` rounds.

        Raises:
            ModelError: if fewer sites than the quorum sent a usable update; the run stays at the round before.
            DataError: if a site's prepared data is damaged; the other sites' work is done and saved.
        """
        coordinator = self._coordinator
        with self.run.lock():
            coordinator.resume()
            self._prune()
            while coordinator.state.round < self.config.rounds:
                record = self._round(coordinator.begin(), observer, validate)
                self._prune()
                observer.on_round(record)
            self._save_personalised()
        return coordinator.state

    def _round(self, current: Round, observer: RoundObserver, validate: Validate | None) -> dict[str, object]:
        for site in self.sites:
            observer.on_site(current.number, site.name, site.steps_per_round)
            given = current.assignment(site.name)
            try:
                update = site.train_round(given.shared, given.round, given.base, observer.on_step, given.previous)
                current.accept(update)
            except (UpdateRefused, DataError) as failure:
                current.refuse(site.name, str(failure))
        shared = current.aggregate()
        every = self.config.training.validate_every
        if validate is None or not every or current.number % every:
            return current.close()
        scores: dict[str, float | None] = {}
        for site in self.sites:
            for member, store in site.stores.items():
                try:
                    scores[member] = validate(member, store, self._personalised(site, member, shared, current.bases))
                except DataError as failure:
                    current.refuse(member, str(failure))
        return current.close(scores)

    def _save_personalised(self) -> None:
        """Save the personalised models of the result's round, with re-estimated batch-norm statistics."""
        round_number, bases, shared = self._coordinator.result()
        failures = []
        for site in self.sites:
            for member, store in site.stores.items():
                path = self.run.personalised_path(member, round_number)
                if path.exists():
                    continue
                try:
                    generator = self._personalised(site, member, shared, bases)
                except DataError as failure:
                    failures.append(str(failure))
                else:
                    provenance = self._coordinator.provenance(round_number, member)
                    save_personalised(path, generator, provenance, store.manifest.intensity)
        if failures:
            raise DataError("\n".join(failures))

    def _personalised(
        self, site: Site, member: str, shared: Mapping[str, torch.Tensor], bases: Mapping[str, int]
    ) -> nn.Module:
        return site.personalised(self._coordinator.held_by(site.name, shared), bases[site.name], member)

    def _prune(self) -> None:
        """Delete the private states that no kept round needs."""
        state, keep = self._coordinator.state, self._coordinator.rounds_kept()
        for site in self.sites:
            site.prune(keep | {state.selected_bases.get(site.name, 0)}, state.bases[site.name])
