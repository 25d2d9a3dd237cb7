"""The report of a comparison: one self-contained HTML page, made from the numbers of its runs by fixed rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pflsynth import __version__
from pflsynth.errors import DataError, ModelError
from pflsynth.evaluation.comparison import METRIC_NAMES, Comparison, Entry, person_values, subject_values
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.feature_tables import fid_rows, fid_sentences
from pflsynth.evaluation.table_facts import EVERYTHING, MAIN_METRICS, SETTINGS, Rows, decimals, heading
from pflsynth.federation.methods import METHODS
from pflsynth.files import write_atomic
from pflsynth.report import figures, sections
from pflsynth.report.answer import answer, means_of
from pflsynth.report.curves import common_limits, learning_curves
from pflsynth.report.facts import agreement, budget_sentence, facts, not_computed
from pflsynth.report.figures import Mark, Picture, Style
from pflsynth.report.formats import SIGNIFICANT, amount, label, listed, task_text
from pflsynth.report.held_out import held_out_part
from pflsynth.report.images import Grid, choose, colour_bar, draw_grids
from pflsynth.report.personalisation import personalisation
from pflsynth.report.personalisation_figures import draw_personalisation
from pflsynth.report.sheet import ERROR_SCALE

MOST_METHODS_IN_GRIDS = 6
"""Columns of methods in an image grid: the reference, then those that follow it by PSNR."""


@dataclass(frozen=True)
class PersonalisationPart:
    """The figures of one method's personalisation, or why there are none."""

    method: str
    pictures: tuple[Picture, ...]
    reason: str = ""


def write_report(comparison: Comparison, path: Path, *, prepared: Path | None) -> None:
    """Write the page: it asks for nothing and runs no script; the same comparison gives the same bytes.

    Args:
        comparison: opened.
        path: HTML file to write, atomically.
        prepared: folder of the prepared data that the runs were evaluated on, for the image grids; without it, or if
            it is gone or another one, the page says that they are left out.

    Raises:
        ModelError: if a run's records or FIDs are damaged.
        OSError: disk full, no permission, no such folder.
    """
    template = _environment().get_template("report.html")
    write_atomic(path, template.render(_content(comparison, prepared)).encode("utf-8", errors="replace"))


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")),
    )
    environment.filters["task"] = task_text
    environment.filters["listed"] = listed
    environment.filters["label"] = label
    environment.filters["heading"] = heading
    environment.filters["amount"] = amount
    return environment


def _content(comparison: Comparison, prepared: Path | None) -> dict[str, Any]:
    """Everything that the template shows, by its names there."""
    reference = comparison.reference
    overall = Rows(comparison, METRIC_NAMES, "all")
    order = [*means_of(comparison, overall, "psnr"), COPY]
    shown = [reference, *(method for method in order if method not in (reference, COPY))][:MOST_METHODS_IN_GRIDS]
    styles = figures.method_styles(comparison.methods, reference, COPY)
    differences = {metric: sections.difference_table(comparison, metric, order) for metric in MAIN_METRICS}
    budgets = sections.budgets_of(comparison)
    fids = fid_rows(comparison)
    grids, no_grids = _grids(comparison, prepared, shown)
    return {
        "comparison": comparison,
        "reference": reference,
        "floor": COPY,
        "version": __version__,
        "styles": styles,
        "significant": SIGNIFICANT,
        "answer": answer(comparison),
        "facts": facts(comparison),
        "score_figures": _score_figures(comparison, overall, order, styles),
        "score_tables": {metric: sections.score_table(comparison, overall, metric, order) for metric in MAIN_METRICS},
        "metrics_tables": {name: sections.metrics_table(overall, own, order) for name, own in SETTINGS.items()},
        "differences": differences,
        "place_tables": {metric: sections.place_table(comparison, metric, order) for metric in MAIN_METRICS},
        "held_out": held_out_part(comparison, order, styles),
        "fid_table": sections.fid_table(fids, order),
        "fid_sentences": fid_sentences(fids) if fids else [],
        "curves": _curve_figures(comparison, styles),
        "grids": grids,
        "no_grids": no_grids,
        "left_out": [method for method in order if method not in (*shown, COPY)],
        "error_scale": ERROR_SCALE,
        "colour_bar": colour_bar(),
        "budget_sentence": budget_sentence(budgets),
        "budget_table": sections.budget_table(budgets),
        "communication_table": sections.communication_table(budgets),
        "personalisation": _personalisation(comparison),
        "not_computed": not_computed(comparison, differences),
        "methods": {method: METHODS.get(method) for method in comparison.methods},
        "agreement": agreement(comparison),
    }


def _score_figures(
    comparison: Comparison, overall: Rows, order: Sequence[str], styles: Mapping[str, Style]
) -> dict[str, list[Picture]]:
    """For each main score the means of all methods, and the differences from the reference subject by subject."""
    pictures = {}
    for metric in MAIN_METRICS:
        found = [row for method in order if (row := overall.get(metric, EVERYTHING, method)) is not None]
        marks = [
            Mark(row.method, row.description.mean, row.description.low, row.description.high, row.seed_deviation)
            for row in found
        ]
        reference = person_values(comparison, comparison.reference, metric)
        values = {
            method: [reference[person] - value for person, value in person_values(comparison, method, metric).items()]
            for method in order
            if method != comparison.reference
        }
        pictures[metric] = [
            figures.draw_scores(marks, styles, COPY, heading(metric), decimals(metric)),
            figures.draw_differences(values, styles, comparison.reference, heading(metric), decimals(metric)),
        ]
    return pictures


def _curve_figures(comparison: Comparison, styles: Mapping[str, Style]) -> dict[str, list[Picture]]:
    """Training losses at each site and task, and the validation scores of each site, if there are any."""
    curves = learning_curves(comparison)
    limits = common_limits(curves.losses)
    return {
        "losses": [
            figures.draw_curves(
                own, styles, f"{site}, {task_text(task)}", "L1", limits=limits, logarithmic=limits is not None
            )
            for (site, task), own in curves.losses.items()
        ],
        "validation": [
            figures.draw_curves(own, styles, site, "PSNR in the head (dB)") for site, own in curves.validation.items()
        ],
    }


def _grids(comparison: Comparison, prepared: Path | None, methods: Sequence[str]) -> tuple[list[Grid], str]:
    """The image grids, or why there are none."""
    if prepared is None:
        return [], "the prepared data was not given"
    trained = comparison.config.participants
    picks = []
    for task in map(str, comparison.config.tasks):
        values = subject_values(comparison, comparison.reference, "psnr", task=task)
        own = {(site, name): psnr for (site, _, name), psnr in values.items() if site in trained}
        picks += [(task, pick) for pick in choose(own)]
    if not picks:
        return [], "no site that trained was evaluated"
    first = _first_runs(comparison)
    try:
        return draw_grids(picks, {method: first[method] for method in methods}, prepared, comparison.split), ""
    except (DataError, ModelError) as failure:
        return [], str(failure)


def _personalisation(comparison: Comparison) -> list[PersonalisationPart]:
    """The figures of every method that has a personalised generator, of its first seed; the reference comes first."""
    parts = []
    first = _first_runs(comparison)
    for method in sorted(comparison.methods, key=lambda name: name != comparison.reference):
        try:
            numbers = personalisation(first[method])
        except ModelError as failure:
            parts.append(PersonalisationPart(method, (), str(failure)))
            continue
        if numbers is not None:
            parts.append(PersonalisationPart(method, draw_personalisation(numbers)))
    return parts


def _first_runs(comparison: Comparison) -> dict[str, Path]:
    """The run of each method's first seed."""
    entries: list[Entry] = [comparison.entries_of(method)[0] for method in comparison.methods]
    return {entry.method: entry.run for entry in entries if entry.run is not None}
