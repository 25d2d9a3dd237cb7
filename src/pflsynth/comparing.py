"""Compare methods under one agreement: what ``pflsynth compare`` does. Whatever is there already is not done again."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from pflsynth import training
from pflsynth.canonical import differences
from pflsynth.config import FederationConfig, SplitName
from pflsynth.data.slices import SliceStore
from pflsynth.devices import use_device
from pflsynth.errors import ModelError, UsageError
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.comparison_files import FORMAT, ComparisonRecord, Cost, base_agreement, read_record
from pflsynth.evaluation.evaluate import Score, evaluate_run, write_evaluation
from pflsynth.evaluation.feature_files import FeatureWeights, common_weights, read_weights
from pflsynth.evaluation.feature_metrics import FeatureFiles, open_networks
from pflsynth.evaluation.held_out import HeldOutRow, held_out_scores, summarize_held_out
from pflsynth.evaluation.tables import write_tables
from pflsynth.federation.methods import METHODS, PAPER, method_of
from pflsynth.federation.rounds import RoundObserver
from pflsynth.files import write_atomic, write_json
from pflsynth.report.html import write_report
from pflsynth.runs import RunDirectory

GROUPS: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "all": tuple(METHODS)}
"""Names that stand for several methods."""


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


def chosen_methods(text: str) -> tuple[str, ...]:
    """Read ``a,b,c``, in which ``paper`` and ``all`` stand for several methods, each taken once.

    Raises:
        UsageError: if nothing is named.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--methods names none; give for example: --methods pflsynth,fedavg,local, or paper, or all")
    return tuple(dict.fromkeys(name for word in words for name in GROUPS.get(word, (word,))))


def chosen_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``.

    Raises:
        UsageError: if it is no list of different whole numbers from 0.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise UsageError(f'--seeds "{text}" is no list of different whole numbers; give for example: --seeds 0,1,2')
    return tuple(map(int, words))


def plan(
    base: FederationConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    split: SplitName = "test",
    held_out: str | None = None,
    fit_rounds: int = 5,
    features: FeatureFiles | None = None,
) -> Plan:
    """Check, before any training starts, that every method is known and can train the tasks, and the feature networks.

    Args:
        base: the agreement; its method and seed are replaced.
        methods: names.
        seeds: each trains every method once.
        split: of the subjects to score.
        held_out: a site that is left out of the training and served afterwards.
        fit_rounds: rounds of its own training after which it is scored again.
        features: weights of LPIPS and FID; default: neither is computed.

    Raises:
        UsageError: an unknown method, one that cannot do these tasks, or an unknown site to hold out.
        ModelError: weights that are missing, have another SHA-256, or are of another network.
    """
    if held_out is not None:
        if held_out not in base.sites:
            raise UsageError(f"--held-out-site {held_out}: the sites are {', '.join(base.site_names)}")
        if len(base.sites) == 1:
            raise UsageError(f"--held-out-site {held_out}: it is the only site, so none is left to train")
        base = base.model_copy(update={"held_out": (held_out,), "quorum": None})
    planned = Plan(base, tuple(methods), tuple(seeds), split, held_out, fit_rounds, features or FeatureFiles())
    for method in methods:
        method_of(planned.config(method, planned.seeds[0]))
    open_networks(planned.features, base.image.size, use_device(base.device, base.threads))
    return planned


def compare(planned: Plan, prepared: Path, out: Path, observer: ComparisonObserver) -> Comparison:
    """Train and evaluate every method with every seed, as far as it is not done, then write tables and report.

    Args:
        planned: by :func:`plan`.
        prepared: folder with the prepared data of every site.
        out: folder of the comparison; one that was stopped is gone on with.
        observer: hears of the progress.

    Raises:
        ModelError: if ``out`` holds a comparison under another agreement, or damaged runs.
        DataError: if prepared data is missing, damaged or other.
    """
    record = ComparisonRecord(
        format=FORMAT,
        name=planned.base.name,
        agreement=base_agreement(planned.base),
        methods=planned.methods,
        seeds=planned.seeds,
        split=planned.split,
        held_out=planned.held_out,
        prepared=prepared.absolute(),
        weights=_weights(out, planned),
    )
    _check_same(out, record)
    out.mkdir(parents=True, exist_ok=True)
    _write(out, record)
    runs = [(method, seed) for seed in planned.seeds for method in planned.methods]
    seconds: dict[str, dict[int, float]] = {method: {} for method in planned.methods}
    for number, (method, seed) in enumerate(runs, 1):
        config, folder = planned.config(method, seed), run_folder(out, method, seed)
        _train(config, prepared, folder, observer.on_run(method, seed, number, len(runs), config.rounds))
        _evaluate(folder, planned.split, planned.features)
        if planned.held_out is not None:
            store = SliceStore(prepared / planned.held_out)
            held_out_scores(folder, store, planned.split, planned.fit_rounds)
        seconds[method][seed] = sum(line["seconds"] for line in RunDirectory(folder).records("timings.jsonl"))
    costs = {method: _cost(planned.config(method, planned.seeds[0]), prepared, seconds[method]) for method in seconds}
    notes = {method: note for method in planned.methods if (note := _note(planned.config(method, planned.seeds[0])))}
    _write(out, record.model_copy(update={"costs": costs, "notes": notes, "weights": _weights(out, planned)}))
    return report(out)


def report(out: Path) -> Comparison:
    """Write all scores, the tables and the report of a finished comparison anew.

    Raises:
        ModelError: if it is no comparison, unfinished or damaged.
    """
    comparison = open_comparison(out)
    _write_scores(comparison)
    write_tables(comparison)
    write_report(comparison, out / "report.html", prepared=comparison.prepared)
    return comparison


def _write_scores(comparison: Comparison) -> None:
    """Write ``scores.csv``: every score with its method and seed."""
    text = io.StringIO()
    columns = ["method", "seed", *(entry.name for entry in fields(Score))]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for entry in comparison.entries:
        writer.writerows({"method": entry.method, "seed": entry.seed, **asdict(score)} for score in entry.scores)
    write_atomic(comparison.folder / "scores.csv", text.getvalue().encode())


def run_folder(out: Path, method: str, seed: int) -> Path:
    """The run directory of one method and seed."""
    return out / "runs" / method / f"seed-{seed}"


def _check_same(out: Path, wanted: ComparisonRecord) -> None:
    """Refuse to mix comparisons under different agreements or budgets in one folder."""
    if not (out / "comparison.json").is_file():
        if out.exists() and any(path.name != "prepared" for path in out.iterdir()):
            raise UsageError(f"{out}: exists already and is no comparison; choose another --out")
        return
    found = read_record(out)
    differing = [
        f"{key} is {before!r} there, {now!r} now" for key, before, now in differences(found.agreement, wanted.agreement)
    ]
    if differing:
        raise ModelError(
            f"{out}: holds a comparison under another agreement ({'; '.join(differing)}); choose another --out"
        )


def _write(out: Path, record: ComparisonRecord) -> None:
    write_json(out / "comparison.json", record.model_dump(mode="json"))


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
    path = folder / "evaluation" / split / "scores.csv"
    if not path.exists() or not read_weights(path.parent).cover(features.weights):
        write_evaluation(path, evaluate_run(folder, split, files=features))


def _weights(out: Path, planned: Plan) -> FeatureWeights:
    """The weights that are asked for, and those of the evaluations that stay as they are: all of one kind."""
    wanted = planned.features.weights
    runs = [run_folder(out, method, seed) for method in planned.methods for seed in planned.seeds]
    evaluations = [run / "evaluation" / planned.split for run in runs]
    return common_weights([own for own in evaluations if read_weights(own).cover(wanted)], {out: wanted})


def held_out_rows(out: Path, planned: Plan, prepared: Path) -> list[HeldOutRow]:
    """How each method of a comparison serves the held-out site; none if there is no such site."""
    if planned.held_out is None:
        return []
    store = SliceStore(prepared / planned.held_out)
    scores = [
        score
        for method in planned.methods
        for seed in planned.seeds
        for score in held_out_scores(run_folder(out, method, seed), store, planned.split, planned.fit_rounds)
    ]
    return summarize_held_out(scores)


def _cost(config: FederationConfig, prepared: Path, seconds: Mapping[int, float]) -> Cost:
    method = method_of(config)
    stores = {site: SliceStore(prepared / site) for site in config.participants}
    sites = training.sites_of(config, stores, Path())
    return Cost(
        megabytes={site.name: method.sent_megabytes(config, site.name) for site in sites},
        steps={site.name: site.steps_per_round for site in sites},
        slices={site.name: site.slices for site in sites},
        seconds=dict(seconds),
    )


def _note(config: FederationConfig) -> str:
    """What a reader of the tables must know of a method."""
    method = method_of(config)
    notes = []
    if method.central:
        notes.append("trained on all sites' data at one place")
    if method.passes_on:
        site = config.participants[0]
        notes.append(
            f"sites receive {method.received_megabytes(config, site):.1f} MB a round, other sites' updates too"
        )
    if config.method == "pgan" and config.training.perceptual_sha256 is None:
        notes.append("without its perceptual loss: no weights were given")
    if config.method == "ditto":
        notes.append("two models are trained, with twice the arithmetic of a step")
    return "; ".join(notes)
