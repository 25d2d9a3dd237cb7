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
from pflsynth.devices import use_device
from pflsynth.errors import DataError, ModelError
from pflsynth.evaluation.feature_files import FeatureWeights, FidScore, write_features
from pflsynth.evaluation.feature_metrics import FeatureFiles, FeatureScorer, Place, open_networks
from pflsynth.evaluation.metrics import SCORE_NAMES, psnr, slice_scores, to_unit
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.files import write_atomic
from pflsynth.runs import RunDirectory

COPY = "copy"
PERSONALISED = "personalised"


@dataclass(frozen=True)
class Score:
    """Scores of one session and task: means over the slices that show the mask (see ``evaluation.metrics``).

    ``lpips`` is ``None`` where no weights were given (see ``evaluation.perceptual``).
    """

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
class Evaluation:
    """All scores of a run on a split, its FIDs, and the weights that LPIPS and FID were computed with."""

    scores: list[Score]
    fids: list[FidScore]
    weights: FeatureWeights


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


def evaluate_site(
    model: PersonalisedModel, store: SliceStore, split: SplitName, features: FeatureScorer | None = None
) -> list[Score]:
    """Score a site's personalised model, and copying the source as a floor, on every subject and task of a split.

    ``features`` gives LPIPS, and has the site's FIDs afterwards; without it, neither is computed.
    """
    scores = []
    for subject, task in _served(model, store, split):
        mask = store.mask(subject.name)
        shown = mask.any(axis=(1, 2))
        source, target = (store.slices(subject.name, contrast) for contrast in (task.source, task.target))
        images = {PERSONALISED: model.synthesize(source, task), COPY: source}
        lpips: dict[str, float | None] = {}
        if features is not None:
            place = Place(model.site, str(task), split, model.round)
            lpips = features.add(place, target[shown], {name: image[shown] for name, image in images.items()})
        for name, image in images.items():
            values = score_slices(target, image, mask)
            score = Score(
                model.site,
                str(task),
                subject.person,
                subject.session,
                split,
                name,
                model.round,
                int(shown.sum()),
                **values,
                lpips=lpips.get(name),
            )
            scores.append(score)
    if features is not None:
        features.finish_site()
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
    files: FeatureFiles | None = None,
) -> Evaluation:
    """Score every site whose model a finished run keeps, on one split.

    Args:
        run_folder: made by ``pflsynth train``.
        split: ``validation``, ``test`` or ``train``.
        prepared: folder of prepared data; default: the one that the run was trained with.
        device: torch device; default: the run's.
        on_site: called with each site's name before it is evaluated.
        files: weights of LPIPS and FID, checked before any site is evaluated; default: neither is computed.

    Raises:
        DataError: if the prepared data is missing or not the one of the run, or no site has subjects in the split.
        ModelError: if the run is not finished or its models are damaged, or for weights that are not what is wanted.
        UsageError: if the device cannot be used.
    """
    run, config = RunDirectory.open(run_folder)
    sites = run.sites(config)
    if not sites:
        raise ModelError(f"{run_folder}: keeps no site's model, as a coordinator's run does; evaluate at the sites")
    folder = prepared or Path(run.local()["prepared"])
    stores = {site: SliceStore(folder / site) for site in sites}
    run.check_prepared(folder, {site: store.manifest_sha256() for site, store in stores.items()})
    chosen = use_device(device or config.device, config.threads)
    features = FeatureScorer(open_networks(files or FeatureFiles(), config.image.size, chosen))
    scores: list[Score] = []
    for site, store in stores.items():
        if on_site is not None:
            on_site(site)
        model = open_personalised(run_folder, site, device)
        scores += evaluate_site(model, store, split, features)
    if not scores:
        raise DataError(
            f"{folder}: no site has {split} subjects; choose another --split or prepare with other fractions"
        )
    return Evaluation(scores, features.fids, features.weights)


def summarize(scores: Iterable[Score]) -> list[Summary]:
    """Mean and standard deviation (n - 1) over subjects, for each site, task and model, in order of appearance.

    A subject with several sessions counts once, with the mean of its sessions. LPIPS is there if every score has it.
    """
    scores = list(scores)
    names = [*SCORE_NAMES, *(["lpips"] if all(score.lpips is not None for score in scores) else [])]
    groups: dict[tuple[str, str, str], dict[str, list[Score]]] = {}
    for score in scores:
        group = groups.setdefault((score.site, score.task, score.model), {})
        group.setdefault(score.subject, []).append(score)
    summaries = []
    for key, group in groups.items():
        values = {
            name: [statistics.fmean(getattr(score, name) for score in sessions) for sessions in group.values()]
            for name in names
        }
        mean = {name: statistics.fmean(own) for name, own in values.items()}
        deviation = {name: _deviation(own) for name, own in values.items()}
        summaries.append(Summary(*key, subjects=len(group), mean=mean, deviation=deviation))
    return summaries


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, or replace it: the scores come last, so where they are, the evaluation is whole.

    Args:
        path: of the scores; ``fid.csv`` and ``weights.json`` lie beside it, if there are any. Its folder is made.
        evaluation: of a run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    write_features(path.parent, evaluation.weights, evaluation.fids)
    write_scores(path, evaluation.scores)


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
