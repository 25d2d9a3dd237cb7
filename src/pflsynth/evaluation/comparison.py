"""A comparison of methods that were trained under one agreement: read back, checked, and counted over people.

``pflsynth compare`` leaves a folder with ``comparison.json`` and a run directory for each method and seed::

    comparison.json    runs/<method>/seed-<n>/evaluation/<split>/scores.csv

A person's value is the mean over its sessions, the seeds and its tasks; all statistics are over people. Copying the
source for the target is the floor: it is method ``copy``, knows neither seed nor round, and is taken once.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pflsynth.config import FederationConfig, SplitName
from pflsynth.errors import UsageError
from pflsynth.evaluation.comparison_files import METRIC_NAMES, Entry, open_entries, read_record, read_scores
from pflsynth.evaluation.costs import Budget, Cost
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.statistics import Description, PairedTest, describe, paired_test, with_holm

__all__ = [
    "METRIC_NAMES",
    "NOT_COMPUTED",
    "REFERENCE",
    "Budget",
    "By",
    "Comparison",
    "Cost",
    "Entry",
    "Row",
    "against",
    "budget",
    "open_comparison",
    "person_values",
    "read_scores",
    "rows",
    "scopes",
    "subject_values",
]

REFERENCE = "pflsynth"
"""The method that the others are compared with, where it takes part."""

NOT_COMPUTED = "not computed"

By = Literal["all", "site", "task"]
"""What a row is about: all sites together, each site, or each task of each site."""


@dataclass(frozen=True)
class Comparison:
    """An opened comparison; ``entries`` are the runs in the order of methods and seeds, then ``copy``.

    ``config`` is the common agreement; its method and seed are those of the first run. ``notes`` are what tables
    must say of a method, by its name. ``fit_rounds`` are those of the local fit of a held-out site.
    """

    folder: Path
    name: str
    config: FederationConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    split: SplitName
    entries: tuple[Entry, ...]
    held_out: str | None
    fit_rounds: int | None
    prepared: Path
    notes: Mapping[str, str]

    @property
    def reference(self) -> str:
        """The method that the others are compared with: pflsynth, or the first one if it does not take part."""
        return REFERENCE if REFERENCE in self.methods else self.methods[0]

    def entries_of(self, method: str) -> tuple[Entry, ...]:
        """The entries of a method or of ``copy``; raises UsageError if it does not take part."""
        _check_known("method", method, (*self.methods, COPY))
        return tuple(entry for entry in self.entries if entry.method == method)


@dataclass(frozen=True)
class Row:
    """A method's metric over the people of all sites, of a site, or of a site and task.

    ``seed_deviation`` is the standard deviation (n - 1) between the means of the seeds; ``None`` with one seed.
    """

    method: str
    site: str | None
    task: str | None
    metric: str
    description: Description
    seed_deviation: float | None


def open_comparison(folder: Path) -> Comparison:
    """Read a comparison and the scores of all its runs.

    Raises:
        ModelError: if it is no comparison, damaged or newer; if a run is missing, unfinished, or lost a file; if runs
            were trained under different agreements or budgets, or evaluated on different data.
    """
    record = read_record(folder)
    entries = open_entries(folder, record)
    config = entries[0].config
    assert config is not None  # entries of runs have one
    return Comparison(
        folder,
        record.name,
        config.model_copy(update={"name": record.name}),
        record.methods,
        record.seeds,
        record.split,
        entries,
        record.held_out,
        record.fit_rounds,
        record.prepared,
        record.notes,
    )


def subject_values(
    comparison: Comparison, method: str, metric: str, site: str | None = None, task: str | None = None
) -> dict[tuple[str, str, str], float]:
    """A metric of a method, or of ``copy``: the mean over sessions and seeds for each (site, task, subject).

    Args:
        comparison: an opened one.
        method: one of its methods, or ``copy``.
        metric: one of :data:`METRIC_NAMES`.
        site: of this site only.
        task: of this task only, as text.

    Returns:
        Sorted by site, task and subject; empty if the metric was not computed for every score.

    Raises:
        UsageError: unknown method or metric.
    """
    return _subject_values(comparison.entries_of(method), metric, site, task)


def person_values(
    comparison: Comparison, method: str, metric: str, site: str | None = None, task: str | None = None
) -> dict[tuple[str, str], float]:
    """The unit of all statistics: for each (site, subject) the mean over the subject's tasks of its values.

    Arguments, order and errors are those of :func:`subject_values`.
    """
    return _person_values(comparison.entries_of(method), metric, site, task)


def seed_means(
    comparison: Comparison, method: str, metric: str, site: str | None = None, task: str | None = None
) -> list[float]:
    """The mean of :func:`person_values` of each seed's run alone, in the order of the seeds."""
    entries = comparison.entries_of(method)
    return [statistics.fmean(_person_values([entry], metric, site, task).values()) for entry in entries]


def scopes(comparison: Comparison, by: By) -> list[tuple[str | None, str | None]]:
    """What rows are about: (site, task) pairs with scores, sites by name, tasks as agreed; ``None`` stands for all."""
    scored = {(score.site, score.task) for score in comparison.entries[0].scores}
    config = comparison.config
    pairs = [(site, str(task)) for site in config.site_names for task in config.sites[site].tasks]
    found: list[tuple[str | None, str | None]] = [pair for pair in pairs if pair in scored]
    if by == "all":
        return [(None, None)]
    return found if by == "task" else list(dict.fromkeys((site, None) for site, _ in found))


def rows(comparison: Comparison, metric: str, by: By) -> list[Row]:
    """Describe every method, then ``copy``, over the persons of all sites, of each site, or of each site and task.

    Methods for which the metric was not computed are left out. An unknown metric is a UsageError.
    """
    found = []
    for site, task in scopes(comparison, by):
        for method in (*comparison.methods, COPY):
            if values := person_values(comparison, method, metric, site, task):
                description = describe(list(values.values()))
                deviation = _deviation(seed_means(comparison, method, metric, site, task))
                found.append(Row(method, site, task, metric, description, deviation))
    return found


def against(
    comparison: Comparison, metric: str, reference: str, site: str | None = None, task: str | None = None
) -> list[tuple[str, PairedTest]]:
    """Test a reference method against every other one and ``copy``, with Holm's correction over these tests.

    Pairs are persons, (site, subject). The difference is reference minus other, so that its sign says who is better by
    ``HIGHER_IS_BETTER``.

    Args:
        comparison: an opened one.
        metric: one of :data:`METRIC_NAMES`.
        reference: a method of the comparison, or ``copy``.
        site: persons of this site only.
        task: values of this task only, as text.

    Raises:
        UsageError: unknown method or metric.
    """
    one = person_values(comparison, reference, metric, site, task)
    others = [method for method in (*comparison.methods, COPY) if method != reference]
    tests = []
    for method in others:
        other = person_values(comparison, method, metric, site, task)
        if one and other:
            tests.append(paired_test(list(one.values()), list(other.values())))
        else:
            tests.append(PairedTest(0, math.nan, None, None, None, NOT_COMPUTED))
    return list(zip(others, with_holm(tests), strict=True))


def budget(entry: Entry) -> Budget | None:
    """What the training of an entry was given and what it cost; ``None`` for ``copy``, which is not trained."""
    if entry.config is None:
        return None
    rounds, epochs, cost = entry.config.rounds, entry.config.training.local_epochs, entry.cost
    if cost is None:
        return Budget(rounds, None, None, None, None, None, None)
    return Budget(
        rounds,
        {trainer: rounds * steps for trainer, steps in cost.steps.items()},
        {trainer: rounds * epochs * slices for trainer, slices in cost.slices.items()},
        cost.megabytes,
        cost.received,
        cost.shared,
        None if entry.seed is None else cost.seconds.get(entry.seed),
    )


def _subject_values(
    entries: Iterable[Entry], metric: str, site: str | None, task: str | None
) -> dict[tuple[str, str, str], float]:
    _check_known("metric", metric, METRIC_NAMES)
    values: dict[tuple[str, str, str], list[float | None]] = {}
    for entry in entries:
        for score in entry.scores:
            if site in (None, score.site) and task in (None, score.task):
                values.setdefault((score.site, score.task, score.subject), []).append(getattr(score, metric))
    means = {}
    for key in sorted(values):
        known = [value for value in values[key] if value is not None]
        if len(known) < len(values[key]):  # a mean over some of the people could be compared with nothing
            return {}
        means[key] = statistics.fmean(known)
    return means


def _person_values(
    entries: Iterable[Entry], metric: str, site: str | None, task: str | None
) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for (own_site, _, subject), value in _subject_values(entries, metric, site, task).items():
        values.setdefault((own_site, subject), []).append(value)
    return {key: statistics.fmean(values[key]) for key in sorted(values)}


def _deviation(means: Sequence[float]) -> float | None:
    return statistics.stdev(means) if len(means) > 1 and all(map(math.isfinite, means)) else None


def _check_known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
        raise UsageError(f'{what} "{name}" is unknown; {hint}')
