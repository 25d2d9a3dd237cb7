"""A comparison read back: values of people worked out by hand, and everything that must be refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from pflsynth.errors import ModelError, UsageError
from pflsynth.evaluation.comparison import (
    METRIC_NAMES,
    Comparison,
    against,
    budget,
    open_comparison,
    person_values,
    read_scores,
    rows,
    scopes,
    subject_values,
)
from pflsynth.evaluation.costs import Budget, Traffic
from pflsynth.evaluation.evaluate import Score, write_scores
from pflsynth.evaluation.metrics import HIGHER_IS_BETTER
from pflsynth.evaluation.statistics import describe, paired_test
from pflsynth.runs import RunDirectory

from ..comparison_builders import (
    FORMULAS,
    SLICES,
    change_comparison,
    comparison_config,
    level_of,
    make_costs,
    make_score,
    run_path,
    scores_path,
    write_comparison,
)
from ..data_builders import tree
from ..tiny import changed

METHODS = ("fedgan", "pflsynth")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """fedgan (first, and 2 dB better) and pflsynth, seeds 0 and 1; tests do not change it."""
    return open_comparison(write_comparison(tmp_path_factory.mktemp("comparison") / "out", methods=METHODS))


def of_subjects(subject: int, method: float) -> float:
    """A level that is known by the subject and the method alone."""
    return 20.0 + subject + method


def opened(folder: Path, **settings: Any) -> Comparison:
    return open_comparison(write_comparison(folder, **settings))


def rewritten(run: Path, change: Callable[[list[Score]], list[Score]]) -> None:
    """Change the scores of a run."""
    path = scores_path(run)
    write_scores(path, change(read_scores(path)))


# ------------------------------------------------------------------------------------------------------------- opened


def test_every_run_is_an_entry_and_copying_is_the_last(comparison: Comparison) -> None:
    found = [(entry.method, entry.seed, entry.run and entry.run.name, entry.round) for entry in comparison.entries]
    assert found == [
        ("fedgan", 0, "seed-0", 3),
        ("fedgan", 1, "seed-1", 3),
        ("pflsynth", 0, "seed-0", 3),
        ("pflsynth", 1, "seed-1", 3),
        ("copy", None, None, 0),
    ]
    assert {score.model for entry in comparison.entries[:-1] for score in entry.scores} == {"personalised"}
    assert {(score.model, score.round) for score in comparison.entries[-1].scores} == {("copy", 0)}
    assert {len(entry.scores) for entry in comparison.entries} == {2 * 2 * 4}  # sites, tasks, subjects


def test_what_is_known_of_the_whole(comparison: Comparison) -> None:
    assert (comparison.name, comparison.methods, comparison.seeds, comparison.split) == (
        "tiny",
        METHODS,
        (0, 1),
        "test",
    )
    assert comparison.config.name == "tiny"
    assert comparison.config.agreement() == comparison_config(method="fedgan", seed=0).agreement()
    assert (comparison.held_out, comparison.prepared) == (None, comparison.folder / "prepared")
    assert comparison.notes == {}


def test_opening_changes_nothing(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "out")
    before = tree(folder)
    open_comparison(folder)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("methods", "reference"), [(("fedgan", "pflsynth"), "pflsynth"), (("local", "fedgan"), "local")]
)
def test_the_reference_is_pflsynth_or_the_first_method(
    tmp_path: Path, methods: tuple[str, ...], reference: str
) -> None:
    assert opened(tmp_path / "out", methods=methods, seeds=(0,), subjects=1).reference == reference


def test_the_validation_split(tmp_path: Path) -> None:
    comparison = opened(tmp_path / "out", split="validation")
    assert comparison.split == "validation"
    assert {score.split for entry in comparison.entries for score in entry.scores} == {"validation"}


def test_a_round_that_validation_selected(tmp_path: Path) -> None:
    config = changed(comparison_config(), training={"select": "validation", "validate_every": 1})
    folder = write_comparison(tmp_path / "out", config=config)
    for seed in (0, 1):
        run = RunDirectory(run_path(folder, "fedgan", seed))
        run.save_state(replace(run.state(), selected=2, selected_score=22.0, selected_bases={"north": 2, "south": 2}))
        rewritten(run.folder, lambda scores: [replace(score, round=2) for score in scores])
    comparison = open_comparison(folder)
    assert [(entry.method, entry.round) for entry in comparison.entries] == [
        ("pflsynth", 3),
        ("pflsynth", 3),
        ("fedgan", 2),
        ("fedgan", 2),
        ("copy", 0),
    ]


# ---------------------------------------------------------------------------------------------------- values of people


def test_a_subject_is_the_mean_over_seeds(comparison: Comparison) -> None:
    """fedgan: 30 + 0.25 (mean of 0 and 0.5 for the seeds) - 1 (south) - 0.25 (second task) + 0.5 for each subject."""
    values = subject_values(comparison, "fedgan", "psnr", site="south", task="T2w->T1w")
    assert values == {("south", "T2w->T1w", f"sub-0{number + 1}"): 29.0 + 0.5 * number for number in range(4)}
    assert subject_values(comparison, "pflsynth", "psnr", site="north")["north", "T1w->T2w", "sub-01"] == 28.25


def test_the_floor_knows_no_seed(comparison: Comparison) -> None:
    assert subject_values(comparison, "copy", "psnr", site="north", task="T1w->T2w") == {
        ("north", "T1w->T2w", f"sub-0{number + 1}"): 20.0 + 0.5 * number for number in range(4)
    }


def test_all_sites_and_tasks_are_counted_without_a_choice(comparison: Comparison) -> None:
    values = subject_values(comparison, "fedgan", "psnr")
    assert len(values) == 16
    assert list(values) == sorted(values)
    assert {key: value for key, value in values.items() if key[1] == "T1w->FLAIR"} == subject_values(
        comparison, "fedgan", "psnr", task="T1w->FLAIR"
    )


def test_a_person_is_the_mean_over_tasks(comparison: Comparison) -> None:
    values = person_values(comparison, "fedgan", "psnr")
    assert values == {
        (site, f"sub-0{number + 1}"): top + 0.5 * number
        for site, top in (("north", 30.125), ("south", 29.125))
        for number in range(4)
    }


def test_sessions_and_missing_tasks(tmp_path: Path) -> None:
    """sub-01 has two sessions (20 and 30 dB) of the first task and one (40) of the second; sub-02 has one task (10)."""
    folder = write_comparison(tmp_path / "out", methods=("pflsynth",), seeds=(0,))
    given = [
        (20.0, {"session": "a"}),
        (30.0, {"session": "b"}),
        (40.0, {"session": "a", "task": "T1w->FLAIR"}),
        (10.0, {"subject": "sub-02"}),
    ]
    scores = [make_score(level, **where, model=model) for level, where in given for model in ("personalised", "copy")]
    rewritten(run_path(folder, "pflsynth", 0), lambda _: scores)
    comparison = open_comparison(folder)
    assert subject_values(comparison, "pflsynth", "psnr") == {
        ("north", "T1w->FLAIR", "sub-01"): 40.0,
        ("north", "T1w->T2w", "sub-01"): 25.0,
        ("north", "T1w->T2w", "sub-02"): 10.0,
    }
    assert person_values(comparison, "pflsynth", "psnr") == {("north", "sub-01"): 32.5, ("north", "sub-02"): 10.0}
    assert scopes(comparison, "site") == [("north", None)]
    assert scopes(comparison, "task") == [("north", "T1w->T2w"), ("north", "T1w->FLAIR")]


@pytest.mark.parametrize("metric", [name for name in METRIC_NAMES if name != "lpips"])
def test_every_metric_is_read_from_its_own_column(comparison: Comparison, metric: str) -> None:
    formula = FORMULAS[metric]
    wanted = [formula(31.5), formula(32.0)]
    found = subject_values(comparison, "fedgan", metric, site="north", task="T1w->T2w")["north", "T1w->T2w", "sub-04"]
    assert found == pytest.approx(sum(wanted) / 2)


def test_the_metrics_are_the_columns_with_a_direction() -> None:
    assert set(METRIC_NAMES) == {column.name for column in fields(Score)} & HIGHER_IS_BETTER.keys()
    assert METRIC_NAMES[0] == "psnr"


def test_a_metric_that_lacks_one_score_is_not_computed(tmp_path: Path) -> None:
    """LPIPS of one seed alone would be a mean over other numbers than the rest of its line."""
    folder = write_comparison(tmp_path / "out", formulas={**FORMULAS, "lpips": lambda level: level / 64})
    run = run_path(folder, "fedgan", 1)
    rewritten(run, lambda scores: [replace(scores[0], lpips=None), *scores[1:]])
    comparison = open_comparison(folder)
    assert subject_values(comparison, "fedgan", "lpips") == {}
    assert [row.method for row in rows(comparison, "lpips", "all")] == ["pflsynth", "copy"]
    first, second = against(comparison, "lpips", "pflsynth")
    assert (first[0], first[1].n, first[1].p, first[1].reason) == ("fedgan", 0, None, "not computed")
    assert math.isnan(first[1].difference)
    assert second[0] == "copy"
    assert second[1].p == second[1].p_holm  # the only test of its family


@pytest.mark.parametrize(
    ("method", "metric", "message"),
    [
        ("fedgn", "psnr", 'method "fedgn" is unknown; did you mean "fedgan"?'),
        ("x", "psnr", 'method "x" is unknown; known here: fedgan, pflsynth, copy'),
        ("fedgan", "psnr_msk", 'metric "psnr_msk" is unknown; did you mean "psnr_mask"?'),
    ],
)
def test_unknown_names_are_usage_errors(comparison: Comparison, method: str, metric: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        subject_values(comparison, method, metric)
    assert message in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_over_everyone(comparison: Comparison) -> None:
    first, second, floor = rows(comparison, "psnr", "all")
    assert [row.method for row in (first, second, floor)] == ["fedgan", "pflsynth", "copy"]
    assert (first.site, first.task, first.metric) == (None, None, "psnr")
    people = [top + 0.5 * number for top in (30.125, 29.125) for number in range(4)]
    assert first.description == describe(people)
    assert first.description.mean == 30.375
    assert second.description.mean == 28.375
    assert floor.description.mean == 20.125


def test_the_spread_between_seeds_is_that_of_their_means(comparison: Comparison) -> None:
    """The seeds are 0.5 dB apart everywhere."""
    for row in rows(comparison, "psnr", "task"):
        assert row.seed_deviation == (None if row.method == "copy" else pytest.approx(stdev([0.0, 0.5])))


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    comparison = opened(tmp_path / "out", seeds=(4,))
    assert {row.seed_deviation for row in rows(comparison, "psnr", "all")} == {None}


def test_rows_of_sites_and_tasks(comparison: Comparison) -> None:
    sites = {(row.site, row.method): row.description for row in rows(comparison, "psnr", "site")}
    assert list(sites) == [(site, method) for site in ("north", "south") for method in (*METHODS, "copy")]
    assert (sites["south", "pflsynth"].n, sites["south", "pflsynth"].mean) == (4, 27.875)
    tasks = {
        (row.site, row.task): row.description for row in rows(comparison, "psnr", "task") if row.method == "fedgan"
    }
    assert {key: own.mean for key, own in tasks.items()} == {
        ("north", "T1w->T2w"): 31.0,
        ("north", "T1w->FLAIR"): 30.75,
        ("south", "T1w->T2w"): 30.0,
        ("south", "T2w->T1w"): 29.75,
    }


def test_equal_images_have_infinite_psnr(tmp_path: Path) -> None:
    level = lambda method, seed, site, task, subject: math.inf if method == "pflsynth" else 20.0  # noqa: E731
    comparison = opened(
        tmp_path / "out", level=level, formulas={**dict.fromkeys(FORMULAS, lambda _: 0.5), "psnr": float}
    )
    row = rows(comparison, "psnr", "all")[0]
    assert (row.description.mean, row.description.deviation, row.seed_deviation) == (math.inf, None, None)
    test = dict(against(comparison, "psnr", "pflsynth"))["fedgan"]
    assert (test.p, test.reason) == (None, "a score is infinite or not a number")


# --------------------------------------------------------------------------------------------------------------- tests


def test_the_reference_is_tested_against_every_other_and_the_floor(comparison: Comparison) -> None:
    """Eight people, 2 dB worse than fedgan and 8.25 dB better than copying: p is 2 / 2**8, and twice that by Holm."""
    found = dict(against(comparison, "psnr", "pflsynth"))
    assert list(found) == ["fedgan", "copy"]
    assert [(test.n, test.difference, test.effect) for test in found.values()] == [(8, -2.0, -1.0), (8, 8.25, 1.0)]
    assert [(test.p, test.p_holm) for test in found.values()] == [(2 / 2**8, 4 / 2**8)] * 2


def test_the_test_is_over_people_in_pairs(comparison: Comparison) -> None:
    one, other = (person_values(comparison, method, "ssim") for method in ("fedgan", "copy"))
    assert one.keys() == other.keys()
    test = dict(against(comparison, "ssim", "fedgan"))["copy"]
    assert replace(test, p_holm=None) == paired_test(list(one.values()), list(other.values()))


def test_too_few_people_have_no_p_but_a_reason(comparison: Comparison) -> None:
    for _, test in against(comparison, "psnr", "pflsynth", site="north"):
        assert (test.n, test.p, test.p_holm, test.reason) == (4, None, None, "4 pairs; the test needs at least 6")
    (_, test), _ = against(comparison, "psnr", "pflsynth", task="T1w->T2w")
    assert (test.n, test.p) == (8, 2 / 2**8)


def test_all_equal_scores(tmp_path: Path) -> None:
    comparison = opened(tmp_path / "out", level=lambda *_: 25.0)
    (_, test), (_, floor) = against(comparison, "psnr", "pflsynth")
    assert (test.difference, test.p, test.reason) == (floor.difference, floor.p, floor.reason)
    assert (test.difference, test.p, test.reason) == (0.0, None, "all pairs are equal")
    assert {row.description for row in rows(comparison, "psnr", "all")} == {describe([25.0] * 8)}


# ------------------------------------------------------------------------------------------------------------- budgets


def test_the_budget_of_the_whole_training(comparison: Comparison) -> None:
    """3 rounds of one epoch over 24 and 20 slices, in batches of 4; 2.5 MB each way for pflsynth."""
    found = budget(comparison.entries_of("pflsynth")[1])
    assert found is not None
    assert (found.rounds, found.steps, found.slices) == (3, {"north": 18, "south": 15}, {"north": 72, "south": 60})
    assert (found.megabytes, found.seconds) == ({"north": 2.5, "south": 2.5}, 7.0)
    assert (found.all_steps, found.all_slices) == (33, 132)
    assert (found.traffic("north"), found.traffic()) == (Traffic(2.5, 2.5, 15.0), Traffic(5.0, 5.0, 30.0))


def test_lossy_updates_are_smaller_than_what_comes_back() -> None:
    """1 MB sent in each of three rounds; 4 MB of shared parameters and 8 MB passed on received before the second and
    the third, and 4 MB after it: 3 + 24 + 4."""
    found = Budget(3, None, None, {"north": 1.0}, {"north": 12.0}, {"north": 4.0}, None)
    assert found.traffic() == Traffic(1.0, 12.0, 31.0)


def test_local_epochs_see_their_slices_again(tmp_path: Path) -> None:
    config = changed(comparison_config(), training={"local_epochs": 2})
    found = budget(opened(tmp_path / "out", config=config).entries[0])
    assert found is not None
    assert found.slices == {"north": 144, "south": 120}


def test_what_was_not_recorded_is_none(tmp_path: Path) -> None:
    found = budget(opened(tmp_path / "out", costs={}).entries[0])
    assert found is not None
    assert (found.rounds, found.steps, found.slices, found.megabytes, found.seconds) == (3, None, None, None, None)
    assert (found.all_steps, found.all_slices, found.traffic()) == (None, None, None)


def test_copying_has_no_budget(comparison: Comparison) -> None:
    assert budget(comparison.entries[-1]) is None


def test_budgets_that_differ_are_refused(tmp_path: Path) -> None:
    costs = make_costs(METHODS, (0,), comparison_config())
    costs["pflsynth"] |= {"slices": {**SLICES, "north": 12}, "steps": {"north": 3, "south": 5}}
    folder = write_comparison(tmp_path / "out", methods=METHODS, seeds=(0,), costs=costs)
    with pytest.raises(ModelError) as caught:
        open_comparison(folder)
    text = str(caught.value)
    assert "comparison.json: fedgan and pflsynth had different budgets" in text
    assert "slices.north is 24 for fedgan, 12 for pflsynth; steps.north is 6 for fedgan, 3 for pflsynth" in text


@pytest.mark.parametrize(("slices", "accepted"), [(44, True), (40, False)])
def test_a_centralised_method_must_see_as_many_slices_in_all(tmp_path: Path, slices: int, accepted: bool) -> None:
    costs = make_costs(("fedgan",), (0,), comparison_config())
    costs["pix2pix"] = {"megabytes": {"_central": 0.0}, "steps": {"_central": 11}, "slices": {"_central": slices}}
    folder = write_comparison(tmp_path / "out", methods=("fedgan", "pix2pix"), seeds=(0,), costs=costs)
    if accepted:
        assert open_comparison(folder).methods == ("fedgan", "pix2pix")
    else:
        with pytest.raises(ModelError, match="slices is 44 for fedgan, 40 for pix2pix"):
            open_comparison(folder)


# ---------------------------------------------------------------------------------------------- damaged and ill-matched


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_comparison(folder)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("whole") / "out", subjects=2)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A comparison of its own, for tests that damage it."""
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def test_runs_of_other_agreements_are_refused_with_both_values(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "out", seeds=(0,))
    agreement = json.loads((folder / "comparison.json").read_text())["agreement"]
    agreement["rounds"], agreement["training"]["batch_size"] = 5, 1
    change_comparison(folder, agreement=agreement)
    text = refused(folder)
    assert f"{run_path(folder, 'pflsynth', 0)}: was trained under another agreement than this comparison" in text
    assert "rounds is 5 in comparison.json, 3 in the run" in text
    assert "training.batch_size is 1 in comparison.json, 4 in the run" in text


def test_the_name_of_a_run_does_not_matter_but_its_seed_and_method_do(folder: Path) -> None:
    one, other = run_path(folder, "fedgan", 1), run_path(folder, "pflsynth", 1)
    spare = folder / "spare"
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    assert "method is 'pflsynth' in comparison.json, 'fedgan' in the run" in refused(folder)
    change_comparison(folder, methods=["fedgan"], seeds=[0, 7])
    run_path(folder, "fedgan", 0).rename(run_path(folder, "fedgan", 7))
    write_comparison(folder.parent / "new", methods=("fedgan",), seeds=(0,), subjects=2)
    run_path(folder.parent / "new", "fedgan", 0).rename(run_path(folder, "fedgan", 0))
    assert "seed is 7 in comparison.json, 0 in the run" in refused(folder)


@pytest.mark.parametrize(
    "name",
    ["federation.toml", "agreement.sha256", "local.json", "state.json", "metrics.jsonl", "timings.jsonl"],
)
def test_a_run_that_lost_a_file_is_named_with_it(folder: Path, name: str) -> None:
    run = run_path(folder, "fedgan", 1)
    (run / name).unlink()
    assert refused(folder) == f"{run / name}: is missing; restore it, or remove {run} and run pflsynth compare again"


def test_a_missing_run_or_its_scores(folder: Path) -> None:
    table = scores_path(run_path(folder, "fedgan", 1))
    table.unlink()
    assert refused(folder).startswith(f"{table}: is missing; restore it, or run pflsynth compare again")
    run = run_path(folder, "pflsynth", 1)
    run.rename(folder / "gone")
    assert refused(folder).startswith(f"{run}: is missing; restore it, or run pflsynth compare again")


def test_an_unfinished_run(folder: Path) -> None:
    run = RunDirectory(run_path(folder, "pflsynth", 0))
    run.save_state(replace(run.state(), round=2))
    assert f"{run.folder}: is not finished (round 2 of 3)" in refused(folder)


def test_an_agreement_that_was_changed_after_training(folder: Path) -> None:
    path = run_path(folder, "pflsynth", 0) / "federation.toml"
    path.write_text(path.read_text().replace("rounds = 3", "rounds = 4"))
    assert f"{path}: was changed after training began" in refused(folder)


def test_a_folder_without_comparison(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path}: is not a comparison (it has no comparison.json); make one with: pflsynth compare"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this pflsynth reads 1: it was written by a newer pflsynth; update pflsynth"),
        ({"methods": []}, "is damaged at methods ("),
        ({"seeds": ["one"]}, "is damaged at seeds.0 ("),
        ({"seeds": [0, 0]}, "is damaged (seeds names one twice: 0, 0)"),
        ({"split": "tests"}, "is damaged at split ("),
        ({"agreement": 3}, "is damaged at agreement ("),
        (
            {"costs": {"fedgan": {"megabytes": {}, "steps": {"north": -1}, "slices": {}}}},
            "damaged at costs.fedgan.steps.",
        ),
        (
            {"costs": {"fedgan": {"megabytes": {"north": 1}, "steps": {"north": 1}, "slices": {}}}},
            "megabytes, received, shared, steps and slices are not of the same trainers",
        ),
        (
            {
                "costs": {
                    "fedgan": {"megabytes": {"north": 1}, "received": {}, "steps": {"north": 1}, "slices": {"north": 1}}
                }
            },
            "megabytes, received, shared, steps and slices are not of the same trainers",
        ),
    ],
)
def test_a_damaged_or_newer_comparison(folder: Path, change: dict[str, Any], message: str) -> None:
    change_comparison(folder, **change)
    text = refused(folder)
    assert text.startswith(str(folder / "comparison.json"))
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1,', "is not JSON, or was cut short"),
        ("[1]", "is damaged"),
        ("{}", "is damaged"),
        ("", "cut short"),
    ],
)
def test_a_comparison_that_is_no_table(folder: Path, content: str, message: str) -> None:
    path = folder / "comparison.json"
    path.write_text(content)
    text = refused(folder)
    assert text.startswith(str(path))
    assert message in text
    assert text.endswith("restore it, or run pflsynth compare again")


def test_a_key_that_is_missing(folder: Path) -> None:
    path = folder / "comparison.json"
    content = json.loads(path.read_text())
    del content["split"]
    path.write_text(json.dumps(content))
    assert f"{path}: is damaged at split (Field required)" in refused(folder)


# ----------------------------------------------------------------------------------------------- scores that do not fit


def test_scores_of_another_round_or_split(folder: Path) -> None:
    run = run_path(folder, "fedgan", 0)
    rewritten(run, lambda scores: [replace(score, round=2) for score in scores])
    assert "is of the test split after round 2, but the test split after round 3 is wanted" in refused(folder)
    rewritten(run, lambda scores: [replace(score, round=3, split="train") for score in scores])
    text = refused(folder)
    assert text.startswith(str(scores_path(run)))
    assert "is of the train split after round 3" in text


def test_scores_of_an_unknown_site_or_task(folder: Path) -> None:
    run = run_path(folder, "fedgan", 0)
    rewritten(run, lambda scores: [*scores, make_score(20.0, site="west")])
    assert "site west with task T1w->T2w is not of this run" in refused(folder)
    rewritten(run, lambda scores: [*scores[:-1], make_score(20.0, site="south", task="T1w->FLAIR")])
    assert "site south with task T1w->FLAIR is not of this run" in refused(folder)


@pytest.mark.parametrize("model", ["copy", "personalised"])
def test_every_score_has_its_floor(folder: Path, model: str) -> None:
    run = run_path(folder, "fedgan", 0)
    lost = {"south", "sub-02"}
    rewritten(
        run,
        lambda scores: [own for own in scores if not (own.model == model and {own.site, own.subject} == lost)],
    )
    assert f"{scores_path(run)}: has no {model} score of south T1w->T2w sub-02" in refused(folder)


def test_runs_that_scored_other_subjects(folder: Path) -> None:
    first, other = run_path(folder, "pflsynth", 0), run_path(folder, "fedgan", 1)
    rewritten(other, lambda scores: [own for own in scores if own.subject != "sub-02"])
    assert refused(folder) == (
        f"{other}: has no score of north T1w->FLAIR sub-02, which {first} has; evaluate both on the same prepared data"
    )
    rewritten(other, lambda scores: [*scores, *(replace(own, subject="sub-09") for own in scores)])
    rewritten(
        other, lambda scores: [*scores, *(replace(own, subject="sub-02") for own in scores if own.subject == "sub-01")]
    )
    assert f"{first}: has no score of north T1w->FLAIR sub-09, which {other} has" in refused(folder)


def test_runs_that_were_evaluated_on_other_images(folder: Path) -> None:
    """Copying the source does not depend on the method: if its scores differ, the images did."""
    run = run_path(folder, "fedgan", 1)
    rewritten(run, lambda scores: [replace(own, psnr=own.psnr + 1) if own.model == "copy" else own for own in scores])
    text = refused(folder)
    assert text.startswith(f"{run}: psnr of copying the source is 21.0 for north T1w->T2w sub-01, but 20.0 in ")
    rewritten(run, lambda scores: [replace(own, psnr=own.psnr - 1) if own.model == "copy" else own for own in scores])
    rewritten(run, lambda scores: [replace(own, slices=7) for own in scores])
    assert "slices of copying the source is 7 for north T1w->T2w sub-01, but 6 in" in refused(folder)


def test_the_last_digits_of_the_floor_may_differ(folder: Path) -> None:
    run = run_path(folder, "fedgan", 1)
    rewritten(run, lambda scores: [replace(own, psnr=own.psnr * (1 + 1e-9)) for own in scores])
    assert len(open_comparison(folder).entries) == 5


# ---------------------------------------------------------------------------------------------------------- scores.csv


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    write_scores(path, [make_score(20.0), make_score(21.0, model="copy"), make_score(22.0, subject="a,b")])
    return path


def test_scores_come_back_as_they_were_written(table: Path) -> None:
    level = level_of(METHODS, comparison_config())("pflsynth", 1, "south", "T2w->T1w", 3)
    scores = [make_score(level / 3), make_score(math.inf, subject='quo"ted'), make_score(22.0, session="2", slices=0)]
    write_scores(table, scores)
    assert read_scores(table) == scores


def told(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as caught:
        read_scores(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith("; restore it, or evaluate the run again")
    return message


def test_a_table_with_other_columns(table: Path) -> None:
    header, *rest = lines_of(table)
    assert "line 1: the columns are method,site,task" in told(table, "method," + header + "".join(rest))
    assert f"but {header.strip()} are wanted" in told(table, "subject,psnr\na,1\n")
    assert "line 1: the columns are missing" in told(table, "")


def test_a_line_with_wrong_values_is_named(table: Path) -> None:
    header, first, second, third = lines_of(table)
    assert 'line 3: psnr is "x", which is not a number' in told(table, header + first + second.replace("21.0", "x"))
    assert 'line 2: psnr is "nan", which is not a number' in told(table, header + first.replace("20.0", "nan", 1))
    assert 'line 2: psnr is "", which is not a number' in told(table, header + first.replace("20.0", "", 1))
    assert 'line 2: round is "3.5", which is not a number' in told(table, header + first.replace(",3,", ",3.5,"))
    model = first.replace("personalised", "global")
    assert 'line 2: model is "global", but personalised or copy is wanted' in told(table, header + model)
    assert "line 4: north T1w->T2w sub-01 is there twice" in told(table, header + first + second + first)
    count = len(header.split(","))
    assert f"line 3: there are 3 values, but {count} are wanted" in told(table, header + first + "a,b,c\n" + third)


def test_a_table_that_was_cut_short(table: Path) -> None:
    text = table.read_text()
    assert "line 4: is cut short" in told(table, text[:-1])
    assert "line 3: there are" in told(table, "".join(lines_of(table)[:2]) + lines_of_text(text)[2][:12])
    assert "holds no scores" in told(table, lines_of_text(text)[0])
    assert "line 4" in told(table, text[: text.index('"a,b') + 3])


def lines_of_text(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def test_a_table_that_is_no_text(table: Path) -> None:
    assert "is damaged" in told(table, b"\xff\xfe\x00")
    table.unlink()
    with pytest.raises(ModelError, match="there is no such file"):
        read_scores(table)
