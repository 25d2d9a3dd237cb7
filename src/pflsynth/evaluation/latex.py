"""The LaTeX tables of a comparison, in the style of ``booktabs``; :mod:`pflsynth.evaluation.tables` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pflsynth.evaluation.comparison import NOT_COMPUTED, Comparison, scopes
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.held_out import HeldOutRow, held_out_remarks, held_out_rows
from pflsynth.evaluation.table_facts import (
    DASH,
    EVERYTHING,
    MAIN_METRICS,
    SETTINGS,
    Rows,
    Scope,
    about,
    decimals,
    difference_text,
    heading,
    interval_text,
    main_tests,
    mean_text,
    method_budget,
    p_text,
    printed,
    remarks,
    remarks_on_tests,
)

_HEADER = "% Made by pflsynth compare. Needs \\usepackage{booktabs}.\n"

_SPECIAL = {character: f"\\{character}" for character in "_&%#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}


def plain(text: str) -> str:
    """Text as it is: special characters escaped, ``->`` as an arrow."""
    parts = ("".join(_SPECIAL.get(character, character) for character in part) for part in text.split("->"))
    return r"$\rightarrow$".join(parts)


def numbers(text: str, bold: bool = False) -> str:
    """Printed numbers such as ``24.50 ± 1.20``, ``-inf`` or ``<0.001`` in math mode."""
    if text == DASH:
        return "--"
    formula = text.replace("±", r"\pm").replace("inf", r"\infty")
    return rf"$\mathbf{{{formula}}}$" if bold else f"${formula}$"


def table(caption: str, label: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A whole table; the first column is set left, the others right.

    Args:
        caption: plain text.
        label: for ``\\ref``.
        columns: headings, plain text.
        lines: cells, LaTeX.
    """
    parts = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{plain(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(plain, columns)) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in lines),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def file_of(tables: Sequence[str]) -> str:
    """The text of a file of tables."""
    return _HEADER + "\n".join(tables)


def overall(comparison: Comparison, found: Rows) -> str:
    """All sites together: one table for each setting."""
    tables = []
    for place, (setting, metrics) in enumerate(SETTINGS.items(), start=1):
        columns = [(heading(metric), metric, EVERYTHING) for metric in metrics]
        label = f"tab:{comparison.name}-overall-{place}"
        tables.append(_scores(comparison, found, setting, label, columns))
    return file_of(tables)


def sites(comparison: Comparison, found: Rows) -> str:
    """One table for each site, over the whole slice."""
    (setting, metrics), *_ = SETTINGS.items()
    tables = []
    for scope in scopes(comparison, "site"):
        columns = [(heading(metric), metric, scope) for metric in metrics]
        tables.append(_scores(comparison, found, setting, f"tab:{comparison.name}-site-{scope[0]}", columns))
    return file_of(tables)


def tasks(comparison: Comparison, found: Rows) -> str:
    """One table for each site, with the main metrics of its tasks."""
    tables = []
    for site, _ in scopes(comparison, "site"):
        own = [scope for scope in scopes(comparison, "task") if scope[0] == site]
        columns = [(f"{scope[1]}, {metric.upper()}", metric, scope) for scope in own for metric in MAIN_METRICS]
        label = f"tab:{comparison.name}-tasks-{site}"
        tables.append(_scores(comparison, found, "whole slice", label, columns))
    return file_of(tables)


def _scores(
    comparison: Comparison, found: Rows, setting: str, label: str, columns: Sequence[tuple[str, str, Scope]]
) -> str:
    """Methods by columns, each of a heading, a metric and a (site, task)."""
    lines = []
    for method in (*comparison.methods, COPY):
        cells = []
        for _, metric, scope in columns:
            row = found.get(metric, scope, method)
            best = method in found.best(metric, scope)
            cells.append(plain(NOT_COMPUTED) if row is None else numbers(mean_text(row), bold=best))
        lines.append([plain(method), *cells])
    own = [(metric, scope) for _, metric, scope in columns]
    names = ", ".join(dict.fromkeys(heading(metric) for _, metric, _ in columns))
    caption = " ".join(
        (
            f"{names}, {setting}: {about(comparison, found, [scope for _, scope in own])}.",
            "Mean ± standard deviation over subjects; the best of a column in bold.",
            *remarks(comparison, found, own),
        )
    )
    return table(caption, label, ("Method", *(name for name, _, _ in columns)), lines)


def tests(comparison: Comparison, found: Rows) -> str:
    """The reference against every method over all sites, for the main metrics."""
    tests = main_tests(comparison)
    columns = ["Method", *(f"{metric.upper()} {part}" for metric in MAIN_METRICS for part in ("Δ", "r", "p"))]
    lines = []
    for method in (*comparison.methods, COPY):
        if method == comparison.reference:
            continue
        cells: list[str] = []
        for metric in MAIN_METRICS:
            test = tests[metric][method]
            effect = DASH if test.effect is None else printed(test.effect, 2, "+")
            cells += map(numbers, (difference_text(metric, test), effect, p_text(test)))
        lines.append([plain(method), *cells])
    caption = " ".join(
        (
            f"{comparison.reference} against every method, whole slice: {about(comparison, found)}.",
            *remarks_on_tests(comparison, tests),
            "r: matched-pairs rank-biserial correlation.",
            *remarks(comparison, found, [(metric, EVERYTHING) for metric in MAIN_METRICS]),
        )
    )
    return _HEADER + table(caption, f"tab:{comparison.name}-tests", columns, lines)


def held_out(found: Mapping[int, Comparison]) -> str:
    """The held-out site: one table for each main metric, with all methods before and after the local fit.

    Args:
        found: by :func:`pflsynth.evaluation.held_out.open_held_out`, not empty.
    """
    one, *_ = found.values()
    rows, subjects = held_out_rows(found), about(one, Rows(one, MAIN_METRICS, "all"))
    tables = []
    for metric in MAIN_METRICS:
        columns = ("Method", "Fit", "Subjects", heading(metric), "95 % interval", "Seed SD", "Δ", "r", "p")
        caption = " ".join(
            (
                f"{heading(metric)} at {one.held_out}, which did not take part, whole slice: {subjects}.",
                "Fit: rounds of the site's own training. Mean ± standard deviation over subjects; the best after as "
                "many rounds in bold.",
                *held_out_remarks(found),
                "r: matched-pairs rank-biserial correlation.",
            )
        )
        lines = [_held_out_line(row) for row in rows if row.metric == metric]
        tables.append(table(caption, f"tab:{one.name}-held-out-{metric}", columns, lines))
    return file_of(tables)


def _held_out_line(row: HeldOutRow) -> list[str]:
    spread = DASH if row.seed_deviation is None else printed(row.seed_deviation, decimals(row.metric))
    tested = [DASH, DASH, DASH]
    if row.test is not None:
        effect = DASH if row.test.effect is None else printed(row.test.effect, 2, "+")
        tested = [difference_text(row.metric, row.test), effect, p_text(row.test)]
    return [
        plain(row.method),
        numbers(DASH if row.method == COPY else str(row.fit_rounds)),
        str(row.description.n),
        numbers(mean_text(row), bold=row.best),
        " to ".join(map(numbers, interval_text(row).split(" to "))),
        *map(numbers, (spread, *tested)),
    ]


def communication(comparison: Comparison) -> str:
    """What the whole training of each method takes, sends and receives."""
    columns = ("Method", "Rounds", "Steps", "Slices seen", "MB sent", "MB received", "MB in all")
    lines = []
    for method in comparison.methods:
        own = method_budget(comparison, method)
        cells = [NOT_COMPUTED] * 5
        if (traffic := own.traffic()) is not None:
            amounts = (traffic.sent, traffic.received, traffic.in_all)
            sizes = [NOT_COMPUTED if size is None else printed(size, 2) for size in amounts]
            cells = [str(own.all_steps), str(own.all_slices), *sizes]
        lines.append([plain(method), *map(plain, (str(own.rounds), *cells))])
    notes = "".join(f" {method}: {note.rstrip('.')}." for method, note in comparison.notes.items())
    caption = (
        "What training takes, sends and receives, all sites together: optimisation steps and slices seen in the whole "
        f"training, MB sent and MB received in a round, and MB of the whole training both ways.{notes}"
    )
    return _HEADER + table(caption, f"tab:{comparison.name}-communication", columns, lines)
