"""The report's section on a site that did not take part: scores as the federation serves it, and after a local fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pflsynth.evaluation.comparison import Comparison, Row
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.held_out import fit_text, held_out_rows, how_served, open_held_out
from pflsynth.evaluation.statistics import Description
from pflsynth.evaluation.table_facts import MAIN_METRICS, Rows, decimals, heading
from pflsynth.report.figures import Picture, Style, name_rows, new_figure, picture
from pflsynth.report.formats import number
from pflsynth.report.sections import Table, score_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_APART = 0.17  # of a row's height: how far a score before the fit is above, and one after it below the row's middle


@dataclass(frozen=True)
class HeldOutPart:
    """What the page shows of the site that was held out; ``pictures`` is empty where its fit was not recorded.

    Attributes:
        site: its name.
        fit: the local fit, in words.
        sentences: what stands in for what methods keep private.
        pictures: for each main metric, all methods before and after the fit.
        tables: for each main metric, a table for each number of rounds of local fit, in words.
    """

    site: str
    fit: str
    sentences: tuple[str, ...]
    pictures: Mapping[str, Picture]
    tables: Mapping[str, Mapping[str, Table]]


def held_out_part(comparison: Comparison, order: Sequence[str], styles: Mapping[str, Style]) -> HeldOutPart | None:
    """The section on the held-out site; ``None`` if there is none.

    Args:
        comparison: opened.
        order: of the methods and the floor, from the top down.
        styles: one a method.

    Raises:
        ModelError: if scores at the site are missing or damaged.
    """
    if comparison.held_out is None:
        return None
    found = open_held_out(comparison)
    if not found:
        return HeldOutPart(comparison.held_out, "", (), {}, {})
    fit = fit_text(max(found))
    rows = {(row.fit_rounds, row.metric, row.method): row for row in held_out_rows(found)}
    pictures, tables = {}, {}
    for metric in MAIN_METRICS:
        before, after = ([rows[rounds, metric, method] for method in order] for rounds in found)
        pictures[metric] = draw_fit(before, after, styles, fit)
        tables[metric] = {
            f"With {fit_text(rounds)}": score_table(own, Rows(own, (metric,), "all"), metric, order)
            for rounds, own in found.items()
        }
    return HeldOutPart(comparison.held_out, fit, tuple(how_served(comparison)), pictures, tables)


def draw_fit(before: Sequence[Row], after: Sequence[Row], styles: Mapping[str, Style], fit: str) -> Picture:
    """Means with their intervals, a hollow dot before the fit and a full one after it; the floor is an upright line.

    Args:
        before: from the top down, of one metric.
        after: of the same methods.
        styles: one a method.
        fit: the local fit, in words.
    """
    metric = before[0].metric
    digits = decimals(metric)
    said = []
    with new_figure(0.34 * len(before) + 0.55) as (figure, axes):
        for place, (first, last) in enumerate(zip(before, after, strict=True)):
            style, text = styles[first.method], number(first.description.mean, digits)
            if first.method == COPY:
                if math.isfinite(first.description.mean):
                    axes.axvline(first.description.mean, color=style.colour, linestyle=style.dashes, linewidth=1)
                _mark(axes, place, first.description, style.colour, style.colour)
            else:
                text = f"{text} → {number(last.description.mean, digits)}"
                _mark(axes, place - _APART, first.description, style.colour, "white")
                _mark(axes, place + _APART, last.description, style.colour, style.colour)
            axes.annotate(text, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", annotation_clip=False)
            said.append(f"{first.method} {text}")
        name_rows(axes, [row.method for row in before])
        axes.set_xlabel(heading(metric))
        return picture(figure, f"{heading(metric)}, mean and 95 % interval, before → after {fit}: {', '.join(said)}")


def _mark(axes: Axes, height: float, own: Description, colour: str, face: str) -> None:
    """A mean with its interval, in a line."""
    if own.low is not None and own.high is not None:
        axes.plot((own.low, own.high), (height, height), color=colour, linewidth=1.2)
    axes.plot(own.mean, height, "o", color=colour, markerfacecolor=face, markersize=5, zorder=5)
