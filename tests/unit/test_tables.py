"""The tables of a comparison: what they say, that the best is bold, and that their bytes are always the same."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pflsynth.evaluation import latex
from pflsynth.evaluation.comparison import METRIC_NAMES, Comparison, open_comparison
from pflsynth.evaluation.table_facts import SETTINGS, printed
from pflsynth.evaluation.tables import comparison_table, write_tables

from ..comparison_builders import FORMULAS, change_comparison, comparison_config, lines, make_costs, write_comparison

METHODS = ("fedgan", "pflsynth")
NAMES = ("overall", "sites", "tasks", "tests", "communication")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """fedgan (first, and 2 dB better) and pflsynth, seeds 0 and 1, LPIPS not computed."""
    return open_comparison(write_comparison(tmp_path_factory.mktemp("comparison") / "out", methods=METHODS))


@pytest.fixture(scope="module")
def tables(comparison: Comparison) -> dict[str, str]:
    """The text of every file."""
    return {path.name: path.read_text() for path in write_tables(comparison)}


def written(folder: Path, **settings: Any) -> dict[str, str]:
    """The tables of a smaller comparison: two subjects a site, one seed."""
    comparison = open_comparison(write_comparison(folder, **{"subjects": 2, "seeds": (0,), **settings}))
    return {path.name: path.read_text() for path in write_tables(comparison)}


def row_of(text: str, method: str) -> list[str]:
    """The cells of a method in the first table of a LaTeX file."""
    row = next(line for line in text.splitlines() if line.startswith(f"{method} & "))
    return row.removesuffix(r" \\").split(" & ")


def caption_of(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(r"\caption{"))


# ---------------------------------------------------------------------------------------------------------------- files


def test_five_tables_in_two_forms(comparison: Comparison, tables: dict[str, str]) -> None:
    assert list(tables) == [f"{name}{ending}" for name in NAMES for ending in (".csv", ".tex")]
    assert {path.name for path in (comparison.folder / "tables").iterdir()} == set(tables)


def test_the_same_comparison_gives_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    tables = written(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copied")
    elsewhere = tmp_path / "tables" / "of" / "it"
    again = write_tables(open_comparison(tmp_path / "copied"), elsewhere)
    assert {path.name: path.read_text() for path in again} == tables
    assert {path.parent for path in again} == {elsewhere}
    assert not any(str(tmp_path) in text for text in tables.values())


# ------------------------------------------------------------------------------------------------------------------ CSV


def test_overall_numbers_and_what_they_are_of(tables: dict[str, str]) -> None:
    (line,) = lines(tables["overall.csv"], method="pflsynth", metric="psnr")
    assert {key: line[key] for key in ("subjects", "mean", "sd", "low", "high", "seed_sd")} == {
        "subjects": "8",
        "mean": "28.375",
        "sd": "0.801784",  # of 27.125 to 29.625 dB: sqrt(4.5 / 7)
        "low": "27.875",
        "high": "28.875",
        "seed_sd": "0.353553",  # of two seeds that are 0.5 dB apart
    }
    assert {key: line[key] for key in ("model", "round", "split", "seeds", "normalizer", "note")} == {
        "model": "personalised",
        "round": "3",
        "split": "test",
        "seeds": "0 1",
        "normalizer": "percentile",
        "note": "",
    }


def test_the_floor_has_neither_round_nor_seeds(tables: dict[str, str]) -> None:
    (line,) = lines(tables["overall.csv"], method="copy", metric="psnr")
    assert [line[key] for key in ("mean", "model", "round", "seeds", "seed_sd")] == ["20.125", "copy", "", "", ""]


def test_every_method_and_metric_has_its_line_also_what_was_not_computed(tables: dict[str, str]) -> None:
    found = [(line["metric"], line["method"]) for line in lines(tables["overall.csv"])]
    assert found == [(metric, method) for metric in METRIC_NAMES for method in (*METHODS, "copy")]
    for line in lines(tables["overall.csv"], metric="lpips"):
        assert (line["mean"], line["subjects"], line["note"]) == ("", "", "not computed")


def test_sites_and_tasks(tables: dict[str, str]) -> None:
    (line,) = lines(tables["sites.csv"], method="fedgan", metric="psnr", site="south")
    assert (line["subjects"], line["mean"]) == ("4", "29.875")
    (line,) = lines(tables["tasks.csv"], method="fedgan", metric="psnr", site="south", task="T2w->T1w")
    assert (line["subjects"], line["mean"]) == ("4", "29.75")
    assert len(lines(tables["tasks.csv"], metric="psnr")) == 2 * 2 * 3


def test_tests_with_p_or_the_reason_why_not(tables: dict[str, str]) -> None:
    whole, north, _ = lines(tables["tests.csv"], method="fedgan", metric="psnr")
    assert (whole["reference"], whole["site"], whole["pairs"]) == ("pflsynth", "", "8")
    assert [whole[key] for key in ("difference", "effect", "p", "p_holm")] == ["-2", "-1", "0.0078125", "0.015625"]
    assert [north[key] for key in ("site", "pairs", "p", "note")] == [
        "north",
        "4",
        "",
        "4 pairs; the test needs at least 6",
    ]
    assert {line["note"] for line in lines(tables["tests.csv"], metric="lpips")} == {"not computed"}


def test_communication(tables: dict[str, str]) -> None:
    """2.5 MB from each of two sites, three rounds, both ways: 30 MB; 6 and 7 seconds for the seeds."""
    north, south, together = lines(tables["communication.csv"], method="pflsynth")
    assert (north["trainer"], north["steps"], north["slices"], north["mb_in_all"]) == ("north", "18", "72", "15")
    assert (south["trainer"], south["steps"], south["slices"], south["seconds"]) == ("south", "15", "60", "")
    assert together == {
        "method": "pflsynth",
        "trainer": "(all)",
        "rounds": "3",
        "steps": "33",
        "slices": "132",
        "mb_sent_per_round": "5",
        "mb_received_per_round": "5",
        "mb_in_all": "30",
        "seconds": "6.5",
        "note": "",
    }


def test_costs_that_were_not_recorded(tmp_path: Path) -> None:
    tables = written(tmp_path / "out", costs=make_costs(("pflsynth",), (0, 1), comparison_config()))
    (line,) = lines(tables["communication.csv"], method="fedgan")
    assert (line["trainer"], line["rounds"], line["steps"], line["note"]) == ("(all)", "3", "", "not computed")
    assert row_of(tables["communication.tex"], "fedgan") == ["fedgan", "3", *["not computed"] * 5]
    assert row_of(tables["communication.tex"], "pflsynth") == ["pflsynth", "3", "33", "132", "5.00", "5.00", "30.00"]


def test_what_is_passed_on_is_received(tmp_path: Path) -> None:
    """A site sends 1 MB and receives the mean and two updates, 3 MB: 3 + 3 + 2 * 2 = 10 MB, nothing before round 1."""
    tables = written(tmp_path / "out", methods=("pflsynth", "fedmri"))
    columns = ("trainer", "mb_sent_per_round", "mb_received_per_round", "mb_in_all")
    assert [[line[key] for key in columns] for line in lines(tables["communication.csv"], method="fedmri")] == [
        ["north", "1", "3", "10"],
        ["south", "1", "3", "10"],
        ["(all)", "2", "6", "20"],
    ]
    assert row_of(tables["communication.tex"], "fedmri")[-3:] == ["2.00", "6.00", "20.00"]


def test_what_is_received_is_not_computed_from_older_files(tmp_path: Path) -> None:
    costs = make_costs(METHODS, (0,), comparison_config())
    for cost in costs.values():
        del cost["received"]
    tables = written(tmp_path / "out", costs=costs)
    _, _, together = lines(tables["communication.csv"], method="pflsynth")
    assert [together[key] for key in ("mb_sent_per_round", "mb_received_per_round", "mb_in_all")] == ["5", "", ""]
    assert row_of(tables["communication.tex"], "pflsynth")[-3:] == ["5.00", "not computed", "not computed"]


# ---------------------------------------------------------------------------------------------------------------- LaTeX


def test_mean_and_deviation_with_the_best_in_bold(tables: dict[str, str]) -> None:
    text = tables["overall.tex"]
    assert row_of(text, "fedgan")[:3] == ["fedgan", r"$\mathbf{30.38 \pm 0.80}$", r"$\mathbf{0.737 \pm 0.006}$"]
    assert row_of(text, "pflsynth")[:3] == ["pflsynth", r"$28.38 \pm 0.80$", r"$0.722 \pm 0.006$"]
    assert row_of(text, "copy")[-1] == "not computed"


def test_of_errors_the_lowest_is_best(tmp_path: Path) -> None:
    text = written(tmp_path / "out", formulas={**FORMULAS, "mae": lambda level: level / 256})["overall.tex"]
    assert [row_of(text, method)[3].startswith(r"$\mathbf") for method in ("pflsynth", "fedgan", "copy")] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("ahead", "bold"), [(0.002, [True, True, False]), (0.02, [True, False, False])])
def test_the_best_is_decided_on_the_printed_numbers(tmp_path: Path, ahead: float, bold: list[bool]) -> None:
    """25.000 and 25.002 dB are both printed as 25.00, so both are best."""
    tops = {"pflsynth": 25.0 + ahead, "fedgan": 25.0, "copy": 20.0}
    text = written(tmp_path / "out", level=lambda method, *_: tops[method])["overall.tex"]
    assert [row_of(text, method)[1].startswith(r"$\mathbf") for method in tops] == bold


def test_all_equal_scores_are_all_best(tmp_path: Path) -> None:
    tables = written(tmp_path / "out", level=lambda *_: 25.0)
    assert {row_of(tables["overall.tex"], name)[1] for name in (*METHODS, "copy")} == {r"$\mathbf{25.00 \pm 0.00}$"}
    assert row_of(tables["tests.tex"], "fedgan")[1:4] == ["$+0.00$", "--", "--"]
    assert "No p in PSNR, SSIM for fedgan, copy: all pairs are equal." in caption_of(tables["tests.tex"])


def test_infinite_scores(tmp_path: Path) -> None:
    constant = {name: (lambda _: 0.5) for name in FORMULAS}
    tops = {"pflsynth": float("inf"), "fedgan": 25.0, "copy": 20.0}
    level = lambda method, *_: tops[method]  # noqa: E731
    tables = written(tmp_path / "out", level=level, formulas={**constant, "psnr": lambda level: level})
    assert row_of(tables["overall.tex"], "pflsynth")[1] == r"$\mathbf{\infty}$"
    assert lines(tables["overall.csv"], method="pflsynth", metric="psnr")[0]["mean"] == "inf"
    assert row_of(tables["tests.tex"], "fedgan")[1:4] == [r"$+\infty$", "--", "--"]


def test_both_infinite_have_no_difference(tmp_path: Path) -> None:
    constant = {name: (lambda _: 0.5) for name in FORMULAS}
    tables = written(tmp_path / "out", formulas={**constant, "psnr": lambda _: float("inf")})
    assert row_of(tables["tests.tex"], "fedgan")[1:4] == ["--", "--", "--"]
    assert lines(tables["tests.csv"], method="fedgan", metric="psnr")[0]["difference"] == ""


def test_the_caption_says_what_the_numbers_are_of(tables: dict[str, str]) -> None:
    caption = caption_of(tables["overall.tex"])
    for words in (
        "whole slice",
        "personalised models after round 3",
        "test split",
        "8 subjects of 2 sites",
        "seeds 0, 1",
        "percentile normaliser",
        r"Mean $\pm$ standard deviation over subjects",
        "LPIPS: not computed.",
    ):
        assert words in caption
    assert "4 subjects of site north" in caption_of(tables["sites.tex"])


def test_settings_never_share_a_table(tables: dict[str, str]) -> None:
    assert sorted(name for metrics in SETTINGS.values() for name in metrics) == sorted(METRIC_NAMES)
    whole, mask, field = tables["overall.tex"].split(r"\end{table}")[:3]
    assert [row_of(part, "fedgan")[1] for part in (whole, mask, field)] == [
        r"$\mathbf{30.38 \pm 0.80}$",
        r"$\mathbf{26.38 \pm 0.80}$",
        r"$\mathbf{31.38 \pm 0.80}$",
    ]
    assert "within the head mask" in caption_of(mask)
    assert "the field's path (joint maximum, 8 bit)" in caption_of(field)


def test_tables_by_task_name_each_task(tables: dict[str, str]) -> None:
    north, south = tables["tasks.tex"].split(r"\end{table}")[:2]
    assert r"T1w$\rightarrow$FLAIR, PSNR" in north
    assert r"T2w$\rightarrow$T1w, SSIM" in south
    assert row_of(south, "pflsynth")[1:4:2] == [r"$28.00 \pm 0.65$", r"$27.75 \pm 0.65$"]


def test_tests_in_latex(tables: dict[str, str]) -> None:
    assert row_of(tables["tests.tex"], "fedgan") == [
        *("fedgan", "$-2.00$", "$-1.00$", "$0.016$"),
        *("$-0.016$", "$-1.00$", "$0.016$"),
    ]
    assert "pflsynth minus the method" in caption_of(tables["tests.tex"])
    assert "Holm's correction over the 2 tests of a metric" in caption_of(tables["tests.tex"])
    assert not any(line.startswith("pflsynth & ") for line in tables["tests.tex"].splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_whole(tables: dict[str, str], name: str) -> None:
    text = tables[f"{name}.tex"]
    for left, right in (("{", "}"), (r"\begin{table}", r"\end{table}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert text.count(left) == text.count(right) > 0
    assert text.count("$") % 2 == 0
    labels = [line for line in text.splitlines() if line.startswith(r"\label")]
    assert len(labels) == len(set(labels)) == text.count(r"\begin{table}")
    for part in text.split(r"\begin{tabular}")[1:]:
        widths = {line.count(" & ") for line in part.splitlines() if line.endswith(r" \\")}
        assert len(widths) == 1
        assert part.split("}")[0] == "{l" + "r" * widths.pop()


def test_special_characters_are_escaped(tmp_path: Path) -> None:
    config = comparison_config(name="my_study", sites={"site_1": {"tasks": ["T1w->T2w"]}})
    tables = written(tmp_path / "out", methods=("pflsynth", "lg_x"), config=config)
    assert r"lg\_x & " in tables["overall.tex"]
    assert r"site site\_1" in caption_of(tables["sites.tex"])
    assert latex.plain("50 % of a_b & c # $x$ {y} -> z") == r"50 \% of a\_b \& c \# \$x\$ \{y\} $\rightarrow$ z"
    assert latex.plain("~ ^ \\ 1 < 2") == r"\textasciitilde{} \textasciicircum{} \textbackslash{} 1 $<$ 2"


def test_notes_on_a_method_are_told_by_every_table(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "out", methods=METHODS, subjects=2, seeds=(0,))
    change_comparison(folder, notes={"fedgan": "without its perceptual loss"})
    comparison = open_comparison(folder)
    for path in write_tables(comparison):
        assert "without its perceptual loss" in path.read_text(), path.name
    assert "fedgan: without its perceptual loss." in shown(comparison)


def test_zero_has_no_minus() -> None:
    assert [printed(-0.001, 2), printed(-0.001, 2, "+"), printed(0.125, 1), printed(float("-inf"), 2)] == [
        "0.00",
        "+0.00",
        "0.1",
        "-inf",
    ]


# ------------------------------------------------------------------------------------------------------------- terminal


def shown(comparison: Comparison, width: int = 130) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(comparison_table(comparison))
    return console.export_text(styles=False)


def test_the_terminal_has_a_line_for_each_method(comparison: Comparison) -> None:
    text = shown(comparison)
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [line[:5] for line in found] == [
        ["fedgan", "30.38 ± 0.80", "29.88 to 30.88", "-2.00", "0.016"],
        ["pflsynth", "28.38 ± 0.80", "27.88 to 28.88", "", ""],
        ["copy", "20.12 ± 0.80", "19.62 to 20.62", "+8.25", "0.016"],
    ]
    assert [line[5:] for line in found] == [
        ["0.737 ± 0.006", "0.733 to 0.741", "-0.016", "0.016"],
        ["0.722 ± 0.006", "0.718 to 0.726", "", ""],
        ["0.657 ± 0.006", "0.653 to 0.661", "+0.064", "0.016"],
    ]
    assert "tiny: whole slice, personalised models after round 3, test split, 8 subjects of 2 sites" in text
    assert "pflsynth minus the method" in text


def test_the_terminal_shows_the_best_in_bold(comparison: Comparison) -> None:
    table = comparison_table(comparison)
    psnr = list(table.columns[1].cells)
    assert psnr == ["[bold]30.38 ± 0.80[/]", "28.38 ± 0.80", "20.12 ± 0.80"]


def test_the_terminal_says_why_there_is_no_p(tmp_path: Path) -> None:
    comparison = open_comparison(write_comparison(tmp_path / "out", subjects=1))
    text = shown(comparison)
    assert "No p in PSNR, SSIM for fedgan, copy: 2 pairs; the test needs at least 6." in text
    assert "–" in text


def test_one_subject_has_no_deviation(tmp_path: Path) -> None:
    config = comparison_config(sites={"north": {"tasks": ["T1w->T2w"]}})
    comparison = open_comparison(write_comparison(tmp_path / "out", subjects=1, seeds=(0,), config=config))
    cells = [next(iter(column.cells)) for column in comparison_table(comparison).columns][:3]
    assert cells == ["pflsynth", "[bold]30.00[/]", "–"]
    assert "1 subject of 1 site, seed 0," in " ".join(shown(comparison).split())
