"""The LaTeX tables of a comparison, in the style of ``booktabs``; :mod:`pflsynth.evaluation.tables` writes them."""

from __future__ import annotations

from collections.abc import Sequence

from pflsynth.evaluation.comparison import NOT_COMPUTED, Comparison, scopes
from pflsynth.evaluation.evaluate import COPY
from pflsynth.evaluation.table_facts import (
    DASH,
    EVERYTHING,
    MAIN_METRICS,
    SETTINGS,
    Rows,
    Scope,
    about,
    difference_text,
    heading,
    main_tests,
    mean_text,
    megabytes,
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


def communication(comparison: Comparison) -> str:
    """What the whole training of each method takes and sends."""
    columns = ("Method", "Rounds", "Steps", "Slices seen", "MB per round", "MB in all")
    lines = []
    for method in comparison.methods:
        own = method_budget(comparison, method)
        cells = [NOT_COMPUTED] * 4
        if own.all_megabytes is not None:
            sent = megabytes(own.rounds, own.all_megabytes)
            cells = [str(own.all_steps), str(own.all_slices), *(printed(value, 2) for value in sent.values())]
        lines.append([plain(method), *map(plain, (str(own.rounds), *cells))])
    notes = "".join(f" {method}: {note.rstrip('.')}." for method, note in comparison.notes.items())
    caption = (
        "What training takes and sends, all sites together: optimisation steps and slices seen in the whole training, "
        f"MB one way in a round, and MB of all rounds both ways.{notes}"
    )
    return _HEADER + table(caption, f"tab:{comparison.name}-communication", columns, lines)
