"""What the tables of a comparison show and say: rows, the best of them, decimals, captions and remarks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pflsynth.evaluation.comparison import (
    METRIC_NAMES,
    NOT_COMPUTED,
    Budget,
    By,
    Comparison,
    Row,
    against,
    budget,
    rows,
    scopes,
)
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.metrics import HIGHER_IS_BETTER
from pflsynth.evaluation.statistics import PairedTest

MAIN_METRICS = ("psnr", "ssim")
"""The metrics of the tables by task, of the tests in LaTeX, and of the terminal."""

SETTINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "whole slice": tuple(name for name in METRIC_NAMES if not name.endswith(("_mask", "_field"))),
        "within the head mask": tuple(name for name in METRIC_NAMES if name.endswith("_mask")),
        "whole slice by the field's path (joint maximum, 8 bit)": tuple(
            name for name in METRIC_NAMES if name.endswith("_field")
        ),
    }
)
"""Metrics that may share a table, by what they are of."""

DASH = "–"
"""A cell without a number."""

Scope = tuple[str | None, str | None]
"""A site and a task; ``None`` stands for all of them."""

EVERYTHING: Scope = (None, None)

Tests = Mapping[str, Mapping[str, PairedTest]]
"""Tests of the reference against a method, by metric and method."""


class Rows:
    """The rows of a comparison by metric, (site, task) and method, with their best."""

    def __init__(self, comparison: Comparison, metrics: Sequence[str], by: By):
        """Describe every method and ``copy``; see :func:`pflsynth.evaluation.comparison.rows`."""
        self._rows = {
            (row.metric, (row.site, row.task), row.method): row
            for metric in metrics
            for row in rows(comparison, metric, by)
        }

    def get(self, metric: str, scope: Scope, method: str) -> Row | None:
        """The row, or ``None`` where the metric was not computed."""
        return self._rows.get((metric, scope, method))

    def best(self, metric: str, scope: Scope) -> frozenset[str]:
        """The methods with the best mean as it is printed: all of them, if they are equal to that many decimals."""
        means = {
            method: float(printed(row.description.mean, decimals(metric)))
            for (own_metric, own_scope, method), row in self._rows.items()
            if (own_metric, own_scope) == (metric, scope)
        }
        target = (max if HIGHER_IS_BETTER[metric] else min)(means.values(), default=None)
        return frozenset(method for method, mean in means.items() if mean == target)

    def subjects(self, scope: Scope) -> int:
        """Number of persons that the rows of a scope are about."""
        return next((row.description.n for (_, own, _), row in self._rows.items() if own == scope), 0)


def main_tests(comparison: Comparison) -> Tests:
    """The reference against every other method and ``copy`` over all sites, for the main metrics."""
    return {metric: dict(against(comparison, metric, comparison.reference)) for metric in MAIN_METRICS}


def decimals(metric: str) -> int:
    """Decimals that a metric is printed with: two for dB, four for errors in units of the data range, else three."""
    return 2 if metric.startswith("psnr") else 4 if metric.startswith("mae") else 3


def heading(metric: str) -> str:
    """Name of a metric as papers write it; the setting is told elsewhere."""
    name = metric.split("_")[0].upper()
    return f"{name} (dB)" if name == "PSNR" else name


def printed(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, or ``inf``; ``sign`` is "+" to show it always. Zero has no minus."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def mean_text(row: Row) -> str:
    """Mean ± standard deviation over subjects as printed; the mean alone where there is no deviation."""
    own, digits = row.description, decimals(row.metric)
    mean = printed(own.mean, digits)
    return mean if own.deviation is None else f"{mean} ± {printed(own.deviation, digits)}"


def interval_text(row: Row) -> str:
    """The ends of the 95 % interval as printed; a dash where there is none."""
    low, high, digits = row.description.low, row.description.high, decimals(row.metric)
    return DASH if low is None or high is None else f"{printed(low, digits)} to {printed(high, digits)}"


def difference_text(metric: str, test: PairedTest) -> str:
    """Mean difference of a test as printed, with its sign; a dash where infinite scores leave none."""
    return DASH if math.isnan(test.difference) else printed(test.difference, decimals(metric), "+")


def p_text(test: PairedTest) -> str:
    """Corrected p-value with three decimals, or ``<0.001``; a dash without one."""
    if test.p_holm is None:
        return DASH
    return "<0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}"


def result_rounds(comparison: Comparison, method: str | None = None) -> str:
    """The rounds that numbers are of: one, or several where validation selected different ones."""
    entries = comparison.entries if method is None else comparison.entries_of(method)
    return " ".join(map(str, sorted({entry.round for entry in entries if entry.run is not None})))


def about(comparison: Comparison, found: Rows, own: Sequence[Scope] = (EVERYTHING,)) -> str:
    """What the numbers of a table are of: model, round, split, subjects, seeds and normaliser.

    Args:
        comparison: an opened one.
        found: its rows.
        own: the (site, task) pairs of the table's columns, all of one site or of all sites.
    """
    counts, rounds = sorted({found.subjects(scope) for scope in own}), result_rounds(comparison).split()
    subjects = _counted(" to ".join(map(str, counts)), "subject")
    place = f"site {own[0][0]}" if own[0][0] is not None else _counted(str(len(scopes(comparison, "site"))), "site")
    return (
        f"personalised models after {_listed('round', rounds)}, {comparison.split} split, {subjects} of {place}, "
        f"{_listed('seed', list(map(str, comparison.seeds)))}, intensities by the "
        f"{comparison.config.intensity.normalizer} normaliser"
    )


def remarks(comparison: Comparison, found: Rows, columns: Iterable[tuple[str, Scope]]) -> list[str]:
    """What readers must know: what ``copy`` is, the notes on methods, and which metrics were not computed.

    Args:
        comparison: an opened one.
        found: its rows.
        columns: metric and (site, task) of the table's columns.
    """
    methods = (*comparison.methods, COPY)
    sentences = [f"{COPY}: the source taken for the target."]
    sentences += [f"{method}: {note.rstrip('.')}." for method, note in comparison.notes.items()]
    for metric, scope in columns:
        lacking = [method for method in methods if found.get(metric, scope, method) is None]
        if lacking:
            of = "" if len(lacking) == len(methods) else f" for {', '.join(lacking)}"
            sentences.append(f"{heading(metric)}: {NOT_COMPUTED}{of}.")
    return list(dict.fromkeys(sentences))


def remarks_on_tests(comparison: Comparison, tests: Tests) -> list[str]:
    """What the columns of tests mean, and why some have no p-value."""
    sizes = sorted({sum(test.p is not None for test in own.values()) for own in tests.values()})
    sentences = [
        f"Δ: mean difference, {comparison.reference} minus the method; p: two-sided Wilcoxon signed-rank test over "
        f"subjects, with Holm's correction over the {_counted(' to '.join(map(str, sizes)), 'test')} of a metric."
    ]
    without: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for metric, own in tests.items():
        for reason in dict.fromkeys(test.reason for test in own.values() if test.reason is not None):
            methods = tuple(method for method, test in own.items() if test.reason == reason)
            without.setdefault((reason, methods), []).append(metric.upper())
    return sentences + [
        f"No p in {', '.join(metrics)} for {', '.join(methods)}: {reason}."
        for (reason, methods), metrics in without.items()
    ]


def method_budget(comparison: Comparison, method: str) -> Budget:
    """The budget of a method, equal for all its seeds; ``seconds`` is of its first."""
    own = budget(comparison.entries_of(method)[0])
    assert own is not None  # only copying is not trained
    return own


def mean_seconds(comparison: Comparison, method: str) -> float | None:
    """Mean over the seeds of a method; ``None`` unless it was recorded for each of them."""
    found = [own.seconds for entry in comparison.entries_of(method) if (own := budget(entry)) is not None]
    known = [seconds for seconds in found if seconds is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def _counted(count: str, noun: str) -> str:
    return f"{count} {noun}" if count == "1" else f"{count} {noun}s"


def _listed(noun: str, names: Sequence[str]) -> str:
    return f"{noun if len(names) == 1 else f'{noun}s'} {', '.join(names)}"
