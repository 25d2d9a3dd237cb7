"""Tables of a comparison: CSV for machines, LaTeX (booktabs) for papers, and one for the terminal.

All say which model, round, split, subjects, seeds and normaliser their numbers are of. For readers, numbers of
different settings (whole slice, head mask, the field's path) never share a table. The same comparison gives the
same bytes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pflsynth.evaluation import latex
from pflsynth.evaluation.comparison import METRIC_NAMES, NOT_COMPUTED, By, Comparison, against, scopes
from pflsynth.evaluation.costs import Traffic
from pflsynth.evaluation.evaluate import COPY, PERSONALISED
from pflsynth.evaluation.feature_tables import FidRow, fid_latex, fid_rows
from pflsynth.evaluation.held_out import HeldOutRow, held_out_remarks, held_out_rows, open_held_out
from pflsynth.evaluation.table_facts import (
    DASH,
    EVERYTHING,
    MAIN_METRICS,
    Rows,
    Tests,
    about,
    difference_text,
    heading,
    interval_text,
    main_tests,
    mean_seconds,
    mean_text,
    method_budget,
    p_text,
    remarks,
    remarks_on_tests,
    result_rounds,
)
from pflsynth.files import write_atomic

ALL_TRAINERS = "(all)"
"""Stands in ``communication.csv`` for all trainers together; no site can have this name."""

_BY: tuple[By, ...] = ("all", "site", "task")
_MEGABYTES = ("mb_sent_per_round", "mb_received_per_round", "mb_in_all")
_CONTEXT = ("model", "round", "split", "seeds", "normalizer", "note")


def write_tables(comparison: Comparison, folder: Path | None = None) -> list[Path]:
    """Write overall, sites, tasks, tests, communication, and fid and held_out if there are any: ``.csv`` and ``.tex``.

    Args:
        comparison: an opened one.
        folder: made if it is absent; default: ``tables`` in the comparison's folder.

    Returns:
        The files, in the order above.

    Raises:
        ModelError: if a run's FIDs, or scores at a held-out site, are missing or damaged.
        OSError: disk full, no permission.
    """
    folder = folder or comparison.folder / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    overall, sites, tasks = (Rows(comparison, METRIC_NAMES, by) for by in _BY)
    texts = {
        "overall.csv": _scores_csv(comparison, overall, "all"),
        "overall.tex": latex.overall(comparison, overall),
        "sites.csv": _scores_csv(comparison, sites, "site"),
        "sites.tex": latex.sites(comparison, sites),
        "tasks.csv": _scores_csv(comparison, tasks, "task"),
        "tasks.tex": latex.tasks(comparison, tasks),
        "tests.csv": _tests_csv(comparison),
        "tests.tex": latex.tests(comparison, overall),
        "communication.csv": _communication_csv(comparison),
        "communication.tex": latex.communication(comparison),
    }
    if held_out := open_held_out(comparison):
        texts["held_out.csv"] = _held_out_csv(held_out)
        texts["held_out.tex"] = latex.held_out(held_out)
    if fids := fid_rows(comparison):
        texts |= {"fid.csv": _fid_csv(comparison, fids), "fid.tex": fid_latex(comparison, fids)}
    for name in {"fid.csv", "fid.tex"} - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of a comparison that had some
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]


def comparison_table(comparison: Comparison) -> Table:
    """The table for the terminal: each method's PSNR and SSIM over the whole slice, and its test against the reference.

    The best mean of a metric, decided on the printed numbers, is bold.
    """
    found, tests = Rows(comparison, MAIN_METRICS, "all"), main_tests(comparison)
    title = f"{comparison.name}: whole slice, {about(comparison, found)}"
    columns = [(metric, EVERYTHING) for metric in MAIN_METRICS]
    sentences = remarks(comparison, found, columns) + remarks_on_tests(comparison, tests)
    table = Table(title=escape(title), caption=escape("\n".join(sentences)))
    table.add_column("method", no_wrap=True)
    table.title_justify = table.caption_justify = "left"
    for metric in MAIN_METRICS:
        for column in (heading(metric), "95 % interval", "Δ", "p"):
            table.add_column(column, justify="right")
    for method in (*comparison.methods, COPY):
        cells = [cell for metric in MAIN_METRICS for cell in _terminal_cells(found, tests, metric, method)]
        table.add_row(escape(method), *cells)
    return table


def held_out_table(found: Mapping[int, Comparison]) -> Table:
    """The table for the terminal: PSNR and SSIM at the held-out site, before and after the local fit, with tests.

    Args:
        found: by :func:`pflsynth.evaluation.held_out.open_held_out`, not empty.
    """
    one, *_ = found.values()
    rows = {(row.fit_rounds, row.method, row.metric): row for row in held_out_rows(found)}
    title = f"{one.held_out}, which did not take part: whole slice, {about(one, Rows(one, MAIN_METRICS, 'all'))}"
    table = Table(title=escape(title), caption=escape("\n".join(held_out_remarks(found))))
    table.title_justify = table.caption_justify = "left"
    for column in ("method", "rounds of local fit", "subjects"):
        table.add_column(column)
    for metric in MAIN_METRICS:
        for column in (heading(metric), "Δ", "p"):
            table.add_column(column, justify="right")
    for fit in found:
        for method in (*one.methods, COPY):
            own = [rows[fit, method, metric] for metric in MAIN_METRICS]
            fitted = DASH if method == COPY else str(fit)
            cells = [cell for row in own for cell in _held_out_cells(row)]
            table.add_row(escape(method), fitted, str(own[0].description.n), *cells)
        table.add_section()
    return table


def _held_out_cells(row: HeldOutRow) -> tuple[str, str, str]:
    mean = f"[bold]{mean_text(row)}[/]" if row.best else mean_text(row)
    return (mean, "", "") if row.test is None else (mean, difference_text(row.metric, row.test), p_text(row.test))


def _terminal_cells(found: Rows, tests: Tests, metric: str, method: str) -> tuple[str, str, str, str]:
    row, test = found.get(metric, EVERYTHING, method), tests[metric].get(method)
    if row is None:
        return NOT_COMPUTED, "", "", ""
    mean = f"[bold]{mean_text(row)}[/]" if method in found.best(metric, EVERYTHING) else mean_text(row)
    interval = interval_text(row)
    return (mean, interval, "", "") if test is None else (mean, interval, difference_text(metric, test), p_text(test))


# ---------------------------------------------------------------------------------------------------------------- CSV


def _scores_csv(comparison: Comparison, found: Rows, by: By) -> str:
    """One line for each metric, place and method."""
    places = {"all": (), "site": ("site",), "task": ("site", "task")}[by]
    columns = ("method", *places, "metric", "subjects", "mean", "sd", "low", "high", "seed_sd", *_CONTEXT)
    lines = []
    for metric in METRIC_NAMES:
        for scope in scopes(comparison, by):
            for method in (*comparison.methods, COPY):
                line = _context(comparison, method, metric=metric, site=scope[0], task=scope[1])
                row = found.get(metric, scope, method)
                if row is None:
                    line["note"] = _joined(line["note"], NOT_COMPUTED)
                else:
                    own = row.description
                    line |= {"subjects": own.n, "mean": own.mean, "sd": own.deviation, "low": own.low, "high": own.high}
                    line["seed_sd"] = row.seed_deviation
                lines.append(line)
    return _csv(columns, lines)


def _tests_csv(comparison: Comparison) -> str:
    """The reference against every method, over all sites (no site named) and at each; corrected within each of them."""
    columns = ("reference", "method", "site", "metric", "pairs", "difference", "effect", "p", "p_holm", *_CONTEXT)
    reference = comparison.reference
    lines = []
    for metric in METRIC_NAMES:
        for site, _ in (EVERYTHING, *scopes(comparison, "site")):
            for method, test in against(comparison, metric, reference, site):
                line = _context(comparison, reference, reference=reference, site=site, metric=metric)
                line |= {"method": method, "round": result_rounds(comparison), "pairs": test.n}
                line |= {"difference": None if math.isnan(test.difference) else test.difference}
                line |= {"effect": test.effect, "p": test.p, "p_holm": test.p_holm}
                line["note"] = _joined(comparison.notes.get(method), test.reason)
                lines.append(line)
    return _csv(columns, lines)


def _held_out_csv(found: Mapping[int, Comparison]) -> str:
    """One line for each metric, number of rounds of local fit and method, with the reference's test against it."""
    described = ("subjects", "mean", "sd", "low", "high", "seed_sd")
    tested = ("reference", "pairs", "difference", "effect", "p", "p_holm")
    lines = []
    for row in held_out_rows(found):
        own, test, comparison = row.description, row.test, found[row.fit_rounds]
        line = _context(comparison, row.method, site=row.site, metric=row.metric)
        line |= {"fit_rounds": row.fit_rounds, "seed_sd": row.seed_deviation}
        line |= {"subjects": own.n, "mean": own.mean, "sd": own.deviation, "low": own.low, "high": own.high}
        if test is not None:
            line |= {"reference": comparison.reference, "pairs": test.n, "effect": test.effect}
            line |= {"difference": None if math.isnan(test.difference) else test.difference}
            line |= {"p": test.p, "p_holm": test.p_holm, "note": _joined(line["note"], test.reason)}
        lines.append(line)
    return _csv(("method", "site", "fit_rounds", "metric", *described, *tested, *_CONTEXT), lines)


def _fid_csv(comparison: Comparison, fids: Sequence[FidRow]) -> str:
    """One line for each site, task and method; ``fid`` is the mean over seeds. There are no tests."""
    columns = ("method", "site", "task", "images", "features", "fid", "seed_sd", *_CONTEXT, "fid_sha256")
    lines = []
    for row in fids:
        line = _context(comparison, row.method, site=row.site, task=row.task)
        line |= {"images": row.images, "features": row.features, "fid": row.mean, "seed_sd": row.seed_deviation}
        lines.append(line | {"note": _joined(line["note"], row.note), "fid_sha256": row.fid_sha256})
    return _csv(columns, lines)


def _communication_csv(comparison: Comparison) -> str:
    """What each trainer of each method does, sends and receives; seconds: mean over seeds, of all trainers together."""
    columns = ("method", "trainer", "rounds", "steps", "slices", *_MEGABYTES, "seconds", "note")
    lines: list[dict[str, Any]] = []
    for method in comparison.methods:
        own, note = method_budget(comparison, method), comparison.notes.get(method, "")
        all_of_them = {"method": method, "trainer": ALL_TRAINERS, "rounds": own.rounds, "note": note}
        traffic = own.traffic()
        if own.steps is None or own.slices is None or traffic is None:
            lines.append(all_of_them | {"note": _joined(note, NOT_COMPUTED)})
            continue
        for trainer, steps in own.steps.items():
            line = {"method": method, "trainer": trainer, "rounds": own.rounds, "note": note}
            line |= {"steps": steps, "slices": own.slices[trainer]}
            lines.append(line | _megabytes(own.traffic(trainer)))
        all_of_them |= {"steps": own.all_steps, "slices": own.all_slices, "seconds": mean_seconds(comparison, method)}
        lines.append(all_of_them | _megabytes(traffic))
    return _csv(columns, lines)


def _megabytes(traffic: Traffic | None) -> dict[str, float | None]:
    """MB by their columns; empty where they were not recorded."""
    return (
        {} if traffic is None else dict(zip(_MEGABYTES, (traffic.sent, traffic.received, traffic.in_all), strict=True))
    )


def _context(comparison: Comparison, method: str, **where: str | None) -> dict[str, Any]:
    """What every line says of its numbers; copying has neither round nor seeds."""
    trained = method != COPY
    return {
        "method": method,
        **where,
        "model": PERSONALISED if trained else COPY,
        "round": result_rounds(comparison, method),
        "split": comparison.split,
        "seeds": " ".join(map(str, comparison.seeds)) if trained else "",
        "normalizer": comparison.config.intensity.normalizer,
        "note": comparison.notes.get(method, ""),
    }


def _joined(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """Empty where there is nothing to say; floats with six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for line in lines:
        values = (line.get(column) for column in columns)
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    return text.getvalue()
