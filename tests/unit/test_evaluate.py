"""Scores per subject, their summary, the floor of copying the source, and ``scores.csv``."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import fields
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from pflsynth.config import Task
from pflsynth.errors import DataError, ModelError, UsageError
from pflsynth.evaluation.evaluate import (
    Score,
    evaluate_run,
    evaluate_site,
    score_slices,
    summarize,
    validation_psnr,
    write_scores,
)
from pflsynth.evaluation.metrics import (
    SCORE_NAMES,
    mae,
    nrmse,
    psnr,
    psnr_field,
    slice_scores,
    ssim,
    ssim_field,
    to_unit,
)
from pflsynth.federation.personalised import open_personalised
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, prepare_tiny

OTHERS = ("psnr_field", "ssim_field", "mae", "mae_mask", "nrmse", "nrmse_mask")


def score(subject: str, value: float, model: str = "personalised", task: str = "T1w->T2w") -> Score:
    """Every number of a score is another one, and known from its PSNR."""
    values = {"psnr": value, "psnr_mask": value + 1, "ssim": value / 100, "ssim_mask": value / 50}
    values |= {name: value / number for number, name in enumerate(OTHERS, 3)}
    return Score("north", task, subject, "", "test", model, 3, 5, **values)


@pytest.fixture(scope="module")
def scores(trained: Path) -> list[Score]:
    return evaluate_run(trained, "test").scores


# ---------------------------------------------------------------------------------------------------------- subjects


def test_a_subject_is_the_mean_over_the_slices_that_show_the_mask() -> None:
    random = np.random.default_rng(0)
    target = random.uniform(-1, 1, (4, 24, 24)).astype(np.float32)
    image = np.clip(target + random.normal(0, 0.2, target.shape), -1.5, 1.5).astype(np.float32)
    image[1] = 7.0  # a slice that does not show the mask does not count
    mask = np.zeros(target.shape, dtype=bool)
    mask[[0, 2, 3], 6:18, 8:20] = True
    values = score_slices(target, image, mask)
    shown = (0, 2, 3)
    assert values["psnr"] == pytest.approx(fmean(psnr(to_unit(target[i]), to_unit(image[i])) for i in shown))
    assert values["ssim"] == pytest.approx(fmean(ssim(to_unit(target[i]), to_unit(image[i])) for i in shown))
    inside = [(to_unit(target[i]), to_unit(image[i]), mask[i]) for i in shown]
    assert values["psnr_mask"] == pytest.approx(fmean(psnr(*each) for each in inside))
    assert values["ssim_mask"] == pytest.approx(fmean(ssim(*each) for each in inside))
    assert values["psnr_field"] == pytest.approx(fmean(psnr_field(*each[:2]) for each in inside))
    assert values["ssim_field"] == pytest.approx(fmean(ssim_field(*each[:2]) for each in inside))
    for name, metric in (("mae", mae), ("nrmse", nrmse)):
        assert values[name] == pytest.approx(fmean(metric(*each[:2]) for each in inside))
        assert values[f"{name}_mask"] == pytest.approx(fmean(metric(*each) for each in inside))
    assert tuple(values) == SCORE_NAMES
    assert values == {name: pytest.approx(fmean(slice_scores(*each)[name] for each in inside)) for name in SCORE_NAMES}


def test_a_score_has_one_number_for_each_name() -> None:
    """Whoever adds a score must decide where it stands in the file: after what it is a score of."""
    names = [entry.name for entry in fields(Score)]
    described = ["site", "task", "subject", "session", "split", "model", "round", "slices"]
    assert names == [*described, *SCORE_NAMES, "lpips"]


def test_what_lies_outside_is_clipped() -> None:
    target = np.linspace(-1, 1, 24 * 24, dtype=np.float32).reshape(1, 24, 24)
    image = np.where(target > 0.5, 3.0, target)
    limited = np.where(target > 0.5, 1.0, target)
    mask = np.ones(target.shape, dtype=bool)
    assert score_slices(target, image, mask) == score_slices(target, limited, mask)


def test_every_subject_task_and_model_is_scored(scores: list[Score], tiny: Tiny) -> None:
    wanted = {
        (site, str(task), subject.name, model)
        for site in tiny.config.site_names
        for subject in tiny.store(site).subjects("test")
        for task in tiny.config.sites[site].tasks
        for model in ("personalised", "copy")
    }
    assert {(each.site, each.task, each.subject, each.model) for each in scores} == wanted
    assert len(scores) == len(wanted) == 8
    assert {(each.split, each.round) for each in scores} == {("test", 3)}


def test_the_scores_are_those_of_the_saved_personalised_model(scores: list[Score], tiny: Tiny, trained: Path) -> None:
    model, store = open_personalised(trained, "north"), tiny.store("north")
    subject, task = store.subjects("test")[0].name, Task.parse("T1w->FLAIR")
    source, target = store.slices(subject, "T1w"), store.slices(subject, "FLAIR")
    for name, image in (("personalised", model.synthesize(source, task)), ("copy", source)):
        wanted = score_slices(target, image, store.mask(subject))
        (found,) = [
            each
            for each in scores
            if (each.subject, each.task, each.model, each.site) == (subject, str(task), name, "north")
        ]
        assert {key: getattr(found, key) for key in SCORE_NAMES} == wanted
        assert found.lpips is None  # not computed
        assert found.slices == int(store.mask(subject).any(axis=(1, 2)).sum()) > 0


def test_the_floor_is_the_source_itself(tiny: Tiny, trained: Path) -> None:
    """Copying does not depend on the model: the same numbers from another one."""
    model, store = open_personalised(trained, "south"), tiny.store("south")
    floor = [each for each in evaluate_site(model, store, "test") if each.model == "copy"]
    other = open_personalised(trained, "south")
    with torch.no_grad():
        for parameter in other.generator.parameters():
            parameter.zero_()
    again = evaluate_site(other, store, "test")
    assert [each for each in again if each.model == "copy"] == floor
    there, back = floor  # T1w->T2w and T2w->T1w have the same error
    assert there.psnr == pytest.approx(back.psnr)


def test_subjects_that_miss_a_contrast_are_scored_on_the_tasks_they_have(tmp_path: Path, trained: Path) -> None:
    tiny = prepare_tiny(tmp_path)
    store, model = tiny.store("north"), open_personalised(trained, "north")
    subject = store.subjects("test")[0]
    poorer = subject.model_copy(update={"contrasts": {k: v for k, v in subject.contrasts.items() if k != "FLAIR"}})
    others = [each for each in store.manifest.subjects if each.name != subject.name]
    store.manifest = store.manifest.model_copy(update={"subjects": (*others, poorer)})
    assert {each.task for each in evaluate_site(model, store, "test")} == {"T1w->T2w"}


def test_validation_is_the_mean_over_tasks_of_the_psnr_within_the_mask(tiny: Tiny, trained: Path) -> None:
    model, store = open_personalised(trained, "north"), tiny.store("north")
    own = [each for each in evaluate_site(model, store, "validation") if each.model == "personalised"]
    assert len(own) == 2
    assert validation_psnr(model, store) == pytest.approx(fmean(each.psnr_mask for each in own))
    store.manifest = store.manifest.model_copy(update={"subjects": store.subjects("train")})
    assert validation_psnr(model, store) is None


# ----------------------------------------------------------------------------------------------------------- summary


def test_mean_and_standard_deviation_over_subjects() -> None:
    given = [score("sub-1", 20.0), score("sub-2", 24.0), score("sub-3", 25.0), score("sub-1", 10.0, "copy")]
    personalised, copy = summarize(given)
    assert (personalised.site, personalised.task, personalised.model, personalised.subjects) == (
        "north",
        "T1w->T2w",
        "personalised",
        3,
    )
    assert personalised.mean["psnr"] == pytest.approx(23.0)
    assert personalised.deviation["psnr"] == pytest.approx(7**0.5)  # (9 + 1 + 4) / (3 - 1)
    assert personalised.mean["psnr_mask"] == pytest.approx(24.0)
    assert personalised.mean["ssim"] == pytest.approx(0.23)
    assert personalised.deviation["ssim"] == pytest.approx(7**0.5 / 100)
    assert (copy.model, copy.subjects, copy.mean["psnr"]) == ("copy", 1, 10.0)
    for number, name in enumerate(OTHERS, 3):
        assert personalised.mean[name] == pytest.approx(23.0 / number)
        assert personalised.deviation[name] == pytest.approx(7**0.5 / number)
    assert copy.deviation == dict.fromkeys(SCORE_NAMES, None)  # undefined for one subject, not zero


def test_an_infinite_score_has_no_deviation() -> None:
    (row,) = summarize([score("sub-1", 20.0), score("sub-2", float("inf"))])
    assert row.deviation["psnr"] is None
    assert row.mean["psnr"] == float("inf")


def test_rows_stay_in_order() -> None:
    given = [score("sub-1", 1.0, task="T2w->T1w"), score("sub-1", 2.0), score("sub-2", 3.0, task="T2w->T1w")]
    assert [(row.task, row.subjects) for row in summarize(given)] == [("T2w->T1w", 2), ("T1w->T2w", 1)]


# -------------------------------------------------------------------------------------------------------- scores.csv


def test_the_file_holds_every_number(scores: list[Score], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_scores(path, scores)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [entry.name for entry in fields(Score)]
    for row, each in zip(rows, scores, strict=True):
        assert (row["site"], row["task"], row["subject"], row["model"]) == (
            each.site,
            each.task,
            each.subject,
            each.model,
        )
        assert all(float(row[name]) == getattr(each, name) for name in SCORE_NAMES)
        assert row["lpips"] == ""  # "not computed" is no number
        assert (int(row["round"]), int(row["slices"])) == (each.round, each.slices)
    assert b"\r" not in path.read_bytes()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_split_without_subjects_is_told_of(tmp_path: Path, tiny: Tiny, trained: Path) -> None:
    run, prepared = tmp_path / "run", tmp_path / "prepared"
    shutil.copytree(trained, run)
    for site in tiny.config.site_names:
        (prepared / site).mkdir(parents=True)
        content = json.loads((tiny.prepared / site / "manifest.json").read_text())
        content["subjects"] = [each for each in content["subjects"] if each["split"] != "validation"]
        (prepared / site / "manifest.json").write_text(json.dumps(content))
    _record_manifests(run, prepared)
    with pytest.raises(DataError, match="no site has validation subjects; choose another --split"):
        evaluate_run(run, "validation", prepared)


def test_prepared_data_that_changed_since_training_is_refused(tmp_path: Path, tiny: Tiny, trained: Path) -> None:
    """More subjects would move some between the splits: a training subject could become a test subject."""
    prepared = tmp_path / "prepared"
    shutil.copytree(tiny.prepared, prepared)
    assert evaluate_run(trained, "test", prepared) == evaluate_run(trained, "test")
    manifest = prepared / "south" / "manifest.json"
    content = json.loads(manifest.read_text())
    for each in content["subjects"]:
        each["split"] = "test"
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"south: the prepared data changed since .* began"):
        evaluate_run(trained, "test", prepared)


def test_missing_prepared_data_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared data"):
        evaluate_run(trained, "test", tmp_path)


def test_an_unfinished_run_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    RunDirectory.create(tmp_path / "run", tiny.config, tiny.prepared, {}, tiny.config.participants)
    with pytest.raises(ModelError, match=r"is not finished \(round 0 of 3\)"):
        open_personalised(tmp_path / "run", "north")


def test_a_model_that_is_not_of_this_run_is_refused(tmp_path: Path, tiny: Tiny, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "sites" / "north" / "personalised-0003.safetensors"
    shutil.copy(run / "sites" / "south" / path.name, path)
    with pytest.raises(ModelError, match=r"personalised-0003\.safetensors: belongs to another .*: site is south"):
        open_personalised(run, "north")
    path.unlink()
    with pytest.raises(ModelError, match=r"personalised-0003\.safetensors: there is no such file"):
        open_personalised(run, "north")


def test_an_unknown_site_or_device_is_refused(trained: Path) -> None:
    with pytest.raises(UsageError, match=r"--site east: the run .* has the sites north, south"):
        open_personalised(trained, "east")
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(UsageError, match=f'device "{device}"'):
            open_personalised(trained, "north", device)


def test_a_task_that_the_site_was_not_trained_for_is_refused(trained: Path) -> None:
    model = open_personalised(trained, "north")
    assert model.own_task("T1w:FLAIR") == Task.parse("T1w->FLAIR")
    with pytest.raises(UsageError, match=r"--task T2w->T1w: site north was trained for T1w->T2w, T1w->FLAIR"):
        model.own_task("T2w->T1w")
    with pytest.raises(UsageError, match='--task: "T1w" is not a task'):
        model.own_task("T1w")


def _record_manifests(run: Path, prepared: Path) -> None:
    from pflsynth.files import sha256_of_file

    path = run / "local.json"
    content = json.loads(path.read_text())
    content["manifests"] = {site: sha256_of_file(prepared / site / "manifest.json") for site in content["manifests"]}
    path.write_text(json.dumps(content))
