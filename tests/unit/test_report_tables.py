"""The tables and facts of a report, against numbers worked out by hand from ``comparison_builders.py``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pflsynth.evaluation.comparison import METRIC_NAMES, Comparison, open_comparison
from pflsynth.evaluation.table_facts import MAIN_METRICS, Rows
from pflsynth.report import sections
from pflsynth.report.curves import common_limits, learning_curves
from pflsynth.report.facts import agreement, budget_sentence, facts, not_computed
from pflsynth.report.figures import Curve
from pflsynth.report.sections import Cell, Line, Table

from ..comparison_builders import comparison_config, run_path, write_comparison

ORDER = ("fedgan", "pflsynth", "copy")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods, two seeds, two sites of four subjects; validated in every round."""
    config = comparison_config(training={"batch_size": 4, "learning_rate": 1e-3, "validate_every": 1})
    return open_comparison(
        write_comparison(tmp_path_factory.mktemp("tables") / "one", methods=ORDER[:2], config=config)
    )


def texts(table: Table) -> dict[str, list[str]]:
    return {line.head: [cell.text for cell in line.cells] for line in table.lines}


def line_of(table: Table, place: int) -> Line:
    return table.lines[place]


def test_a_score_over_all_subjects(comparison: Comparison) -> None:
    overall = Rows(comparison, METRIC_NAMES, "all")
    table = sections.score_table(comparison, overall, "psnr", ORDER)
    assert table.headings == ("method", "PSNR (dB) ± SD", "95 % interval", "seed SD", "Δ", "p", "effect", "n")
    # Persons of fedgan: 30 + 0.25 (seeds) - 0.125 (tasks), less 0 or 1 (sites), and 0, 0.5, 1, 1.5 (subjects).
    # Means of its seeds are 0.5 apart. Eight equal differences: p = 2 / 2**8, twice that after Holm.
    mean, interval, *rest = texts(table)["fedgan"]
    assert (mean, rest) == ("30.38 ± 0.80", ["0.35", "−2.00", "0.016", "−1.00", "8"])
    low, high = (float(end) for end in interval.split(" to "))
    assert 29.6 < low < 30.375 < high < 31.1
    mean, _, *rest = texts(table)["pflsynth"]
    assert (mean, rest) == ("28.38 ± 0.80", ["0.35", "–", "–", "–", "8"])
    mean, _, *rest = texts(table)["copy"]
    assert (mean, rest) == ("20.12 ± 0.80", ["–", "+8.25", "0.016", "+1.00", "8"])
    assert [line.method for line in table.lines] == list(ORDER)
    assert [line.cells[0].bold for line in table.lines] == [True, False, False]


def test_settings_have_tables_of_their_own(comparison: Comparison) -> None:
    overall = Rows(comparison, METRIC_NAMES, "all")
    table = sections.metrics_table(overall, ("psnr", "mae", "lpips"), ORDER)
    assert table.headings == ("method", "PSNR (dB)", "MAE")  # LPIPS was computed for none
    assert texts(table)["pflsynth"] == ["28.38 ± 0.80", "0.1392 ± 0.0031"]  # 1/4 - 28.375/256
    assert [line.cells[1].bold for line in table.lines] == [True, False, False]  # the least error


def test_each_site_is_followed_by_its_tasks(comparison: Comparison) -> None:
    table = sections.place_table(comparison, "psnr", ORDER)
    assert [line.head for line in table.lines] == [
        *("north", "T1w → T2w", "T1w → FLAIR"),
        *("south", "T1w → T2w", "T2w → T1w"),
    ]
    assert [line.inner for line in table.lines] == [False, True, True, False, True, True]
    assert (table.headings, table.methods) == (("site and task", "n", *ORDER), ORDER)
    # north of fedgan: 30 + 0.25 + 0.75 (subjects), less 0.125 over both tasks, 0 and 0.25 in each
    cells = [[cell.text for cell in line.cells] for line in table.lines[:3]]
    assert [own[:2] for own in cells] == [["4", "30.88 ± 0.65"], ["4", "31.00 ± 0.65"], ["4", "30.75 ± 0.65"]]
    assert [own[3] for own in cells] == ["20.62 ± 0.65", "20.75 ± 0.65", "20.50 ± 0.65"]


def test_differences_are_coloured_by_who_is_better(comparison: Comparison) -> None:
    found = sections.difference_table(comparison, "psnr", ORDER)
    assert found.table.headings == ("site and task", "fedgan", "copy")
    for line in found.table.lines:
        assert line.cells == (Cell("−2.00", False, "n 4", "minus3"), Cell("+8.25", False, "n 4", "plus3"))
    assert (found.tests, dict(found.untested)) == (12, {"4 pairs; the test needs at least 6": 12})
    errors = sections.difference_table(comparison, "mae", ORDER)
    assert errors.table.lines[0].cells[0] == Cell("+0.0078", False, "n 4", "minus3")  # 2/256 more error


def test_significant_differences_are_bold_and_small_ones_pale(tmp_path: Path) -> None:
    def level(method: str, seed: int, site: str, task: str, subject: int) -> float:
        tops = {"pflsynth": 25.0, "fedgan": 24.5, "local": 22.0 if site == "north" else 25.0, "copy": 15.0}
        return tops[method] + 0.25 * subject

    folder = write_comparison(
        tmp_path / "one", methods=("pflsynth", "fedgan", "local"), seeds=(0,), subjects=8, level=level
    )
    found = sections.difference_table(open_comparison(folder), "psnr", ("pflsynth", "fedgan", "local", "copy"))
    north, south = line_of(found.table, 0), line_of(found.table, 3)
    # p = 2 / 2**8 each, three times that after Holm; the largest difference of a method is 3 dB
    assert north.cells[:2] == (Cell("+0.50", True, "p 0.023", "plus1"), Cell("+3.00", True, "p 0.023", "plus3"))
    assert south.cells[1] == Cell("0.00", False, "n 8", "")
    assert dict(found.untested) == {"all pairs are equal": 3}


def test_budgets_and_what_is_sent(comparison: Comparison) -> None:
    budgets = sections.budgets_of(comparison)
    assert budget_sentence(budgets).startswith("Equal for every method: 3 rounds and 132 training slices seen")
    table = sections.budget_table(budgets)
    # 24 + 20 slices and 6 + 5 steps in each of 3 rounds; 6 and 7 seconds
    assert texts(table)["pflsynth"] == ["3", "33", "132", "0.1"]
    sent = sections.communication_table(budgets)
    assert sent is not None
    both_ways = ("all sites send", "all sites receive", "all rounds, both ways")
    assert sent.headings == ("method", "north", "south", *both_ways)
    assert texts(sent) == {
        "fedgan": ["4.00", "4.00", "8.00", "8.00", "48"],
        "pflsynth": ["2.50", "2.50", "5.00", "5.00", "30"],
    }
    assert sections.count_text(1234567) == "1\u2009234\u2009567"


def test_costs_that_were_not_recorded_are_dashes(tmp_path: Path) -> None:
    budgets = sections.budgets_of(open_comparison(write_comparison(tmp_path / "one", costs={})))
    assert texts(sections.budget_table(budgets))["pflsynth"] == ["3", "–", "–", "–"]
    assert sections.communication_table(budgets) is None
    assert budget_sentence(budgets) == "Equal for every method: 3 rounds, with the same data, order and seeds."


def test_facts_say_what_the_numbers_are_of(comparison: Comparison) -> None:
    told = dict(facts(comparison))
    assert told["subjects"] == "north 4 and south 4"
    assert told["model"] == "each site's personalised model after round 3"
    assert told["slices"] == "32 × 32 pixels, normalised by percentile"
    assert (told["seeds"], told["split"]) == ("0 and 1", "test")
    assert "held-out site" not in told


def test_the_agreement_leaves_out_what_the_runs_differ_in(comparison: Comparison) -> None:
    told = dict(agreement(comparison))
    assert told["training.batch_size"] == "4"
    assert told["sites.north.tasks"] == "T1w → T2w, T1w → FLAIR"
    assert told["image.spacing_mm"] == "not set"
    assert not {"method", "seed", "name"} & told.keys()


def test_what_was_not_computed_is_told_with_its_reason(comparison: Comparison) -> None:
    differences = {metric: sections.difference_table(comparison, metric, ORDER) for metric in MAIN_METRICS}
    told = dict(not_computed(comparison, differences))
    assert "FID" in told
    assert "fedgan and pflsynth" in told["LPIPS"]
    assert told["p of PSNR in 12 of 12 tests at sites and tasks"] == "4 pairs; the test needs at least 6"
    assert "Spread between seeds" not in told


def test_one_seed_and_few_subjects_are_told(tmp_path: Path) -> None:
    found = open_comparison(write_comparison(tmp_path / "one", seeds=(0,), subjects=2))
    differences = {metric: sections.difference_table(found, metric, ORDER) for metric in MAIN_METRICS}
    told = dict(not_computed(found, differences))
    assert told["Spread between seeds"] == "there is one seed"
    assert told["p of SSIM, pflsynth against fedgan"] == "4 pairs; the test needs at least 6"


def test_learning_curves_are_means_over_seeds(comparison: Comparison) -> None:
    curves = learning_curves(comparison)
    assert list(curves.losses) == [
        *(("north", "T1w->T2w"), ("north", "T1w->FLAIR")),
        *(("south", "T1w->T2w"), ("south", "T2w->T1w")),
    ]
    thirds = (0.25, 0.125, 0.25 / 3)  # of the builder: 0.25 / (round + place of the task)
    assert curves.losses["north", "T1w->T2w"]["fedgan"] == Curve((1, 2, 3), thirds, thirds, thirds)
    assert curves.losses["north", "T1w->FLAIR"]["fedgan"].mean == (0.125, 0.25 / 3, 0.0625)
    assert curves.validation["south"]["pflsynth"].mean == (21.0, 22.0, 23.0)
    assert common_limits(curves.losses) == pytest.approx((0.0625 / 1.1, 0.25 * 1.1))


def test_curves_show_the_spread_of_seeds_and_leave_out_what_is_not_there(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "one", methods=("pflsynth", "pix2pix"))
    records = {
        run_path(folder, "pflsynth", 1): (
            '{"round": 1, "losses": {"north": {"l1/T1w->T2w": 0.5}}}\n{"round": 2, "losses": {"south": {}}}\n'
        ),
        run_path(folder, "pix2pix", 0): '{"round": 1, "losses": {"_central": {"l1/T1w->T2w": 0.75}}}\n',
        run_path(folder, "pix2pix", 1): '{"round": 1, "losses": {"_central": {"l1/T1w->T2w": NaN}}}\n',
    }
    for run, text in records.items():
        (run / "metrics.jsonl").write_text(text)
    losses = learning_curves(open_comparison(folder)).losses
    own = losses["north", "T1w->T2w"]["pflsynth"]
    assert (own.mean[0], own.low[0], own.high[0]) == (0.375, 0.25, 0.5)
    assert own.mean[1:] == (0.125, 0.25 / 3)  # seed 0 alone
    for place in (("north", "T1w->T2w"), ("south", "T1w->T2w")):
        assert losses[place]["pix2pix"] == Curve((1,), (0.75,), (0.75,), (0.75,))
    assert "pix2pix" not in losses["south", "T2w->T1w"]
    assert not any(math.isnan(value) for own in losses.values() for curve in own.values() for value in curve.mean)


def test_a_loss_of_zero_has_no_logarithm() -> None:
    curve = Curve((1,), (0.0,), (0.0,), (0.0,))
    assert common_limits({("north", "T1w->T2w"): {"pflsynth": curve}}) is None
    assert common_limits({}) is None
