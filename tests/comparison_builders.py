"""A small, whole comparison folder without any training, with scores that can be worked out by hand.

Two sites of four subjects and two tasks each, methods two dB apart. With the defaults, the PSNR of a score is::

    30 - 2 * place of the method + 0.5 * seed - (0 north, 1 south) - 0.25 * place of the task + 0.5 * subject

where subjects count from 0, and copying the source has 20 in place of the 30 and neither method nor seed. All other
scores follow from the PSNR: see :data:`FORMULAS`. All these numbers are exact in binary.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pflsynth.config import FederationConfig, SplitName
from pflsynth.evaluation.evaluate import Score, write_scores
from pflsynth.files import read_json, write_json
from pflsynth.runs import RunDirectory, RunState

METHODS = ("pflsynth", "fedgan")
SEEDS = (0, 1)
SUBJECTS = 4
ROUNDS = 3
SLICES = {"north": 24, "south": 20}
MEGABYTES = {"fedgan": 4.0, "pflsynth": 2.5}

FORMULAS: Mapping[str, Callable[[float], float | None]] = {
    "psnr": lambda level: level,
    "psnr_mask": lambda level: level - 4,
    "psnr_field": lambda level: level + 1,
    "ssim": lambda level: 0.5 + level / 128,
    "ssim_mask": lambda level: 0.25 + level / 128,
    "ssim_field": lambda level: 0.625 + level / 128,
    "mae": lambda level: 0.25 - level / 256,
    "mae_mask": lambda level: 0.375 - level / 256,
    "nrmse": lambda level: 0.5 - level / 128,
    "nrmse_mask": lambda level: 0.75 - level / 128,
    "lpips": lambda level: None,
}
"""Every score of a subject as a function of its PSNR; LPIPS is not computed."""

Level = Callable[[str, int, str, str, int], float]
"""PSNR for (method, or "copy"; seed; site; task; number of the subject)."""


def comparison_config(**settings: Any) -> FederationConfig:
    """The agreement of the runs: that of ``tests/tiny.py``."""
    content: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "rounds": ROUNDS,
        "contrasts": ["T1w", "T2w", "FLAIR"],
        "image": {"size": 32},
        "model": {"width": 8, "residual_layers": 1},
        "training": {"batch_size": 4, "learning_rate": 1e-3, "shift": 2},
        "sites": {"north": {"tasks": ["T1w->T2w", "T1w->FLAIR"]}, "south": {"tasks": ["T1w->T2w", "T2w->T1w"]}},
        "threads": 1,
    }
    return FederationConfig.model_validate(content | settings)


def level_of(methods: Sequence[str], config: FederationConfig) -> Level:
    """The PSNR of the module's text."""

    def level(method: str, seed: int, site: str, task: str, subject: int) -> float:
        top = 20.0 if method == "copy" else 30.0 - 2 * methods.index(method) + 0.5 * seed
        place = list(map(str, config.sites[site].tasks)).index(task)
        return top - config.site_names.index(site) - 0.25 * place + 0.5 * subject

    return level


def make_score(
    level: float,
    *,
    site: str = "north",
    task: str = "T1w->T2w",
    subject: str = "sub-01",
    session: str = "",
    split: str = "test",
    model: str = "personalised",
    round: int = ROUNDS,
    slices: int = 6,
    formulas: Mapping[str, Callable[[float], float | None]] = FORMULAS,
) -> Score:
    """A score whose metrics follow from ``level``, with whatever columns ``Score`` has."""
    found = {entry.name for entry in fields(Score)}
    values: dict[str, Any] = {name: formula(level) for name, formula in formulas.items() if name in found}
    return Score(site, task, subject, session, split, model, round, slices, **values)


def make_scores(
    config: FederationConfig,
    method: str,
    seed: int,
    level: Level,
    *,
    subjects: int = SUBJECTS,
    split: SplitName = "test",
    formulas: Mapping[str, Callable[[float], float | None]] = FORMULAS,
) -> list[Score]:
    """All scores of one run: every participating site, subject and task, personalised and copied."""
    return [
        make_score(
            level("copy" if model == "copy" else method, seed, site, task, number),
            site=site,
            task=task,
            subject=f"sub-{number + 1:02d}",
            split=split,
            model=model,
            round=config.rounds,
            formulas=formulas,
        )
        for site in config.participants
        for number in range(subjects)
        for task in map(str, config.sites[site].tasks)
        for model in ("personalised", "copy")
    ]


def write_run(folder: Path, config: FederationConfig, scores: Sequence[Score], split: SplitName = "test") -> Path:
    """A finished run without models: its agreement, state, losses that fall with the rounds, and its scores."""
    trainers = config.participants
    run = RunDirectory.create(folder, config, folder / "prepared", dict.fromkeys(trainers, "0" * 64), trainers)
    for number in range(1, config.rounds + 1):
        losses = {
            site: {
                f"{name}/{task}": value / (number + place)
                for place, task in enumerate(map(str, config.sites[site].tasks))
                for name, value in (("l1", 0.25), ("adversarial", 1.0), ("discriminator", 0.5))
            }
            for site in trainers
        }
        record: dict[str, Any] = {"round": number, "losses": losses, "refused": {}}
        every = config.training.validate_every
        if every and number % every == 0:
            record["validation_psnr"] = dict.fromkeys(trainers, 20.0 + number)
        run.append("metrics.jsonl", record)
        run.append("timings.jsonl", {"round": number, "seconds": 2.0, "peak_memory_mb": 100.0})
    run.save_state(RunState(round=config.rounds, bases=dict.fromkeys(trainers, config.rounds)))
    table = scores_path(folder, split)
    table.parent.mkdir(parents=True)
    write_scores(table, scores)
    return folder


def base_agreement(config: FederationConfig) -> dict[str, Any]:
    """What all runs of a comparison have in common: the agreement without method, seed and name."""
    return {key: value for key, value in config.agreement().items() if key not in ("method", "seed", "name")}


def make_costs(methods: Sequence[str], seeds: Sequence[int], config: FederationConfig) -> dict[str, Any]:
    """What the methods cost: batches of 4, so 6 + 5 steps a round; megabytes of :data:`MEGABYTES`, or 1.0, a site.

    A site receives as much as it sends; with fedmri also the updates of all sites.
    """
    megabytes = {method: MEGABYTES.get(method, 1.0) for method in methods}
    passed_on = {method: len(config.participants) * (method == "fedmri") for method in methods}
    slices = {site: SLICES.get(site, 24) for site in config.participants}
    steps = {site: -(-count // config.training.batch_size) for site, count in slices.items()}
    return {
        method: {
            "megabytes": dict.fromkeys(config.participants, megabytes[method]),
            "received": dict.fromkeys(config.participants, (1 + passed_on[method]) * megabytes[method]),
            "steps": steps,
            "slices": slices,
            "seconds": {str(seed): 6.0 + seed for seed in seeds},
        }
        for method in methods
    }


def write_comparison(
    folder: Path,
    *,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = SEEDS,
    subjects: int = SUBJECTS,
    split: SplitName = "test",
    config: FederationConfig | None = None,
    level: Level | None = None,
    formulas: Mapping[str, Callable[[float], float | None]] = FORMULAS,
    costs: Mapping[str, Any] | None = None,
    prepared: Path | None = None,
) -> Path:
    """Write ``comparison.json`` and one run directory for each method and seed.

    Args:
        folder: made.
        methods: in the order of the comparison; names need not be entries of ``METHODS``.
        seeds: of the runs.
        subjects: of each site.
        split: that was evaluated.
        config: the agreement; method, seed and name are replaced in the runs.
        level: PSNR of a score; default: that of the module's text.
        formulas: other scores as functions of the PSNR.
        costs: of ``comparison.json``; default: those of :func:`make_costs`; ``{}`` leaves the key out.
        prepared: folder of prepared data; default: one that does not exist.
    """
    config = config or comparison_config()
    level = level or level_of(methods, config)
    for method in methods:
        for seed in seeds:
            name = f"{config.name}-{method}-{seed}"
            own = config.model_copy(update={"name": name, "method": method, "seed": seed})
            scores = make_scores(own, method, seed, level, subjects=subjects, split=split, formulas=formulas)
            write_run(run_path(folder, method, seed), own, scores, split)
    content: dict[str, Any] = {
        "format": 1,
        "name": config.name,
        "agreement": base_agreement(config),
        "methods": list(methods),
        "seeds": list(seeds),
        "split": split,
        "held_out": None,
        "prepared": str(prepared or folder / "prepared"),
    }
    costs = make_costs(methods, seeds, config) if costs is None else costs
    write_json(folder / "comparison.json", content | ({"costs": dict(costs)} if costs else {}))
    return folder


FIT_ROUNDS = 5
GAIN = {"pflsynth": 1.0, "fedgan": 4.0}


def write_held_out(
    folder: Path, *, methods: Sequence[str] = METHODS, seeds: Sequence[int] = SEEDS, subjects: int = SUBJECTS
) -> Path:
    """A comparison that was trained without south, and its scores there.

    The PSNR at south is that of the module's text, less 6 dB for a method before its fit; the fit adds :data:`GAIN`,
    or 0.5 dB.
    """
    config = comparison_config(held_out=["south"])
    write_comparison(folder, methods=methods, seeds=seeds, subjects=subjects, config=config)
    level = level_of(methods, config)
    for method in methods:
        for seed in seeds:
            scores = [
                {
                    "method": method,
                    "seed": seed,
                    "fit_rounds": fit,
                    "score": asdict(
                        make_score(
                            level("copy", seed, "south", task, number)
                            if model == "copy"
                            else level(method, seed, "south", task, number) - 6 + (GAIN.get(method, 0.5) if fit else 0),
                            site="south",
                            task=task,
                            subject=f"sub-{number + 1:02d}",
                            model=model,
                        )
                    ),
                }
                for fit in (0, FIT_ROUNDS)
                for number in range(subjects)
                for task in map(str, config.sites["south"].tasks)
                for model in ("personalised", "copy")
            ]
            write_json(held_out_scores_path(folder, method, seed), scores)
    change_comparison(folder, held_out="south", fit_rounds=FIT_ROUNDS)
    return folder


def held_out_scores_path(folder: Path, method: str, seed: int) -> Path:
    """Where a run of :func:`write_held_out` keeps its scores at south."""
    return run_path(folder, method, seed) / "evaluation" / "test" / f"held-out-{FIT_ROUNDS}.json"


def run_path(folder: Path, method: str, seed: int) -> Path:
    """Run directory of a method and seed in a comparison folder."""
    return folder / "runs" / method / f"seed-{seed}"


def scores_path(run: Path, split: str = "test") -> Path:
    """Where a run directory keeps the scores of a split."""
    return run / "evaluation" / split / "scores.csv"


def change_comparison(folder: Path, **keys: Any) -> None:
    """Replace keys of ``comparison.json``."""
    path = folder / "comparison.json"
    write_json(path, read_json(path) | keys)


def lines(text: str, **where: str) -> list[dict[str, str]]:
    """The lines of a CSV table in which all these columns have these values."""
    found = csv.DictReader(io.StringIO(text))
    return [line for line in found if all(line[key] == value for key, value in where.items())]
