"""Scores of personalised models: per subject, then mean and standard deviation over the subjects of a site and task."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from pflsynth.config import SplitName, Task
from pflsynth.data.manifest import PreparedSubject
from pflsynth.data.slices import SliceStore
from pflsynth.errors import DataError, ModelError
from pflsynth.evaluation.metrics import SCORE_NAMES, psnr, slice_scores, to_unit
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.files import write_atomic
from pflsynth.runs import RunDirectory

COPY = "copy"
PERSONALISED = "personalised"


@dataclass(frozen=True)
class Score:
    """Scores of one session and task: means over the slices that show the mask (see ``evaluation.metrics``)."""

    site: str
    task: str
    subject: str
    session: str
    split: str
    model: str
    round: int
    slices: int
    psnr: float
    psnr_mask: float
    psnr_field: float
    ssim: float
    ssim_mask: float
    ssim_field: float
    mae: float
    mae_mask: float
    nrmse: float
    nrmse_mask: float
    lpips: float | None = None


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of one score over the subjects of a site, task and model."""

    site: str
    task: str
    model: str
    subjects: int
    mean: dict[str, float]
    deviation: dict[str, float | None]


def score_slices(target: np.ndarray, image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Means of all scores over the slices that show the mask.

    Args:
        target: (S, H, W) in [-1, 1].
        image: (S, H, W) in [-1, 1].
        mask: (S, H, W) bool.
    """
    scores = [slice_scores(*triple) for triple in _shown(target, image, mask)]
    return {name: float(np.mean([score[name] for score in scores])) for name in SCORE_NAMES}


def evaluate_site(model: PersonalisedModel, store: SliceStore, split: SplitName) -> list[Score]:
    """Score a site's personalised model, and copying the source as a floor, on every subject and task of a split."""
    scores = []
    for subject, task in _served(model, store, split):
        mask = store.mask(subject.name)
        shown = int(mask.any(axis=(1, 2)).sum())
        source, target = (store.slices(subject.name, contrast) for contrast in (task.source, task.target))
        for name, image in ((PERSONALISED, model.synthesize(source, task)), (COPY, source)):
            values = score_slices(target, image, mask)
            person, session = subject.person, subject.session
            scores.append(Score(model.site, str(task), person, session, split, name, model.round, shown, **values))
    return scores


def validation_psnr(model: PersonalisedModel, store: SliceStore) -> float | None:
    """Mean PSNR within the mask over tasks and validation subjects of a site; ``None`` without such subjects."""
    by_task: dict[Task, list[float]] = {}
    for subject, task in _served(model, store, "validation"):
        output = model.synthesize(store.slices(subject.name, task.source), task)
        triples = _shown(store.slices(subject.name, task.target), output, store.mask(subject.name))
        by_task.setdefault(task, []).append(float(np.mean([psnr(*triple) for triple in triples])))
    return statistics.fmean(map(statistics.fmean, by_task.values())) if by_task else None


def evaluate_run(
    run_folder: Path,
    split: SplitName,
    prepared: Path | None = None,
    device: str | None = None,
    on_site: Callable[[str], None] | None = None,
) -> list[Score]:
    """Score every site whose model a finished run keeps, on one split.

    Args:
        run_folder: made by ``pflsynth train``.
        split: ``validation``, ``test`` or ``train``.
        prepared: folder of prepared data; default: the one that the run was trained with.
        device: torch device; default: the run's.
        on_site: called with each site's name before it is evaluated.

    Raises:
        DataError: if the prepared data is missing or not the one of the run, or no site has subjects in the split.
        ModelError: if the run is not finished or its models are damaged.
    """
    run, config = RunDirectory.open(run_folder)
    sites = run.sites(config)
    if not sites:
        raise ModelError(f"{run_folder}: keeps no site's model, as a coordinator's run does; evaluate at the sites")
    folder = prepared or Path(run.local()["prepared"])
    stores = {site: SliceStore(folder / site) for site in sites}
    run.check_prepared(folder, {site: store.manifest_sha256() for site, store in stores.items()})
    scores: list[Score] = []
    for site, store in stores.items():
        if on_site is not None:
            on_site(site)
        model = open_personalised(run_folder, site, device)
        scores += evaluate_site(model, store, split)
    if not scores:
        raise DataError(
            f"{folder}: no site has {split} subjects; choose another --split or prepare with other fractions"
        )
    return scores


def summarize(scores: Iterable[Score]) -> list[Summary]:
    """Mean and standard deviation (n - 1) over subjects, for each site, task and model, in order of appearance.

    A subject with several sessions counts once, with the mean of its sessions.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Score]]] = {}
    for score in scores:
        group = groups.setdefault((score.site, score.task, score.model), {})
        group.setdefault(score.subject, []).append(score)
    summaries = []
    for key, group in groups.items():
        values = {
            name: [statistics.fmean(getattr(score, name) for score in sessions) for sessions in group.values()]
            for name in SCORE_NAMES
        }
        mean = {name: statistics.fmean(own) for name, own in values.items()}
        deviation = {name: _deviation(own) for name, own in values.items()}
        summaries.append(Summary(*key, subjects=len(group), mean=mean, deviation=deviation))
    return summaries


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write ``scores.csv``: one line per session of a subject, task and model."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    write_atomic(path, text.getvalue().encode())


def _served(model: PersonalisedModel, store: SliceStore, split: SplitName) -> Iterator[tuple[PreparedSubject, Task]]:
    """Every subject of the split with every task of the site that it serves."""
    for subject in store.subjects(split):
        for task in model.config.sites[model.site].tasks:
            if subject.serves(task):
                yield subject, task


def _shown(target: np.ndarray, image: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Target, image (both in [0, 1]) and mask of every slice that shows the mask."""
    indices = [index for index in range(len(mask)) if mask[index].any()]
    return [(to_unit(target[index]), to_unit(image[index]), mask[index]) for index in indices]


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1), or ``None`` where it is undefined."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
