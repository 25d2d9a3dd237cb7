"""The in-process engine: the rounds of a federation, one site after another, on one machine."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from pflsynth.config import FederationConfig
from pflsynth.errors import DataError, ModelError
from pflsynth.federation.aggregate import Aggregation, UpdateRefused
from pflsynth.federation.checkpoint import Provenance, load_shared, save_shared
from pflsynth.federation.personalised import save_personalised
from pflsynth.federation.site import Site, initial_shared
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.runs import RunDirectory, RunState

Validate = Callable[[Site, PersonalizedGenerator], float | None]


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
            sites: all its sites, sorted by name.
            run: created before.
        """
        self.config, self.sites, self.run = config, sites, run
        initial = {site.name: initial_shared(config, site.name) for site in sites}
        self._initial = {name: tensor for tensors in initial.values() for name, tensor in tensors.items()}
        self._holders = {site: frozenset(tensors) for site, tensors in initial.items()}

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
        with self.run.lock():
            state = self.run.state()
            self.run.remove_half_written()
            self._prune(state)
            for name in ("metrics.jsonl", "timings.jsonl"):
                self.run.drop_records_after(name, state.round)
            shared = self._initial
            if state.round > 0:
                shared = load_shared(self.run.shared_path(state.round), self._provenance(state.round))
            for round_number in range(state.round + 1, self.config.rounds + 1):
                shared, state = self._round(shared, state, round_number, observer, validate)
            self._save_personalised(state)
        return state

    def _round(
        self,
        shared: dict[str, torch.Tensor],
        state: RunState,
        round_number: int,
        observer: RoundObserver,
        validate: Validate | None,
    ) -> tuple[dict[str, torch.Tensor], RunState]:
        started = time.perf_counter()
        aggregation = Aggregation(shared, self._holders)
        bases = dict(state.bases)
        refused: dict[str, str] = {}
        losses: dict[str, dict[str, float]] = {}
        for site in self.sites:
            observer.on_site(round_number, site.name, site.steps_per_round)
            held = {name: shared[name] for name in self._holders[site.name]}
            try:
                update = site.train_round(held, round_number, bases[site.name], observer.on_step)
                aggregation.add(update)
            except (UpdateRefused, DataError) as failure:
                refused[site.name] = str(failure)
            else:
                bases[site.name] = round_number
                losses[site.name] = dict(update.metrics)
        self._check_quorum(aggregation.accepted, refused)
        shared = aggregation.result()
        save_shared(self.run.shared_path(round_number), shared, self._provenance(round_number))
        state = replace(state, round=round_number, bases=bases)
        record: dict[str, object] = {"round": round_number, "losses": losses, "refused": refused}
        every = self.config.training.validate_every
        if validate is not None and every and round_number % every == 0:
            scores: dict[str, float | None] = {}
            for site in self.sites:
                try:
                    scores[site.name] = validate(site, self._personalised(site, shared, bases))
                except DataError as failure:
                    refused[site.name] = str(failure)
            record["validation_psnr"] = scores
            state = _selected(state, [score for score in scores.values() if score is not None])
        self.run.append("metrics.jsonl", record)
        self.run.append("timings.jsonl", {"round": round_number, **_cost(started)})
        self.run.save_state(state)
        self._prune(state)
        observer.on_round(record)
        return shared, state

    def _check_quorum(self, accepted: Mapping[str, int], refused: Mapping[str, str]) -> None:
        if len(accepted) < self.config.required_updates:
            reasons = "; ".join(refused.values())
            raise ModelError(
                f"only {len(accepted)} of {len(self.config.sites)} sites sent a usable update, quorum is "
                f"{self.config.required_updates}: {reasons}"
            )

    def _save_personalised(self, state: RunState) -> None:
        """Save the personalised models of the result's round, with re-estimated batch-norm statistics."""
        round_number, bases = state.result(self.config)
        shared = load_shared(self.run.shared_path(round_number), self._provenance(round_number))
        failures = []
        for site in self.sites:
            path = self.run.personalised_path(site.name, round_number)
            if path.exists():
                continue
            try:
                generator = self._personalised(site, shared, bases)
            except DataError as failure:
                failures.append(str(failure))
            else:
                provenance = self._provenance(round_number, site.name)
                save_personalised(path, generator, provenance, site.store.manifest.intensity)
        if failures:
            raise DataError("\n".join(failures))

    def _personalised(
        self, site: Site, shared: Mapping[str, torch.Tensor], bases: Mapping[str, int]
    ) -> PersonalizedGenerator:
        held = {name: shared[name] for name in self._holders[site.name]}
        return site.personalised(held, bases[site.name])

    def _prune(self, state: RunState) -> None:
        """Keep the last two rounds, the selected one, and every Nth."""
        every = self.config.training.keep_every
        keep = {state.round, state.round - 1, state.selected}
        keep |= {number for number in range(1, state.round + 1) if every and number % every == 0}
        for path in self.run.shared_folder.glob("round-*.safetensors"):
            if int(path.stem.removeprefix("round-")) not in keep:
                path.unlink()
        for site in self.sites:
            site.prune(keep | {state.selected_bases.get(site.name, 0)}, state.bases[site.name])

    def _provenance(self, round_number: int, site: str | None = None) -> Provenance:
        return Provenance(self.config.agreement_sha256(), round_number, site)


def _selected(state: RunState, scores: Sequence[float]) -> RunState:
    """Select this round if the mean score over sites is the best so far (the first wins a tie)."""
    score = sum(scores) / len(scores) if scores else math.nan
    if not math.isfinite(score):
        return state
    if state.selected_score is not None and score <= state.selected_score:
        return state
    return replace(state, selected=state.round, selected_score=score, selected_bases=dict(state.bases))


def _cost(started: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.perf_counter() - started, 3), "peak_memory_mb": round(peak, 1)}
