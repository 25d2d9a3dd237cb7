"""FIDs of a comparison: read from its runs, and as tables. LPIPS is a score of subjects, and stands in their tables.

A FID is one number for all subjects of a site and task, so it has no spread over people and no p-value.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from pflsynth.errors import ModelError
from pflsynth.evaluation import latex
from pflsynth.evaluation.comparison import NOT_COMPUTED, Comparison, Entry, scopes
from pflsynth.evaluation.evaluate import COPY, PERSONALISED
from pflsynth.evaluation.feature_files import FeatureWeights, FidScore, common_weights, read_fids, read_weights
from pflsynth.evaluation.table_facts import EVERYTHING, MAIN_METRICS, Rows, about, mean_text, printed, remarks
from pflsynth.runs import RunDirectory

DECIMALS = 2

_Key = tuple[str, str, str]  # site, task, model


@dataclass(frozen=True)
class FidRow:
    """FID of a method, or of ``copy``, at a site and task: the mean over its seeds.

    ``mean`` is ``None`` where a seed has none, and ``note`` says why. ``seed_deviation`` is the standard deviation
    (n - 1) between seeds; ``None`` with one seed.
    """

    method: str
    site: str
    task: str
    images: int
    features: int
    mean: float | None
    seed_deviation: float | None
    note: str | None
    fid_sha256: str

    @property
    def text(self) -> str:
        """The mean as printed, with ± the deviation between seeds where there are several."""
        if self.mean is None:
            return NOT_COMPUTED
        mean = printed(self.mean, DECIMALS)
        return mean if self.seed_deviation is None else f"{mean} ± {printed(self.seed_deviation, DECIMALS)}"


def comparison_weights(comparison: Comparison) -> FeatureWeights:
    """The weights that LPIPS and FID of all runs were computed with.

    Raises:
        ModelError: if a run's file is damaged, or runs have different weights.
    """
    runs = [RunDirectory(entry.run) for entry in comparison.entries if entry.run is not None]
    return common_weights(run.evaluation_folder(comparison.split) for run in runs)


def fid_rows(comparison: Comparison) -> list[FidRow]:
    """FIDs at each site and task, of every method and then ``copy``; methods with a seed that lacks them are left out.

    Raises:
        ModelError: if a run's ``fid.csv`` is missing, damaged, or not of its result.
    """
    found: dict[str, list[Mapping[_Key, FidScore]]] = {}
    for entry in comparison.entries:
        if entry.run is not None:
            found.setdefault(entry.method, []).append(_fids(comparison, entry))
    floor = next((own for runs in found.values() for own in runs if own), {})
    rows = []
    for site, task in scopes(comparison, "task"):
        assert site is not None  # scopes of tasks name both
        assert task is not None
        for method in comparison.methods:
            if all(found[method]):
                rows.append(_row(method, [own[site, task, PERSONALISED] for own in found[method]]))
        if floor:
            rows.append(_row(COPY, [floor[site, task, COPY]]))
    return rows


def best(rows: Sequence[FidRow], site: str, task: str) -> frozenset[str]:
    """The methods with the lowest FID at a site and task, as it is printed."""
    own = {row.method: row.mean for row in rows if (row.site, row.task) == (site, task)}
    means = {method: printed(mean, DECIMALS) for method, mean in own.items() if mean is not None}
    lowest = min(map(float, means.values()), default=math.nan)
    return frozenset(method for method, mean in means.items() if float(mean) == lowest)


def fid_sentences(rows: Sequence[FidRow]) -> list[str]:
    """What FIDs are, by which network, and what to know of the numbers."""
    images = sorted({row.images for row in rows})
    counts = f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}"
    sentences = [
        f"FID: Fréchet inception distance between {counts} real and as many synthesised slices; less is better.",
        "It is one number for all subjects of a site and task, so there is no spread over subjects and no p-value.",
        f"Features by the network with SHA-256 {rows[0].fid_sha256}.",
    ]
    if any(row.seed_deviation is not None for row in rows):
        sentences.append("Mean ± standard deviation between seeds.")
    notes = dict.fromkeys(row.note for row in rows if row.note is not None)
    return sentences + [f"{note[0].upper()}{note[1:]}." for note in notes]


def fid_latex(comparison: Comparison, rows: Sequence[FidRow]) -> str:
    """One table for each site: methods by tasks, the lowest FID of a task in bold."""
    found, people = {(row.site, row.task, row.method): row for row in rows}, Rows(comparison, MAIN_METRICS[:1], "task")
    tables = []
    for site, _ in scopes(comparison, "site"):
        own = [scope for scope in scopes(comparison, "task") if scope[0] == site]
        lines = []
        for method in (*comparison.methods, COPY):
            cells = []
            for _, task in own:
                row = found.get((str(site), str(task), method))
                bold = method in best(rows, str(site), str(task))
                known = row is not None and row.mean is not None
                cells.append(latex.numbers(row.text, bold) if row and known else latex.plain(NOT_COMPUTED))
            lines.append([latex.plain(method), *cells])
        caption = " ".join(
            (
                f"FID: {about(comparison, people, own)}.",
                *fid_sentences([row for row in rows if row.site == site]),
                "The best of a column in bold.",
                *remarks(comparison, people, []),
            )
        )
        columns = ("Method", *(str(task) for _, task in own))
        tables.append(latex.table(caption, f"tab:{comparison.name}-fid-{site}", columns, lines))
    return latex.file_of(tables)


def feature_table(comparison: Comparison) -> Table | None:
    """The table for the terminal: LPIPS over all sites, and FID at each site and task; None if neither was computed."""
    lpips, fids = Rows(comparison, ("lpips",), "all"), fid_rows(comparison)
    has_lpips = lpips.subjects(EVERYTHING) > 0
    if not fids and not has_lpips:
        return None
    sentences = ["LPIPS: mean ± standard deviation over subjects of all sites; less is better."] if has_lpips else []
    sentences += fid_sentences(fids) if fids else []
    table = Table(caption=escape("\n".join(sentences)))
    table.caption_justify = "left"
    table.add_column("method", no_wrap=True)
    places = list(dict.fromkeys((row.site, row.task) for row in fids))
    for heading in (*(["LPIPS"] if has_lpips else []), *(f"FID {site} {task}" for site, task in places)):
        table.add_column(escape(heading), justify="right")
    found = {(row.site, row.task, row.method): row.text for row in fids}
    for method in (*comparison.methods, COPY):
        row = lpips.get("lpips", EVERYTHING, method)
        cells = [NOT_COMPUTED if row is None else mean_text(row)] if has_lpips else []
        table.add_row(escape(method), *cells, *(found.get((*place, method), NOT_COMPUTED) for place in places))
    return table


def _fids(comparison: Comparison, entry: Entry) -> Mapping[_Key, FidScore]:
    """The FIDs of a run, by site, task and model: one for each that was scored, or none at all."""
    assert entry.run is not None  # copying has no run
    folder = RunDirectory(entry.run).evaluation_folder(comparison.split)
    weights = read_weights(folder)
    if weights.fid is None:
        return {}
    fids = {(own.site, own.task, own.model): own for own in read_fids(folder)}
    wanted = {(score.site, score.task, model) for score in entry.scores for model in (PERSONALISED, COPY)}
    told = {(own.split, own.round, own.fid_sha256) for own in fids.values()}
    if fids.keys() != wanted or told != {(comparison.split, entry.round, weights.fid)}:
        raise ModelError(f"{folder / 'fid.csv'}: is not of the run's result; restore it, or evaluate the run again")
    return fids


def _row(method: str, seeds: Sequence[FidScore]) -> FidRow:
    first, values = seeds[0], [own.fid for own in seeds]
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    return FidRow(
        method,
        first.site,
        first.task,
        first.images,
        first.features,
        mean=statistics.fmean(known) if whole else None,
        seed_deviation=statistics.stdev(known) if whole and len(known) > 1 else None,
        note=next((own.note for own in seeds if own.note is not None), None),
        fid_sha256=first.fid_sha256,
    )
