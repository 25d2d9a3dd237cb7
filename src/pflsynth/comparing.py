"""Compare methods under one agreement: what ``pflsynth compare`` does. Whatever is there already is not done again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from pflsynth import training
from pflsynth.canonical import differences
from pflsynth.comparison_runs import ComparisonObserver, Job, Plan, do
from pflsynth.config import FederationConfig, SplitName
from pflsynth.data.slices import SliceStore
from pflsynth.devices import use_device
from pflsynth.errors import DataError, ModelError, UsageError
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.comparison_files import FORMAT, ComparisonRecord, base_agreement, read_record, run_folder
from pflsynth.evaluation.costs import Cost
from pflsynth.evaluation.evaluate import Score
from pflsynth.evaluation.feature_files import FeatureWeights, common_weights, read_weights
from pflsynth.evaluation.feature_metrics import FeatureFiles, open_networks
from pflsynth.evaluation.held_out import open_held_out
from pflsynth.evaluation.tables import write_tables
from pflsynth.federation.methods import METHODS, PAPER, method_of
from pflsynth.files import write_atomic, write_json
from pflsynth.report.html import write_report
from pflsynth.runs import RunDirectory
from pflsynth.workers import each

GROUPS: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "all": tuple(METHODS)}
"""Names that stand for several methods."""


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
        observer: hears of the progress; with several ``workers`` each run has a copy of it in a process of its own.

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
        fit_rounds=planned.fit_rounds if planned.held_out is not None else None,
        prepared=prepared.absolute(),
        weights=_weights(out, planned),
    )
    _check_same(out, record)
    out.mkdir(parents=True, exist_ok=True)
    _write(out, record)
    runs = [(method, seed) for seed in planned.seeds for method in planned.methods]
    jobs = {
        f"{method}, seed {seed}": Job(planned, method, seed, prepared, out, number, len(runs), observer)
        for number, (method, seed) in enumerate(runs, 1)
    }
    seconds: dict[str, dict[int, float]] = {method: {} for method in planned.methods}
    for name, taken in each(do, jobs, planned.base.workers):
        if isinstance(taken, DataError):
            raise taken
        seconds[jobs[name].method][jobs[name].seed] = taken
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
    """Write ``scores.csv``: every score with its method and seed; for a held-out site ``held_out_scores.csv`` too."""
    lines = [
        {"method": entry.method, "seed": entry.seed, **asdict(score)}
        for entry in comparison.entries
        for score in entry.scores
    ]
    _write_csv(comparison.folder / "scores.csv", ("method", "seed"), lines)
    found = open_held_out(comparison)
    lines = [
        {"method": entry.method, "seed": entry.seed, "fit_rounds": fit if entry.run else None, **asdict(score)}
        for fit, own in found.items()
        for entry in own.entries
        for score in entry.scores
        if entry.run or not fit  # copying is never fitted: it is written once
    ]
    if found:
        _write_csv(comparison.folder / "held_out_scores.csv", ("method", "seed", "fit_rounds"), lines)


def _write_csv(path: Path, about: Sequence[str], lines: Iterable[Mapping[str, object]]) -> None:
    """Write scores with what they are about."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*about, *(entry.name for entry in fields(Score))], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomic(path, text.getvalue().encode())


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


def _weights(out: Path, planned: Plan) -> FeatureWeights:
    """The weights that are asked for, and those of the evaluations that stay as they are: all of one kind."""
    wanted = planned.features.weights
    runs = [run_folder(out, method, seed) for method in planned.methods for seed in planned.seeds]
    evaluations = [RunDirectory(run).evaluation_folder(planned.split) for run in runs]
    return common_weights([own for own in evaluations if read_weights(own).cover(wanted)], {out: wanted})


def _cost(config: FederationConfig, prepared: Path, seconds: Mapping[int, float]) -> Cost:
    method = method_of(config)
    stores = {site: SliceStore(prepared / site) for site in config.participants}
    sites = training.sites_of(config, stores, Path())
    return Cost(
        megabytes={site.name: method.sent_megabytes(config, site.name) for site in sites},
        received={site.name: method.received_megabytes(config, site.name) for site in sites},
        shared={site.name: method.shared_megabytes(config, site.name) for site in sites},
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
