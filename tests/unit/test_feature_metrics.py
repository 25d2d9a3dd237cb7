"""LPIPS and FID of a run, by networks whose numbers can be worked out; their files, whole, damaged and mixed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from pflsynth.config import Task
from pflsynth.console import feature_table
from pflsynth.errors import DataError, ModelError
from pflsynth.evaluation.evaluate import Evaluation, evaluate_run, summarize, write_evaluation
from pflsynth.evaluation.feature_files import (
    FeatureWeights,
    FidScore,
    common_weights,
    read_fids,
    read_weights,
    write_features,
)
from pflsynth.evaluation.feature_metrics import FeatureFiles, FeatureScorer, Place, open_networks
from pflsynth.evaluation.metrics import SCORE_NAMES
from pflsynth.evaluation.perceptual import frechet_distance, open_fid, open_lpips
from pflsynth.federation.personalised import open_personalised
from pflsynth.networks.weights import FeatureFile

from ..data_builders import tree
from ..feature_builders import Means, lpips_that_can_be_worked_out, scripted
from ..tiny import Tiny

NORTH = Place("north", "T1w->T2w", "test", 3)
APART = 2 - math.sqrt(2)  # LPIPS of black and the middle grey
FID = FidScore("north", "T1w->T2w", "test", "personalised", 3, 4, 5, 12.5, None, "f" * 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FeatureFiles:
    folder = tmp_path_factory.mktemp("networks")
    return FeatureFiles(lpips_that_can_be_worked_out(folder), fid=scripted(Means(), folder / "means.pt"))


@pytest.fixture(scope="module")
def evaluation(trained: Path, files: FeatureFiles) -> Evaluation:
    return evaluate_run(trained, "test", files=files)


def grey(*values: float) -> np.ndarray:
    """Slices of one value each, 32 × 32."""
    return np.stack([np.full((32, 32), value, np.float32) for value in values])


# ------------------------------------------------------------------------------------------------------------- numbers


def test_lpips_of_a_subject_is_the_mean_over_its_slices(files: FeatureFiles) -> None:
    scorer = FeatureScorer(open_networks(replace(files, fid=None), 32))
    found = scorer.add(NORTH, grey(-1, -1, 0), {"near": grey(-1, 0, 0), "far": grey(0, 0, -1)})
    assert found == {"near": pytest.approx(APART / 3, rel=1e-5), "far": pytest.approx(APART, rel=1e-5)}
    scorer.finish_site()
    assert scorer.fids == []  # not asked for


def test_fid_of_a_site_is_over_all_its_subjects(files: FeatureFiles) -> None:
    """All five features of a slice are its grey value g in [0, 1]: the FID is 5 ((m1 - m2)² + (s1 - s2)²).

    Real: 0 and 1 of one subject, 0 and 1 of another, so m = 1/2, s² = 1/3. Copy: all 1, so m = 1, s = 0.
    """
    scorer = FeatureScorer(open_networks(replace(files, lpips=None), 32))
    for _ in range(2):
        assert scorer.add(NORTH, grey(-1, 1), {"same": grey(1, -1), "copy": grey(1, 1)}) == {"same": None, "copy": None}
    scorer.add(NORTH._replace(site="south"), grey(1, 1), {"same": grey(1, 1)})
    scorer.finish_site()
    found = {(own.site, own.model): own for own in scorer.fids}
    assert found["north", "copy"].fid == pytest.approx(5 * (1 / 4 + 1 / 3), rel=1e-6)
    assert found["north", "same"].fid == pytest.approx(0, abs=1e-6)
    assert found["south", "same"].fid == pytest.approx(0, abs=1e-6)
    own = found["north", "copy"]
    assert (own.images, own.features, own.split, own.round, own.fid_sha256) == (4, 5, "test", 3, files.weights.fid)
    assert own.note is not None
    assert own.note.startswith("4 images for 5 features")
    scorer.finish_site()
    assert len(scorer.fids) == 3  # a finished site is not counted again


def test_one_slice_has_no_fid_and_the_reason_is_told(files: FeatureFiles) -> None:
    scorer = FeatureScorer(open_networks(files, 32))
    scorer.add(NORTH, grey(0), {"copy": grey(1)})
    scorer.finish_site()
    (own,) = scorer.fids
    assert (own.fid, own.images, own.note) == (None, 1, "not computed: a FID needs at least 2 images")


def test_scores_and_fids_of_a_run_are_those_of_its_models(
    evaluation: Evaluation, files: FeatureFiles, trained: Path, tiny: Tiny
) -> None:
    assert files.lpips is not None
    assert files.fid is not None
    distances, extract = open_lpips(files.lpips), open_fid(files.fid)
    model, store, task = open_personalised(trained, "south"), tiny.store("south"), Task.parse("T2w->T1w")
    real, synthetic, lpips = [], [], []
    for subject in store.subjects("test"):
        shown = store.mask(subject.name).any(axis=(1, 2))
        target = store.slices(subject.name, "T1w")[shown]
        image = model.synthesize(store.slices(subject.name, "T2w"), task)[shown]
        real.append(extract(target))
        synthetic.append(extract(image))
        lpips.append(distances(target, image).mean())
    key = ("south", str(task), "personalised")
    scores = [own for own in evaluation.scores if (own.site, own.task, own.model) == key]
    assert [own.lpips for own in scores] == pytest.approx(lpips, rel=1e-6)
    assert min(lpips) > 0
    one, two = np.concatenate(real), np.concatenate(synthetic)
    wanted = frechet_distance(one.mean(0), np.cov(one, rowvar=False), two.mean(0), np.cov(two, rowvar=False))
    (fid,) = [own for own in evaluation.fids if (own.site, own.task, own.model) == key]
    assert fid.fid == pytest.approx(wanted, rel=1e-4, abs=1e-8)
    assert wanted > 0
    assert (fid.images, fid.features, fid.round) == (len(one), 5, 3)


def test_every_site_task_and_model_has_its_fid(evaluation: Evaluation, tiny: Tiny) -> None:
    assert [(own.site, own.task, own.model) for own in evaluation.fids] == [
        (site, str(task), model)
        for site in tiny.config.site_names
        for task in tiny.config.sites[site].tasks
        for model in ("personalised", "copy")
    ]


def test_other_scores_are_as_without_networks(evaluation: Evaluation, trained: Path) -> None:
    without = evaluate_run(trained, "test")
    assert [replace(own, lpips=None) for own in evaluation.scores] == without.scores
    assert (without.fids, without.weights) == ([], FeatureWeights())


def test_summaries_have_lpips_if_all_scores_have_it(evaluation: Evaluation) -> None:
    first, *_ = summarize(evaluation.scores)
    key = (first.site, first.task, first.model)
    own = [score.lpips for score in evaluation.scores if (score.site, score.task, score.model) == key]
    assert first.mean["lpips"] == fmean(value for value in own if value is not None)
    some = [replace(evaluation.scores[0], lpips=None), *evaluation.scores[1:]]
    assert tuple(summarize(some)[0].mean) == SCORE_NAMES


def test_the_terminal_shows_what_was_computed(evaluation: Evaluation) -> None:
    summaries = summarize(evaluation.scores)
    both = [column.header for column in feature_table(summaries, evaluation.fids).columns]
    assert both == ["site", "task", "LPIPS", "copy LPIPS", "FID", "copy FID", "slices"]
    assert [column.header for column in feature_table(summaries, []).columns] == both[:4]
    without = summarize(replace(own, lpips=None) for own in evaluation.scores)
    table = feature_table(without, [replace(own, fid=None) for own in evaluation.fids])
    assert [column.header for column in table.columns] == [*both[:2], *both[4:]]
    assert set(table.columns[2].cells) == {"–"}


# ------------------------------------------------------------------------------------------------------- what is asked


def test_networks_are_tried_before_anything_is_evaluated(files: FeatureFiles, tmp_path: Path) -> None:
    assert files.lpips is not None
    with pytest.raises(DataError, match="at least 31 × 31, but these are 24 × 24"):
        open_networks(files, 24)
    with pytest.raises(ModelError, match="cannot be read as a feature extractor"):
        open_networks(FeatureFiles(fid=files.lpips), 32)
    wrong = FeatureFile(files.lpips.path, "0" * 64)
    with pytest.raises(ModelError, match=rf"its SHA-256 is {files.lpips.sha256}, but \"0"):
        open_networks(FeatureFiles(wrong), 32)


def test_the_weights_of_files_are_their_sha256(files: FeatureFiles) -> None:
    assert files.lpips is not None
    capital = FeatureFile(files.lpips.path, f" {files.lpips.sha256.upper()}")
    assert FeatureFiles(capital).weights == FeatureWeights(lpips=files.lpips.sha256)
    assert FeatureFiles().weights.by_metric() == {}


def test_weights_cover_what_is_wanted() -> None:
    lpips, fid = FeatureWeights(lpips="a" * 64), FeatureWeights(fid="b" * 64)
    both = FeatureWeights(lpips="a" * 64, fid="b" * 64)
    assert both.cover(lpips)
    assert both.cover(FeatureWeights())
    assert not lpips.cover(both)
    assert not fid.cover(lpips)
    assert not lpips.cover(FeatureWeights(lpips="c" * 64))
    assert not lpips.cover(FeatureWeights(lpips="a" * 64, lpips_heads="d" * 64))


# --------------------------------------------------------------------------------------------------------------- files


def test_an_evaluation_is_read_back_and_the_same_has_the_same_bytes(
    evaluation: Evaluation, trained: Path, files: FeatureFiles, tmp_path: Path
) -> None:
    write_evaluation(tmp_path / "one" / "scores.csv", evaluation)
    write_evaluation(tmp_path / "two" / "scores.csv", evaluate_run(trained, "test", files=files))
    assert sorted(tree(tmp_path / "one")) == ["fid.csv", "scores.csv", "weights.json"]
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert read_fids(tmp_path / "one") == evaluation.fids
    assert read_weights(tmp_path / "one") == evaluation.weights == files.weights


def test_an_evaluation_without_networks_takes_the_place_of_one_with(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "scores.csv", evaluation)
    write_evaluation(tmp_path / "scores.csv", replace(evaluation, fids=[], weights=FeatureWeights()))
    assert list(tree(tmp_path)) == ["scores.csv"]
    assert read_weights(tmp_path) == FeatureWeights()


def test_a_fid_that_was_not_computed_is_read_back(tmp_path: Path) -> None:
    fids = [FID, replace(FID, model="copy", images=1, fid=None, note="1 slice, too few")]
    write_features(tmp_path, FeatureWeights(fid="f" * 64), fids)
    assert (tmp_path / "fid.csv").read_text() == (
        "site,task,split,model,round,images,features,fid,note,fid_sha256\n"
        f"north,T1w->T2w,test,personalised,3,4,5,12.5,,{'f' * 64}\n"
        f'north,T1w->T2w,test,copy,3,1,5,,"1 slice, too few",{"f" * 64}\n'
    )
    assert read_fids(tmp_path) == fids


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("12.5", "many", r"fid.csv, line 2: is damaged at fid \(.*number"),
        ("12.5", "nan", r"fid.csv, line 2: is damaged at fid"),
        ("12.5", "-1", r"fid.csv, line 2: is damaged at fid"),
        ("images", "pictures", r"fid.csv, line 2: is damaged at images"),
        (f",{'f' * 64}", "", r"fid.csv, line 2: is damaged at fid_sha256"),
    ],
)
def test_a_damaged_fid_file_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    write_features(tmp_path, FeatureWeights(fid="f" * 64), [FID])
    path = tmp_path / "fid.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ModelError, match=said):
        read_fids(tmp_path)


def test_files_that_are_missing_or_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"fid.csv: there is no such file"):
        read_fids(tmp_path)
    (tmp_path / "fid.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"fid.csv: is damaged"):
        read_fids(tmp_path)
    (tmp_path / "weights.json").write_text('{"lpips": "abc"}')
    with pytest.raises(ModelError, match=r"weights.json: is damaged at lpips"):
        read_weights(tmp_path)


def test_evaluations_of_other_weights_are_not_mixed(tmp_path: Path) -> None:
    a, b, c = (sign * 64 for sign in "abc")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, weights in zip(
        folders, (FeatureWeights(lpips=a), FeatureWeights(), FeatureWeights(lpips=a, fid=b)), strict=True
    ):
        folder.mkdir()
        write_features(folder, weights, [])
    assert common_weights(folders) == FeatureWeights(lpips=a, fid=b)
    with pytest.raises(ModelError, match=f"three: its FID is by weights with SHA-256 {b}, but that of known by {c}"):
        common_weights(folders, {Path("known"): FeatureWeights(fid=c)})
