"""What people see in a terminal: progress bars, lists of findings, tables of scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pflsynth.config import SPLITS
from pflsynth.data.plan import SitePlan
from pflsynth.data.prepare import PrepareReport
from pflsynth.estimate import Estimate
from pflsynth.evaluation.evaluate import COPY, PERSONALISED, Summary
from pflsynth.evaluation.feature_files import FidScore
from pflsynth.quality.findings import Level
from pflsynth.quality.site import SiteCheck

NOT_A_TERMINAL_WIDTH = 130
MANY_SUBJECTS = 40
MANY_NOTES = 20

_MARKS: dict[Level, str] = {"ok": "[green]✓[/]", "suspicious": "[yellow]![/]", "wrong": "[red]✗[/]"}


class Terminal:
    """Where a verb writes: texts and tables for people, or one JSON document for machines (``--json``)."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        width = None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH
        self._out = Console(stderr=as_json, width=width, highlight=False, soft_wrap=False)
        self._progress = Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one text, as it is."""
        self._out.print(text, markup=False, soft_wrap=True)

    def notes(self, site: str, notes: Sequence[str]) -> None:
        """Print the notes about a site; of many, the first ones."""
        for note in notes[:MANY_NOTES]:
            self.say(f"{site}: {note}")
        if len(notes) > MANY_NOTES:
            self.say(f"{site}: and {len(notes) - MANY_NOTES} more notes (--json prints all)")

    def table(self, table: Table) -> None:
        """Print a table."""
        self._out.print(table)

    def finding(self, level: Level, text: str) -> None:
        """Print one line of a ✓/!/✗ list."""
        self._out.print(f"{_MARKS[level]} {escape(text)}", soft_wrap=True)

    def document(self, content: object) -> None:
        """Print the JSON document of ``--json``; nothing without it."""
        if self.as_json:
            print(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str))

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress bar on stderr; silent when that is not a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._progress, disable=not self._progress.is_terminal, transient=True) as bar:
            yield bar

    def counter(self, bar: Progress, text: str) -> Callable[[int, int], None]:
        """A new line of a progress bar, as a function of (done, total)."""
        task = bar.add_task(text, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return show


class TrainingProgress:
    """Draws a bar over rounds and one over the steps of the current site, and prints a line per round."""

    def __init__(self, terminal: Terminal, bar: Progress, rounds: int, prefix: str = ""):
        """Begin the bars; ``prefix`` stands before each line."""
        self._terminal, self._bar, self._rounds, self._prefix = terminal, bar, rounds, prefix
        self._round_bar = bar.add_task("rounds", total=rounds)
        self._site_bar: TaskID = bar.add_task("site", total=None)

    def on_site(self, round_number: int, site: str, steps: int) -> None:
        """Begin a site's bar."""
        self._bar.update(self._round_bar, completed=round_number - 1)
        self._bar.reset(self._site_bar, description=f"round {round_number}, {site}", total=steps)

    def on_step(self, done: int, steps: int) -> None:
        """Advance the site's bar."""
        self._bar.update(self._site_bar, completed=done)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Print the mean L1 of every site, refused updates, and validation scores if there are any."""
        number = record["round"]
        self._bar.update(self._round_bar, completed=number)
        parts = []
        for site, losses in record["losses"].items():
            values = [value for name, value in losses.items() if name.startswith("l1/")]
            parts.append(f"{site} {sum(values) / len(values):.3f}")
        self._terminal.say(f"{self._prefix}round {number:>3}/{self._rounds}  mean L1: {'  '.join(parts)}")
        for reason in record["refused"].values():
            self._terminal.finding("wrong", f"{self._prefix}round {number}: refused: {reason}")
        if "validation_psnr" in record:
            scores = {site: score for site, score in record["validation_psnr"].items() if score is not None}
            texts = "  ".join(f"{site} {score:.2f} dB" for site, score in scores.items())
            self._terminal.say(f"{self._prefix}              validation PSNR within the mask: {texts}")


def score_table(summaries: Sequence[Summary], title: str) -> Table:
    """Mean ± standard deviation over subjects per site and task, with copying the source and the gain over it."""
    table = Table(title=title, title_justify="left")
    for name in ("site", "task", "subjects"):
        table.add_column(name)
    columns = (("psnr", "PSNR dB"), ("ssim", "SSIM"), ("psnr_mask", "PSNR in mask"), ("ssim_mask", "SSIM in mask"))
    for _, heading in columns:
        table.add_column(heading, justify="right")
    for heading in ("copy dB", "gain dB"):
        table.add_column(heading, justify="right")
    floors = {(row.site, row.task): row for row in summaries if row.model == COPY}
    for row in summaries:
        if row.model == COPY:
            continue
        floor = floors[row.site, row.task].mean["psnr"]
        cells = [_with_deviation(row, name, 2 if name.startswith("psnr") else 3) for name, _ in columns]
        gain = row.mean["psnr"] - floor
        table.add_row(row.site, row.task, str(row.subjects), *cells, f"{floor:.2f}", f"{gain:+.2f}")
    return table


def feature_table(summaries: Sequence[Summary], fids: Sequence[FidScore]) -> Table:
    """LPIPS (mean ± standard deviation over subjects) and FID of each site and task; columns of what was computed."""
    notes = dict.fromkeys(f"FID: {row.note}" for row in fids if row.note)
    table = Table("site", "task", title="Less is better", caption=escape("\n".join(notes)))
    table.title_justify = table.caption_justify = "left"
    lpips = {
        (row.site, row.task, row.model): _with_deviation(row, "lpips", 3) for row in summaries if "lpips" in row.mean
    }
    values = {(row.site, row.task, row.model): "–" if row.fid is None else f"{row.fid:.2f}" for row in fids}
    slices = {(row.site, row.task): str(row.images) for row in fids}
    headings = [f"{copy}{name}" for name, own in (("LPIPS", lpips), ("FID", values)) if own for copy in ("", "copy ")]
    for heading in (*headings, *(["slices"] if fids else [])):
        table.add_column(heading, justify="right")
    for place in dict.fromkeys((row.site, row.task) for row in summaries):
        cells = [own[(*place, model)] for own in (lpips, values) if own for model in (PERSONALISED, COPY)]
        table.add_row(*place, *cells, *([slices[place]] if fids else []))
    return table


def show_check(terminal: Terminal, check: SiteCheck, everything: bool) -> None:
    """Print what was found at a site: a table of its subjects, then every reason.

    Args:
        terminal: where to.
        check: the site's.
        everything: list the subjects that are well too, even if there are many.
    """
    shown = [own for own in check.subjects if own.findings or everything or len(check.subjects) <= MANY_SUBJECTS]
    table = Table("", "subject", "contrasts", "split", "grid", "to look at", title=check.site, title_justify="left")
    for own in shown:
        looks = ", ".join(dict.fromkeys(" ".join((finding.check, *finding.contrasts)) for finding in own.findings))
        level: Level = "wrong" if not own.usable else "suspicious" if own.findings else "ok"
        split = check.splits.get(own.subject.person, "")
        table.add_row(_MARKS[level], own.subject.name, " ".join(own.subject.volumes), split, own.facts, looks)
    if shown:
        terminal.table(table)
    if len(shown) < len(check.subjects):
        terminal.finding("ok", f"site {check.site}: {len(check.subjects) - len(shown)} more subjects are well (--all)")
    for finding in check.every_finding:
        for line in finding.text.splitlines():
            terminal.finding(finding.level, line)


def show_estimate(terminal: Terminal, found: Estimate, rounds: int, device: str, threads: int) -> None:
    """Print how long a round takes and what memory it needs.

    Args:
        terminal: where to.
        found: what was measured and extrapolated.
        rounds: of the training.
        device: the configured one.
        threads: the configured number.
    """
    measured = found.measured
    for name, own in found.trainers.items():
        what = f"{own.slices} training slices, {own.steps} steps of {measured.step_seconds:.3g} s"
        terminal.finding("ok", f"{name}: {what}: about {duration(own.seconds)} a round")
    if len(found.trainers) > 1:
        terminal.finding("ok", f"a round of all in turn takes about {duration(found.round_seconds)} here")
    whole = duration(rounds * found.round_seconds)
    where = f"{device}, {threads} thread(s)" if device == "cpu" else device
    terminal.finding("ok", f"{rounds} rounds take about {whole} ({where}; validation and resuming not counted)")
    images = found.peak_memory_mb - measured.memory_mb
    memory = f"{measured.memory_mb:.0f} MB, and {images:.0f} MB of mapped images that the system may take back"
    if measured.device_memory_mb is not None:
        memory += f"; {measured.device_memory_mb:.0f} MB of the GPU"
    terminal.finding("ok", f"a training needs about {memory}")
    if len(measured.threads) > 1:
        tried = ", ".join(f"{number}: {seconds:.3g} s" for number, seconds in measured.threads.items())
        advice = f"threads = {found.best_threads}"
        advice += (
            " is right here" if found.best_threads == threads else " would be right here: fix it in the configuration"
        )
        terminal.finding("ok", f"a step by number of threads: {tried}; {advice}")


def duration(seconds: float) -> str:
    """A length of time in words: "0.8 s", "45 s", "12 min", "3.4 h", "2.5 days"."""
    units = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))
    unit, length = next((own for own in units if seconds >= 2 * own[1]), ("s", 1.0))
    value = seconds / length
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def plan_table(plans: Mapping[str, SitePlan]) -> Table:
    """What ``prepare --dry-run`` tells of each site."""
    table = Table("site", "layout", "subjects", "finished", "bad", *SPLITS, title="to prepare", title_justify="left")
    for site, plan in plans.items():
        counts = (str(len(plan.subjects[split])) for split in SPLITS)
        table.add_row(site, plan.layout, str(plan.images), str(plan.finished), str(len(plan.bad)), *counts)
    return table


def preparation_table(reports: Mapping[str, PrepareReport]) -> Table:
    """Subjects and slices of each site and task in each split, and how many volumes were registered."""
    title = "prepared: subjects (slices of the site)"
    table = Table("site", "task", *SPLITS, "registered", title=title, title_justify="left")
    for site, report in reports.items():
        moved = f"{report.registered} of {report.registered + report.untouched}"
        for task, counts in report.tasks.items():
            table.add_row(site, task, *(f"{counts[split]} ({report.slices[split]})" for split in SPLITS), moved)
            moved = ""
    return table


def _with_deviation(row: Summary, name: str, digits: int) -> str:
    deviation = row.deviation[name]
    text = f"{row.mean[name]:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"
