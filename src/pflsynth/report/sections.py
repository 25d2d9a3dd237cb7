"""The tables of the report, as cells of text that the page only has to lay out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pflsynth.evaluation.comparison import NOT_COMPUTED, Budget, Comparison, against, budget, scopes
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.feature_tables import FidRow, best
from pflsynth.evaluation.metrics import HIGHER_IS_BETTER
from pflsynth.evaluation.statistics import PairedTest
from pflsynth.evaluation.table_facts import EVERYTHING, Rows, decimals, heading
from pflsynth.federation.methods import CENTRAL
from pflsynth.report.formats import NOTHING, number, p_value, significant, task_text

TONES = 3
"""Strengths of the colour of a difference, on each side."""

Place = tuple[str, str | None]
"""A site, and one of its tasks or ``None`` for all of them."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, whether it stands out, a small second line, and a colour's class."""

    text: str
    bold: bool = False
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: its name, its cells, and whether it belongs to the row above it.

    ``method`` is set where the row is a method, which then is shown with its colour.
    """

    head: str
    cells: tuple[Cell, ...]
    method: str | None = None
    inner: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its first heading is that of the rows' names; ``methods`` says which headings are methods."""

    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Differences:
    """The reference minus every method at each site and task, and why some of the tests have no p-value.

    Attributes:
        table: the differences.
        tests: how many there are.
        untested: for each reason, how many tests have no p-value.
    """

    table: Table
    tests: int
    untested: Mapping[str, int]


def score_table(comparison: Comparison, found: Rows, metric: str, order: Sequence[str]) -> Table:
    """One score over all subjects: a line a method, with its spread and its test against the reference."""
    digits = decimals(metric)
    tests = dict(against(comparison, metric, comparison.reference))
    lines = []
    for method in order:
        row, test = found.get(metric, EVERYTHING, method), tests.get(method)
        if row is None:
            continue
        own = row.description
        cells = (
            _mean_cell(found, metric, EVERYTHING, method),
            Cell(NOTHING if own.low is None else f"{number(own.low, digits)} to {number(own.high, digits)}"),
            Cell(number(row.seed_deviation, digits)),
            Cell(number(test.difference if test else None, digits, sign=True)),
            Cell(p_value(test.p_holm if test else None), note=(test.reason or "") if test else ""),
            Cell(number(test.effect if test else None, 2, sign=True)),
            Cell(str(own.n)),
        )
        lines.append(Line(method, cells, method))
    headings = ("method", f"{heading(metric)} ± SD", "95 % interval", "seed SD", "Δ", "p", "effect", "n")
    return Table(headings, tuple(lines))


def metrics_table(found: Rows, metrics: Sequence[str], order: Sequence[str]) -> Table:
    """Several scores over all subjects: a line a method, a column a score; scores that no method has are left out."""
    known = [metric for metric in metrics if any(found.get(metric, EVERYTHING, method) for method in order)]
    lines = [
        Line(method, tuple(_mean_cell(found, metric, EVERYTHING, method) for metric in known), method)
        for method in order
    ]
    return Table(("method", *map(heading, known)), tuple(lines))


def place_table(comparison: Comparison, metric: str, order: Sequence[str]) -> Table:
    """One score at each site, and below it at each of the site's tasks: a column a method."""
    sites, tasks = Rows(comparison, (metric,), "site"), Rows(comparison, (metric,), "task")
    lines = []
    for place in places_of(comparison):
        found = sites if place[1] is None else tasks
        cells = [_mean_cell(found, metric, place, method) for method in order]
        lines.append(_place_line(place, [Cell(str(found.subjects(place))), *cells]))
    return Table(("site and task", "n", *order), tuple(lines), tuple(order))


def difference_table(comparison: Comparison, metric: str, order: Sequence[str]) -> Differences:
    """The reference minus every other method at each site and, below it, at each of its tasks.

    The p-values are corrected within a line (as in ``tables/tests.csv``), not between lines.
    """
    others = [method for method in order if method != comparison.reference]
    found = {place: dict(against(comparison, metric, comparison.reference, *place)) for place in places_of(comparison)}
    tests = [own[method] for own in found.values() for method in others]
    sizes = [abs(own[method].difference) for own in found.values() for method in others if method != COPY]
    largest = max(filter(math.isfinite, sizes), default=0.0)
    lines = [
        _place_line(place, [_difference_cell(own[method], metric, largest) for method in others])
        for place, own in found.items()
    ]
    reasons = Counter(test.reason for test in tests if test.reason is not None)
    return Differences(Table(("site and task", *others), tuple(lines), tuple(others)), len(tests), reasons)


def fid_table(rows: Sequence[FidRow], order: Sequence[str]) -> Table | None:
    """FID at each site and task: a column a method, the lowest in bold; None if it was not computed."""
    found = {(row.site, row.task, row.method): row for row in rows}
    lines = []
    for site, task in dict.fromkeys((row.site, row.task) for row in rows):
        own, lowest = [found.get((site, task, method)) for method in order], best(rows, site, task)
        images = next(row.images for row in own if row is not None)
        cells = [Cell(NOT_COMPUTED) if row is None else Cell(row.text, row.method in lowest) for row in own]
        lines.append(Line(f"{site}, {task_text(task)}", (Cell(str(images)), *cells)))
    return Table(("site and task", "slices", *order), tuple(lines), tuple(order)) if lines else None


def budgets_of(comparison: Comparison) -> dict[str, list[Budget]]:
    """The budgets of each method's runs, one a seed."""
    return {
        method: [own for entry in comparison.entries_of(method) if (own := budget(entry)) is not None]
        for method in comparison.methods
    }


def budget_table(found: Mapping[str, Sequence[Budget]]) -> Table:
    """Rounds, steps and slices of each method's whole training, and its time as a mean over the seeds."""
    lines = []
    for method, own in found.items():
        seconds = [entry.seconds for entry in own if entry.seconds is not None]
        minutes = number(sum(seconds) / len(seconds) / 60, 1) if seconds else NOTHING
        cells = (str(own[0].rounds), count_text(own[0].all_steps), count_text(own[0].all_slices), minutes)
        lines.append(Line(method, tuple(map(Cell, cells)), method))
    return Table(("method", "rounds", "steps, all sites", "slices seen, all sites", "minutes a seed"), tuple(lines))


def communication_table(found: Mapping[str, Sequence[Budget]]) -> Table | None:
    """MB that each site sends in a round, that all send and receive, and in the whole training; None if unrecorded."""
    known = {method: own[0] for method, own in found.items() if own[0].megabytes is not None}
    sites = sorted({trainer for own in known.values() for trainer in own.megabytes or {}} - {CENTRAL})
    lines = []
    for method, own in known.items():
        traffic = own.traffic()
        assert traffic is not None  # its megabytes are known
        sent = [number((own.megabytes or {}).get(site, 0.0), 2) for site in sites]
        cells = [*sent, number(traffic.sent, 2), number(traffic.received, 2), number(traffic.in_all, 0)]
        lines.append(Line(method, tuple(map(Cell, cells)), method))
    headings = ("method", *sites, "all sites send", "all sites receive", "all rounds, both ways")
    return Table(headings, tuple(lines)) if lines else None


def places_of(comparison: Comparison) -> list[Place]:
    """Every site with scores, each followed by its tasks that have some."""
    places: list[Place] = []
    for site, task in scopes(comparison, "task"):
        assert site is not None  # scopes of tasks name both
        places += [(site, task)] if (site, None) in places else [(site, None), (site, task)]
    return places


def count_text(value: int | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u2009")


def _mean_cell(found: Rows, metric: str, scope: tuple[str | None, str | None], method: str) -> Cell:
    """Mean ± standard deviation over subjects; the mean alone where there is no deviation."""
    row = found.get(metric, scope, method)
    if row is None:
        return Cell(NOT_COMPUTED)
    mean = number(row.description.mean, decimals(metric))
    deviation = row.description.deviation
    text = mean if deviation is None else f"{mean} ± {number(deviation, decimals(metric))}"
    return Cell(text, method in found.best(metric, scope))


def _place_line(place: Place, cells: Sequence[Cell]) -> Line:
    site, task = place
    return Line(site if task is None else task_text(task), tuple(cells), inner=task is not None)


def _difference_cell(test: PairedTest, metric: str, largest: float) -> Cell:
    """The difference with its p-value, or number of pairs, below; coloured by its size relative to the largest one."""
    tone = ""
    if largest and math.isfinite(test.difference) and test.difference:
        strength = min(TONES, 1 + int(TONES * abs(test.difference) / largest))
        better = (test.difference > 0) == HIGHER_IS_BETTER[metric]
        tone = f"{'plus' if better else 'minus'}{strength}"
    note = f"n {test.n}" if test.p_holm is None else f"p {p_value(test.p_holm)}"
    return Cell(number(test.difference, decimals(metric), sign=True), significant(test), note, tone)
