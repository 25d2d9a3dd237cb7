"""The files of a comparison: ``comparison.json`` and the runs with their scores, read and checked.

All runs must have had one agreement and one budget, and must have been evaluated on the same data.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pflsynth.canonical import differences
from pflsynth.config import FederationConfig, SplitName
from pflsynth.errors import ModelError
from pflsynth.evaluation.costs import Cost
from pflsynth.evaluation.evaluate import COPY, PERSONALISED, Score
from pflsynth.evaluation.feature_files import FeatureWeights, common_weights
from pflsynth.evaluation.metrics import HIGHER_IS_BETTER, SCORE_NAMES
from pflsynth.files import read_json
from pflsynth.runs import RunDirectory

FORMAT = 1
"""Format of ``comparison.json``."""

RUN_KEYS = ("method", "seed", "name")
"""Keys of the agreement in which the runs of a comparison differ."""

METRIC_NAMES = tuple(column.name for column in fields(Score) if column.name in HIGHER_IS_BETTER)
"""The metrics of a :class:`Score`, in the order of its columns."""

_KINDS = get_type_hints(Score)
_RUN_FILES = ("federation.toml", "agreement.sha256", "local.json", "state.json", "metrics.jsonl", "timings.jsonl")
_EVALUATE = "restore it, or evaluate the run again"
_SAME, _TINY = 1e-6, 1e-9  # relative, absolute: the floor's last digits may differ between machines


class ComparisonRecord(BaseModel):
    """The content of ``comparison.json``.

    ``agreement`` is that of every run, without :data:`RUN_KEYS`; tables tell ``notes``; ``weights``: of LPIPS and FID.
    ``fit_rounds`` are those that a held-out site got; files of earlier versions do not tell.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1]
    name: str
    agreement: dict[str, Any]
    methods: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    split: SplitName
    held_out: str | None = None
    fit_rounds: PositiveInt | None = None
    prepared: Path
    costs: dict[str, Cost] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    weights: FeatureWeights = FeatureWeights()


@dataclass(frozen=True)
class Entry:
    """The scores of one method and seed at the round that is the run's result, of the personalised models.

    ``copy`` has neither seed nor run nor config, and round 0. ``cost`` is ``None`` where it was not recorded.
    """

    method: str
    seed: int | None
    run: Path | None
    round: int
    scores: tuple[Score, ...]
    config: FederationConfig | None = None
    cost: Cost | None = None


def run_folder(folder: Path, method: str, seed: int) -> Path:
    """The run directory of one method and seed of a comparison."""
    return folder / "runs" / method / f"seed-{seed}"


def base_agreement(config: FederationConfig) -> dict[str, Any]:
    """The agreement of a run without :data:`RUN_KEYS`, which all runs of a comparison have in common."""
    return {key: value for key, value in config.agreement().items() if key not in RUN_KEYS}


def read_record(folder: Path) -> ComparisonRecord:
    """Read ``comparison.json`` of a comparison.

    Raises:
        ModelError: if the folder has none, or it is damaged or newer, or its methods had different budgets.
    """
    path = folder / "comparison.json"
    if not path.is_file():
        raise ModelError(f"{folder}: is not a comparison (it has no comparison.json); make one with: pflsynth compare")
    remedy = "restore it, or run pflsynth compare again"
    try:
        content = read_json(path)
    except ModelError as failure:
        raise ModelError(f"{failure}; {remedy}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise ModelError(f"{path}: is damaged (it holds no table with a format); {remedy}")
    if content["format"] != FORMAT:
        raise ModelError(
            f"{path}: has format {content['format']}, this pflsynth reads {FORMAT}: "
            "it was written by a newer pflsynth; update pflsynth"
        )
    try:
        record = ComparisonRecord.model_validate(content)
    except ValidationError as failure:
        first = failure.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: is damaged at {key} ({first['msg']}); {remedy}") from None
    for key, names in (("methods", record.methods), ("seeds", record.seeds)):
        if len(set(names)) < len(names):
            raise ModelError(f"{path}: is damaged ({key} names one twice: {', '.join(map(str, names))}); {remedy}")
    _check_budgets(path, record.costs)
    return record


def open_entries(folder: Path, record: ComparisonRecord) -> tuple[Entry, ...]:
    """Open all runs of a comparison: an entry for each method and seed, and last the one of ``copy``.

    Raises:
        ModelError: if a run is missing, unfinished, or lost a file; if it was trained under another agreement; if runs
            were evaluated on different data, or by different feature networks.
    """
    runs = [_open_run(folder, record, method, seed) for method in record.methods for seed in record.seeds]
    evaluations = (RunDirectory(run.run).evaluation_folder(record.split) for run in runs if run.run)
    common_weights(evaluations, {folder: record.weights})
    return with_floor(runs)


def with_floor(runs: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries with the personalised scores of runs, and last the one of ``copy``, taken from the first run.

    Args:
        runs: entries with all scores, those of copying too.

    Raises:
        ModelError: if the runs were evaluated on different data.
    """
    for other in runs[1:]:
        _check_same_data(runs[0], other)
    floor = tuple(replace(score, round=0) for score in runs[0].scores if score.model == COPY)
    return (
        *(replace(run, scores=tuple(own for own in run.scores if own.model == PERSONALISED)) for run in runs),
        Entry(COPY, None, None, 0, floor),
    )


def read_scores(path: Path) -> list[Score]:
    """Read a ``scores.csv`` that :func:`pflsynth.evaluation.evaluate.write_scores` wrote.

    Raises:
        ModelError: naming the line, if the file is missing, damaged, or has other columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file; {_EVALUATE}") from None
    except UnicodeDecodeError as failure:
        raise ModelError(f"{path}: is damaged ({failure}); {_EVALUATE}") from None
    wanted = [column.name for column in fields(Score)]
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    scores: dict[tuple[str, ...], Score] = {}
    try:
        header = next(lines, [])
        if header != wanted:
            raise ValueError(f"the columns are {','.join(header) or 'missing'}, but {','.join(wanted)} are wanted")
        for line in lines:
            if len(line) != len(wanted):
                raise ValueError(f"there are {len(line)} values, but {len(wanted)} are wanted")
            score = _score(dict(zip(wanted, line, strict=True)))
            key = (score.model, *_case(score))
            if key in scores:
                raise ValueError(f"{_named(_case(score))} is there twice")
            scores[key] = score
    except (ValueError, csv.Error) as failure:
        raise ModelError(f"{path}, line {max(lines.line_num, 1)}: {failure}; {_EVALUATE}") from None
    if not text.endswith("\n"):
        raise ModelError(f"{path}, line {lines.line_num}: is cut short; {_EVALUATE}")
    if not scores:
        raise ModelError(f"{path}: holds no scores; {_EVALUATE}")
    return list(scores.values())


def _score(line: Mapping[str, str]) -> Score:
    """A score from the texts of its columns; raises ValueError, naming the column."""
    values: dict[str, Any] = dict(line)
    for name, kind in _KINDS.items():
        if kind is str:
            continue
        if line[name] == "" and kind not in (int, float):
            values[name] = None  # not computed
            continue
        try:
            values[name] = int(line[name]) if kind is int else float(line[name])
        except ValueError:
            values[name] = math.nan
        if math.isnan(values[name]):
            raise ValueError(f'{name} is "{line[name]}", which is not a number')
    if values["model"] not in (PERSONALISED, COPY):
        raise ValueError(f'model is "{values["model"]}", but {PERSONALISED} or {COPY} is wanted')
    return Score(**values)


def _open_run(folder: Path, record: ComparisonRecord, method: str, seed: int) -> Entry:
    """A run with all its scores, those of copying too."""
    path = run_folder(folder, method, seed)
    if not path.is_dir():
        raise ModelError(f"{path}: is missing; restore it, or run pflsynth compare again, which trains it")
    for name in _RUN_FILES:
        if not (path / name).is_file():
            raise ModelError(f"{path / name}: is missing; restore it, or remove {path} and run pflsynth compare again")
    run, config = RunDirectory.open(path)
    wanted = {**record.agreement, "method": method, "seed": seed}
    found = {**base_agreement(config), "method": config.method, "seed": config.seed}
    if differing := _differing(wanted, found, "in comparison.json", "in the run"):
        raise ModelError(
            f"{path}: was trained under another agreement than this comparison ({differing}); "
            "move it away and run pflsynth compare again, or compare into another folder"
        )
    number, _ = run.result(config)
    table = run.evaluation_folder(record.split) / "scores.csv"
    if not table.is_file():
        raise ModelError(f"{table}: is missing; restore it, or run pflsynth compare again, which evaluates the run")
    scores = read_scores(table)
    check_scores(table, scores, config, record.split, number)
    return Entry(method, seed, path, number, tuple(scores), config, record.costs.get(method))


def check_scores(
    table: Path, scores: Sequence[Score], config: FederationConfig, split: str, number: int, remedy: str = _EVALUATE
) -> None:
    """Raise ModelError unless all scores are of a run's sites, tasks, result and split, with a floor for each."""
    served = {(site, str(task)) for site in config.sites for task in config.sites[site].tasks}
    for score in scores:
        if (score.site, score.task) not in served:
            raise ModelError(f"{table}: site {score.site} with task {score.task} is not of this run; {remedy}")
        if (score.split, score.round) != (split, number):
            raise ModelError(
                f"{table}: is of the {score.split} split after round {score.round}, but the {split} split after round "
                f"{number} is wanted; {remedy}"
            )
    personalised, floor = _cases(scores, PERSONALISED), _cases(scores, COPY)
    for case in sorted(personalised.keys() ^ floor.keys()):
        model = COPY if case in personalised else PERSONALISED
        raise ModelError(f"{table}: has no {model} score of {_named(case)}; {remedy}")


def _check_same_data(first: Entry, other: Entry) -> None:
    """Raise ModelError unless two runs scored the same cases, and copying the source scored the same in both."""
    remedy = "evaluate both on the same prepared data"
    one, two = _cases(first.scores, COPY), _cases(other.scores, COPY)
    for case in sorted(one.keys() ^ two.keys()):
        has, lacks = (first, other) if case in one else (other, first)
        raise ModelError(f"{lacks.run}: has no score of {_named(case)}, which {has.run} has; {remedy}")
    for case, score in one.items():
        for name in ("slices", *SCORE_NAMES):  # LPIPS differs between devices
            here, there = getattr(score, name), getattr(two[case], name)
            if not math.isclose(here, there, rel_tol=_SAME, abs_tol=_TINY):
                raise ModelError(
                    f"{other.run}: {name} of copying the source is {there} for {_named(case)}, but {here} in "
                    f"{first.run}; {remedy}"
                )


def _case(score: Score) -> tuple[str, str, str, str]:
    return score.site, score.task, score.subject, score.session


def _cases(scores: Iterable[Score], model: str) -> dict[tuple[str, str, str, str], Score]:
    return {_case(score): score for score in scores if score.model == model}


def _named(case: Iterable[str]) -> str:
    return " ".join(part for part in case if part)


def _check_budgets(path: Path, costs: Mapping[str, Cost]) -> None:
    """Every method must see as many slices as the first one, and those with the same trainers take as many steps."""
    for method, cost in list(costs.items())[1:]:
        first, base = next(iter(costs.items()))
        one, other = (own.model_dump(include={"steps", "slices"}) for own in (base, cost))
        if base.steps.keys() != cost.steps.keys():  # a centralised method has one trainer
            one, other = ({"slices": sum(own.slices.values())} for own in (base, cost))
        if differing := _differing(one, other, f"for {first}", f"for {method}"):
            raise ModelError(
                f"{path}: {first} and {method} had different budgets ({differing}); compare methods that were given "
                "the same rounds, steps and slices"
            )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], here: str, there: str) -> str:
    """The keys that differ with both values, in words; empty if there are none."""
    return "; ".join(f"{key} is {left!r} {here}, {right!r} {there}" for key, left, right in differences(one, other))
