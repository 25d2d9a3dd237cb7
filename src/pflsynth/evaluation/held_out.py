"""Scores of a federation at a site that did not take part in it: as it is, and after a local fit.

A run is scored once, into a file in its folder. Read back, the scores of all runs are two comparisons at that site
alone, before and after the fit, so that all statistics are those of :mod:`pflsynth.evaluation.comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pflsynth.config import SplitName
from pflsynth.data.slices import SliceStore
from pflsynth.errors import ModelError
from pflsynth.evaluation.comparison import Comparison, Row, against
from pflsynth.evaluation.comparison_files import Entry, check_scores, with_floor
from pflsynth.evaluation.evaluate import COPY, Score, evaluate_site
from pflsynth.evaluation.statistics import PairedTest
from pflsynth.evaluation.table_facts import MAIN_METRICS, Rows, main_tests, remarks, remarks_on_tests
from pflsynth.federation.methods import METHODS
from pflsynth.federation.newcomer import serve_newcomer
from pflsynth.files import read_json, write_json
from pflsynth.runs import RunDirectory

_AGAIN = "remove it, and give the compare command again"


@dataclass(frozen=True)
class HeldOutScore:
    """A score at the held-out site, with its method, seed and the rounds of local fit."""

    method: str
    seed: int
    fit_rounds: int
    score: Score


@dataclass(frozen=True)
class HeldOutRow(Row):
    """A method's metric over the people of the held-out site, after some rounds of local fit.

    ``test`` is that of the reference, after as many rounds, against it; ``None`` for the reference. ``best`` says
    whether its printed mean is the best after as many rounds. Copying the source is never fitted.
    """

    fit_rounds: int
    test: PairedTest | None
    best: bool


def held_out_scores(run_folder: Path, store: SliceStore, split: SplitName, fit_rounds: int) -> list[HeldOutScore]:
    """Score how a run serves the held-out site; what was scored before is read from the run's folder.

    Args:
        run_folder: of a finished run.
        store: prepared slices of the held-out site.
        split: of its subjects.
        fit_rounds: rounds of its own training after which it is scored again.

    Raises:
        ModelError: if the run is unfinished or damaged, or its scores are.
        DataError: if the site's data does not fit.
    """
    path = held_out_path(run_folder, split, fit_rounds)
    if path.is_file():
        return _read(path)
    run, config = RunDirectory.open(run_folder)
    models = serve_newcomer(run, config, store.manifest.site, store, fit_rounds)
    scores = [
        HeldOutScore(config.method, config.seed, rounds, score)
        for rounds, model in models.items()
        for score in evaluate_site(model, store, split)
    ]
    write_json(path, [asdict(score) for score in scores])
    return scores


def held_out_path(run_folder: Path, split: SplitName, fit_rounds: int) -> Path:
    """Where a run keeps its scores at the held-out site."""
    return RunDirectory(run_folder).evaluation_folder(split) / f"held-out-{fit_rounds}.json"


def open_held_out(comparison: Comparison) -> dict[int, Comparison]:
    """The comparison at the held-out site alone, by the rounds of local fit: 0 and ``comparison.fit_rounds``.

    Returns:
        Comparisons with the scores of that site; empty if no site was held out, or an earlier version did not record
        the rounds of its fit.

    Raises:
        ModelError: if the scores of a run are missing or damaged, or not of the same data as those of the others.
    """
    if comparison.held_out is None or comparison.fit_rounds is None:
        return {}
    fits = (0, comparison.fit_rounds)
    runs = [
        {fit: _entry_at(comparison, entry, entry.run, fit) for fit in fits}
        for entry in comparison.entries
        if entry.run is not None
    ]
    return {fit: replace(comparison, entries=with_floor([own[fit] for own in runs])) for fit in fits}


def held_out_rows(found: Mapping[int, Comparison]) -> list[HeldOutRow]:
    """Every method and ``copy`` for the main metrics, after each number of rounds of local fit.

    Tests are the reference against each other method and ``copy`` after as many rounds, with Holm's correction over
    those of a metric.

    Args:
        found: by :func:`open_held_out`.
    """
    rows = []
    for metric in MAIN_METRICS:
        for fit, own in found.items():
            scope, described = (own.held_out, None), Rows(own, (metric,), "site")
            tests, best = dict(against(own, metric, own.reference)), described.best(metric, scope)
            for method in (*own.methods, COPY):
                row = described.get(metric, scope, method)
                assert row is not None  # main metrics are computed for every score
                rows.append(HeldOutRow(**vars(row), fit_rounds=fit, test=tests.get(method), best=method in best))
    return rows


def how_served(comparison: Comparison) -> list[str]:
    """What stands in at the held-out site for what methods keep private (:mod:`pflsynth.federation.newcomer`)."""
    known = {name: METHODS[name] for name in comparison.methods if name in METHODS}
    private = [f"{name} ({method.private})" for name, method in known.items() if not method.central]
    central = [name for name, method in known.items() if method.central]
    sentences = ["Batch norm is re-estimated on the site's training slices before both scores."]
    if private:
        sentences.append(
            "What a method keeps private starts as the seed makes it, for the site never had any: "
            f"{'; '.join(private)}."
        )
    if central:
        sentences.append(f"Centralised methods give their whole generator: {', '.join(central)}.")
    return sentences


def held_out_remarks(found: Mapping[int, Comparison]) -> list[str]:
    """What readers of a table of :func:`held_out_rows` must know; what is not true after each fit names its rounds."""
    common, *_ = found.values()
    told = {fit: remarks_on_tests(own, main_tests(own)) for fit, own in found.items()}
    everywhere = set.intersection(*map(set, told.values()))
    first = [sentence for sentence in told[0] if sentence in everywhere]
    others = [
        f"With {fit_text(fit)}: {sentence}"
        for fit, own in told.items()
        for sentence in own
        if sentence not in everywhere
    ]
    return [*how_served(common), *remarks(common, Rows(common, (), "all"), ()), *first, *others]


def fit_text(rounds: int) -> str:
    """A number of rounds of local fit in words."""
    return "no local fit" if rounds == 0 else f"{rounds} {'round' if rounds == 1 else 'rounds'} of local fit"


def _entry_at(comparison: Comparison, entry: Entry, run: Path, fit: int) -> Entry:
    """A run's entry with all its scores at the held-out site after some rounds of local fit, those of copying too."""
    assert comparison.fit_rounds is not None  # checked by open_held_out
    assert entry.config is not None  # it has a run
    path = held_out_path(run, comparison.split, comparison.fit_rounds)
    if not path.is_file():
        raise ModelError(f"{path}: is missing; restore it, or give the compare command again, which makes it")
    scores = tuple(
        own.score for own in _read(path) if (own.method, own.seed, own.fit_rounds) == (entry.method, entry.seed, fit)
    )
    if not scores or any(score.site != comparison.held_out for score in scores):
        raise ModelError(
            f"{path}: holds no scores, or others than those of {entry.method}, seed {entry.seed}, at "
            f"{comparison.held_out} with {fit_text(fit)}; {_AGAIN}"
        )
    check_scores(path, scores, entry.config, comparison.split, entry.round, _AGAIN)
    return replace(entry, scores=scores)


def _read(path: Path) -> list[HeldOutScore]:
    try:
        return TypeAdapter(list[HeldOutScore]).validate_python(read_json(path))
    except ValidationError:
        raise ModelError(f"{path}: is damaged; {_AGAIN}") from None
