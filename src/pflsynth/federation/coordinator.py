"""The server's half of a training: shared parameters, what updates are accepted, the server's rule, and its state.

Both engines use it: the one in this process (:mod:`pflsynth.federation.rounds`), and the one across machines
(:mod:`pflsynth.deployment`). It sees shared parameters, slice counts and metrics; never data or private parameters.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pflsynth.config import FederationConfig
from pflsynth.devices import peak_memory_mb
from pflsynth.errors import ModelError
from pflsynth.federation.aggregate import Aggregation, Update, UpdateRefused
from pflsynth.federation.checkpoint import Provenance, load_shared, save_shared
from pflsynth.federation.methods import method_of
from pflsynth.federation.update_encoding import decode
from pflsynth.runs import RunDirectory, RunState

SERVER = "server/"
"""Begins the names of the server rule's moments among the shared tensors of a round's file."""

PREVIOUS = "previous/"
"""Begins the names of the updates that the server passes on, among its moments."""

FARTHEST = 10.0
"""An update is implausible beyond this many times the usual distance; see :meth:`Coordinator.farthest`."""

USUAL_ROUNDS = 5
"""How many rounds before tell what is usual."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Assignment:
    """What a site is given for a round.

    Attributes:
        round: from 1.
        base: last round whose update of this site was accepted; 0 for none.
        shared: shared parameters that the site holds, after the round before.
        previous: every site's last update, if the method passes them on.
    """

    round: int
    base: int
    shared: Tensors
    previous: Mapping[str, Tensors]


class Coordinator:
    """Shared parameters of a training, from the common initialisation to the last round."""

    def __init__(self, config: FederationConfig, run: RunDirectory):
        """Build the common initialisation of the shared parameters from the seed.

        Args:
            config: the agreement.
            run: created before; :meth:`resume` reads how far it is.
        """
        self.config, self.run = config, run
        self.method = method_of(config)
        self._initial: Tensors = {}
        self.holders: dict[str, frozenset[str]] = {}
        for trainer in self.method.trainers(config):  # one at a time: they can be many, and are large
            held = self.method.initial_shared(config, trainer)
            self.holders[trainer] = frozenset(held)
            self._initial |= held
        self.state = RunState()
        self.shared: Tensors = {}
        self.moments: Tensors = {}
        self._moved: list[float] = []

    @property
    def trainers(self) -> tuple[str, ...]:
        """Who trains, sorted by name."""
        return tuple(sorted(self.holders))

    @property
    def quorum(self) -> int:
        """Least number of accepted updates of a round."""
        return min(self.config.required_updates, len(self.holders))

    def resume(self) -> None:
        """Go to the last whole round; what a stop left half-written is removed. The run must be locked.

        Raises:
            ModelError: if the run's state or shared parameters are damaged.
        """
        self.state = self.run.state()
        self.run.remove_half_written()
        self._prune()
        for name in ("metrics.jsonl", "timings.jsonl"):
            self.run.drop_records_after(name, self.state.round)
        self.shared, self.moments = self._after(self.state.round)
        records = self.run.records("metrics.jsonl")  # those of earlier versions tell no distances
        self._moved = [max(record["distances"].values()) for record in records if record.get("distances")]

    def farthest(self) -> float:
        """Largest plausible distance of an update from the shared parameters of the next round.

        ``FARTHEST`` times the median, over the last ``USUAL_ROUNDS`` rounds, of the largest distance accepted in a
        round; no limit in the first round. It depends on whole rounds alone, never on the order of arrival, and one
        accepted update cannot move it.
        """
        return FARTHEST * statistics.median(self._moved[-USUAL_ROUNDS:]) if self._moved else math.inf

    def begin(self) -> Round:
        """Begin the round after the last whole one."""
        return Round(self)

    def result(self) -> tuple[int, Mapping[str, int], Tensors]:
        """The round that is the result, each site's base in it, and the shared parameters after it."""
        number, bases = self.state.result(self.config)
        return number, bases, self._after(number)[0]

    def held_by(self, trainer: str, shared: Mapping[str, torch.Tensor]) -> Tensors:
        """Those of the shared parameters that a site holds."""
        return {name: shared[name] for name in shared if name in self.holders[trainer]}

    def provenance(self, round_number: int, site: str | None = None) -> Provenance:
        """What files of this training carry."""
        return Provenance(self.config.agreement_sha256(), round_number, site)

    def rounds_kept(self) -> set[int]:
        """The last two rounds, the selected one, and every Nth."""
        every, state = self.config.training.keep_every, self.state
        kept = {state.round, state.round - 1, state.selected}
        return kept | {number for number in range(1, state.round + 1) if every and number % every == 0}

    def _after(self, round_number: int) -> tuple[Tensors, Tensors]:
        """The shared tensors after a round, and the moments of the server's rule."""
        if round_number == 0:
            return self._initial, {}
        tensors = load_shared(self.run.shared_path(round_number), self.provenance(round_number))
        moments = {key: tensors.pop(key) for key in list(tensors) if key.startswith(SERVER)}
        return tensors, {key.removeprefix(SERVER): value for key, value in moments.items()}

    def _prune(self) -> None:
        keep = self.rounds_kept()
        for path in self.run.shared_folder.glob("round-*.safetensors"):
            if int(path.stem.removeprefix("round-")) not in keep:
                path.unlink()


class Round:
    """One round: assignments go out, updates come in, :meth:`aggregate`, then :meth:`close`."""

    def __init__(self, coordinator: Coordinator):
        self._coordinator = coordinator
        self._started = time.perf_counter()
        self.number = coordinator.state.round + 1
        self._aggregation = Aggregation(coordinator.shared, coordinator.holders, coordinator.farthest())
        self._previous = _by_site(coordinator.moments)
        self._passed_on: Tensors = {}
        self.bases = dict(coordinator.state.bases)
        self.losses: dict[str, dict[str, float]] = {}
        self.refused: dict[str, str] = {}
        self.shared: Tensors = {}
        self._moments: Tensors = {}

    @property
    def accepted(self) -> frozenset[str]:
        """Sites whose update is in."""
        return frozenset(self._aggregation.accepted)

    def assignment(self, site: str) -> Assignment:
        """What a site is given."""
        shared = self._coordinator.held_by(site, self._coordinator.shared)
        return Assignment(self.number, self._coordinator.state.bases[site], shared, self._previous)

    def accept(self, update: Update) -> None:
        """Decode and add an update.

        Raises:
            UpdateRefused: naming site and reason; :meth:`refuse` notes it, and the round goes on.
        """
        update = self._decoded(update)
        self._aggregation.add(update)
        self.bases[update.site] = self.number
        self.losses[update.site] = dict(update.metrics)
        self.refused.pop(update.site, None)
        if self._coordinator.method.passes_on:
            self._passed_on |= {f"{PREVIOUS}{update.site}/{name}": own for name, own in update.tensors.items()}

    def _decoded(self, update: Update) -> Update:
        """The update with its tensors as float32."""
        received = self.assignment(update.site).shared
        try:
            tensors = decode(self._coordinator.config.updates.encoding, update.tensors, received)
        except ValueError as failure:
            raise UpdateRefused(f"update of site {update.site}, round {update.round}: {failure}") from None
        return replace(update, tensors=tensors)

    def refuse(self, site: str, reason: str) -> None:
        """Note why a site is not in this round, or could not be scored."""
        self.refused[site] = reason

    def aggregate(self) -> Tensors:
        """The shared parameters after this round.

        Raises:
            ModelError: if fewer sites than the quorum sent a usable update; the run stays at the round before.
        """
        coordinator, accepted = self._coordinator, self._aggregation.accepted
        if len(accepted) < coordinator.quorum:
            raise ModelError(
                f"only {len(accepted)} of {len(coordinator.holders)} sites sent a usable update, quorum is "
                f"{coordinator.quorum}: {'; '.join(self.refused.values())}"
            )
        mean = self._aggregation.result()
        self.shared, self._moments = coordinator.method.server(coordinator.shared, mean, coordinator.moments)
        self._moments |= self._passed_on
        return self.shared

    def close(
        self, scores: Mapping[str, float | None] | None = None, costs: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Save the round: from now on the run resumes after it.

        Args:
            scores: validation score of each site's personalised model (higher is better, ``None`` without validation
                subjects), in rounds that are validated.
            costs: what else the round's line of ``timings.jsonl`` tells.

        Returns:
            The round's line of ``metrics.jsonl``.
        """
        coordinator, run = self._coordinator, self._coordinator.run
        moments = {SERVER + key: value for key, value in self._moments.items()}
        save_shared(run.shared_path(self.number), self.shared | moments, coordinator.provenance(self.number))
        state = replace(coordinator.state, round=self.number, bases=self.bases)
        distances = self._aggregation.distances
        record: dict[str, object] = {
            "round": self.number,
            "losses": self.losses,
            "refused": self.refused,
            "distances": distances,
        }
        if scores is not None:
            record["validation_psnr"] = dict(scores)
            state = _selected(state, [scores[site] for site in sorted(scores)])
        run.append("metrics.jsonl", record)
        run.append("timings.jsonl", {"round": self.number, **_cost(self._started), **(costs or {})})
        run.save_state(state)
        coordinator._moved.append(max(distances.values()))
        coordinator.state, coordinator.shared, coordinator.moments = state, self.shared, self._moments
        coordinator._prune()
        return record


def _by_site(moments: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """The last updates that the server passes on, by site and name, sorted: sums over them depend on their order."""
    updates: dict[str, Tensors] = {}
    for key in sorted(moments):
        if key.startswith(PREVIOUS):
            site, _, name = key.removeprefix(PREVIOUS).partition("/")
            updates.setdefault(site, {})[name] = moments[key]
    return updates


def _selected(state: RunState, scores: Sequence[float | None]) -> RunState:
    """Select this round if the mean score over sites is the best so far (the first wins a tie)."""
    known = [score for score in scores if score is not None]
    score = sum(known) / len(known) if known else math.nan
    if not math.isfinite(score):
        return state
    if state.selected_score is not None and score <= state.selected_score:
        return state
    return replace(state, selected=state.round, selected_score=score, selected_bases=dict(state.bases))


def _cost(started: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - started, 3), "peak_memory_mb": round(peak_memory_mb(), 1)}
