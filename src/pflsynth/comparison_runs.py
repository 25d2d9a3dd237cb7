"""The runs of a comparison: what each is, and to train and evaluate one as far as that is not done."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pflsynth import training
from pflsynth.config import FederationConfig, SplitName
from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.comparison_files import run_folder
from pflsynth.evaluation.evaluate import evaluate_run, write_evaluation
from pflsynth.evaluation.feature_files import read_weights
from pflsynth.evaluation.feature_metrics import FeatureFiles
from pflsynth.evaluation.held_out import held_out_scores
from pflsynth.federation.rounds import RoundObserver
from pflsynth.runs import RunDirectory


class ComparisonObserver(Protocol):
    """Hears which run of how many begins; gives the observer of its rounds."""

    def on_run(self, method: str, seed: int, number: int, runs: int, rounds: int) -> RoundObserver:
        """A run begins, goes on, or is there already."""


@dataclass(frozen=True)
class Plan:
    """What is to be compared: one configuration for every run."""

    base: FederationConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    split: SplitName
    held_out: str | None
    fit_rounds: int
    features: FeatureFiles

    def config(self, method: str, seed: int) -> FederationConfig:
        """The configuration of one run."""
        name = f"{self.base.name}-{method}-{seed}"
        return self.base.model_copy(update={"method": method, "seed": seed, "name": name})


@dataclass(frozen=True)
class Job:
    """One run of a comparison: the ``number``-th of ``runs``."""

    planned: Plan
    method: str
    seed: int
    prepared: Path
    out: Path
    number: int
    runs: int
    observer: ComparisonObserver


def do(job: Job) -> float:
    """Train and evaluate one run, as far as it is not done; returns the seconds of its rounds.

    Raises:
        DataError: if prepared data is missing, damaged or other.
        ModelError: if the run is damaged or of another agreement, or too few sites sent a usable update.
    """
    planned, folder = job.planned, run_folder(job.out, job.method, job.seed)
    config = planned.config(job.method, job.seed)
    _train(config, job.prepared, folder, job.observer.on_run(job.method, job.seed, job.number, job.runs, config.rounds))
    _evaluate(folder, planned.split, planned.features)
    if planned.held_out is not None:
        held_out_scores(folder, SliceStore(job.prepared / planned.held_out), planned.split, planned.fit_rounds)
    return math.fsum(line["seconds"] for line in RunDirectory(folder).records("timings.jsonl"))


def _train(config: FederationConfig, prepared: Path, folder: Path, observer: RoundObserver) -> None:
    if folder.exists() and not (folder / "state.json").is_file():
        shutil.rmtree(folder)  # a kill while the run was made: nothing is in it yet
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        training.train(config, prepared, folder, observer)
        return
    _, agreed = RunDirectory.open(folder)
    training.check_same_agreement(folder, agreed, config)
    training.resume(folder, observer, prepared)


def _evaluate(folder: Path, split: SplitName, features: FeatureFiles) -> None:
    """Evaluate a run, unless that was done with all that is asked for."""
    path = RunDirectory(folder).evaluation_folder(split) / "scores.csv"
    if not path.exists() or not read_weights(path.parent).cover(features.weights):
        write_evaluation(path, evaluate_run(folder, split, files=features))
