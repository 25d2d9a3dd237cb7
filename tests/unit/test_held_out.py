"""Scores at a site that did not take part: tables, terminal and section of the report, and what is refused.

A person has, over seeds and tasks, 29.125 - 6 + 0.5 * subject dB at south with pflsynth, 2 dB less with fedgan, and
18.875 + 0.5 * subject with copying; the fit adds 1 and 4 dB. Over eight subjects, 0.5 * subject is 1.75 in the mean.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pflsynth import comparing
from pflsynth.errors import ModelError
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.held_out import fit_text, held_out_rows, how_served, open_held_out
from pflsynth.evaluation.tables import held_out_table, write_tables
from pflsynth.report.figures import method_styles
from pflsynth.report.held_out import HeldOutPart, held_out_part

from ..comparison_builders import (
    FIT_ROUNDS,
    METHODS,
    held_out_scores_path,
    lines,
    write_comparison,
    write_held_out,
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return open_comparison(write_held_out(tmp_path_factory.mktemp("held") / "out", subjects=8))


@pytest.fixture(scope="module")
def tables(comparison: Comparison) -> dict[str, str]:
    return {path.name: path.read_text() for path in write_tables(comparison)}


def part_of(comparison: Comparison) -> HeldOutPart | None:
    styles = method_styles(comparison.methods, comparison.reference, "copy")
    return held_out_part(comparison, (*comparison.methods, "copy"), styles)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_held_out(open_comparison(folder))
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- tables


def test_a_line_says_what_its_numbers_are_and_of_what(tables: dict[str, str]) -> None:
    (line,) = lines(tables["held_out.csv"], method="fedgan", fit_rounds="5", metric="psnr")
    assert line == {
        "method": "fedgan",
        "site": "south",
        "fit_rounds": "5",
        "metric": "psnr",
        "subjects": "8",
        "mean": "26.875",  # 29.125 - 6 - 2 + 4 + 1.75
        "sd": "1.22474",  # 0.5 times that of 0 to 7: sqrt(6) / 2
        "low": line["low"],
        "high": line["high"],
        "seed_sd": "0.353553",
        "reference": "pflsynth",
        "pairs": "8",
        "difference": "-1",
        "effect": "-1",
        "p": "0.0078125",  # 2 / 2**8
        "p_holm": "0.015625",
        "model": "personalised",
        "round": "3",
        "split": "test",
        "seeds": "0 1",
        "normalizer": "percentile",
        "note": "",
    }
    assert 26.0 < float(line["low"]) < 26.875 < float(line["high"]) < 27.75


def test_methods_are_tested_at_the_same_rounds_of_fit(tables: dict[str, str]) -> None:
    found = [
        [line[key] for key in ("fit_rounds", "method", "mean", "difference", "p_holm")]
        for line in lines(tables["held_out.csv"], metric="psnr")
    ]
    assert found == [
        ["0", "pflsynth", "24.875", "", ""],
        ["0", "fedgan", "22.875", "2", "0.015625"],
        ["0", "copy", "20.625", "4.25", "0.015625"],
        ["5", "pflsynth", "25.875", "", ""],
        ["5", "fedgan", "26.875", "-1", "0.015625"],
        ["5", "copy", "20.625", "5.25", "0.015625"],
    ]
    assert {line["metric"] for line in lines(tables["held_out.csv"])} == {"psnr", "ssim"}


def test_latex(tables: dict[str, str]) -> None:
    psnr, ssim = tables["held_out.tex"].split(r"\end{table}")[:2]
    rows = [line.removesuffix(r" \\").split(" & ") for line in psnr.splitlines() if line.endswith(r" \\")]
    before, after = rows[1:4], rows[4:]
    assert [row[:4] for row in before] == [
        ["pflsynth", "$0$", "8", r"$\mathbf{24.88 \pm 1.22}$"],
        ["fedgan", "$0$", "8", r"$22.88 \pm 1.22$"],
        ["copy", "--", "8", r"$20.62 \pm 1.22$"],
    ]
    assert after[1][3] == r"$\mathbf{26.88 \pm 1.22}$"
    assert after[0][5:] == ["$0.35$", "--", "--", "--"]
    assert after[1][5:] == ["$0.35$", "$-1.00$", "$-1.00$", "$0.016$"]
    assert re.fullmatch(r"\$2\d\.\d\d\$ to \$2\d\.\d\d\$", after[1][4])
    assert "PSNR (dB) at south, which did not take part, whole slice" in psnr
    assert "8 subjects of 1 site" in psnr
    assert "SSIM at south" in ssim
    text = tables["held_out.tex"]
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0


def test_the_terminal_has_the_same_numbers(comparison: Comparison) -> None:
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(held_out_table(open_held_out(comparison)))
    text = console.export_text()
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert [line[:6] for line in found] == [
        ["pflsynth", "0", "8", "24.88 ± 1.22", "", ""],
        ["fedgan", "0", "8", "22.88 ± 1.22", "+2.00", "0.016"],
        ["copy", "–", "8", "20.62 ± 1.22", "+4.25", "0.016"],
        ["pflsynth", "5", "8", "25.88 ± 1.22", "", ""],
        ["fedgan", "5", "8", "26.88 ± 1.22", "-1.00", "0.016"],
        ["copy", "–", "8", "20.62 ± 1.22", "+5.25", "0.016"],
    ]
    words = " ".join(text.split())
    assert "south, which did not take part" in words
    assert "What a method keeps private starts as the seed makes it" in words


def test_too_few_subjects_are_told_and_no_p_is_invented(tmp_path: Path) -> None:
    comparison = open_comparison(write_held_out(tmp_path / "out", subjects=1, seeds=(0,)))
    texts = {path.name: path.read_text() for path in write_tables(comparison)}
    for line in lines(texts["held_out.csv"], method="fedgan"):
        assert [line[key] for key in ("pairs", "p", "p_holm", "sd", "low", "seed_sd")] == ["1", "", "", "", "", ""]
        assert line["note"] == "1 pair; the test needs at least 6"
    said = "No p in PSNR, SSIM for fedgan, copy: 1 pair; the test needs at least 6."
    assert texts["held_out.tex"].count(said) == 2
    assert f"local fit: {said}" not in texts["held_out.tex"]  # it holds before and after


def test_a_reason_that_holds_before_the_fit_alone_names_it(tmp_path: Path) -> None:
    """Before the fit fedgan is raised to the reference: all pairs are equal there, and only there."""
    folder = write_held_out(tmp_path / "out", subjects=8, seeds=(0,))
    change_scores(folder, "fedgan", 0, lambda own: own["fit_rounds"] == 0, psnr=lambda value: value + 2)
    text = next(path for path in write_tables(open_comparison(folder)) if path.name == "held_out.tex").read_text()
    assert "With no local fit: No p in PSNR for fedgan: all pairs are equal." in text
    assert "all pairs are equal" not in text.replace("With no local fit: No p in PSNR for fedgan: all pairs are", "")


def test_what_stands_in_for_private_parts_is_told_of_each_method(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path / "out", methods=("pflsynth", "local", "unheard", "pix2pix"), subjects=1)
    private, central = how_served(open_comparison(folder))[1:]
    assert private.startswith("What a method keeps private starts as the seed makes it, for the site never had any: ")
    assert "pflsynth (earlier stages, " in private
    assert private.endswith("local (everything).")
    assert central == "Centralised methods give their whole generator: pix2pix."


def test_rounds_in_words() -> None:
    assert [fit_text(rounds) for rounds in (0, 1, 5)] == [
        "no local fit",
        "1 round of local fit",
        "5 rounds of local fit",
    ]


def test_without_a_held_out_site_there_is_nothing(tmp_path: Path) -> None:
    comparison = open_comparison(write_comparison(tmp_path / "out", subjects=2))
    assert open_held_out(comparison) == {}
    assert part_of(comparison) is None
    assert not any("held" in path.name for path in write_tables(comparison))


# --------------------------------------------------------------------------------------------------------------- report


def test_the_section_has_a_figure_and_both_tables_of_each_score(comparison: Comparison) -> None:
    part = part_of(comparison)
    assert part is not None
    assert (part.site, part.fit) == ("south", "5 rounds of local fit")
    assert part.pictures["psnr"].text == (
        "PSNR (dB), mean and 95 % interval, before → after 5 rounds of local fit: "
        "pflsynth 24.88 → 25.88, fedgan 22.88 → 26.88, copy 20.62"
    )
    assert list(part.tables["ssim"]) == ["With no local fit", "With 5 rounds of local fit"]
    table = part.tables["psnr"]["With 5 rounds of local fit"]
    pflsynth, fedgan, _ = table.lines
    assert [cell.text for cell in fedgan.cells[2:]] == ["0.35", "−1.00", "0.016", "−1.00", "8"]
    assert (pflsynth.cells[0].bold, fedgan.cells[0].bold) == (False, True)
    assert part_of(comparison) == part  # the same bytes of pictures too


def test_an_infinite_score_is_drawn(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path / "out", subjects=2, seeds=(0,))
    change_scores(folder, "fedgan", 0, lambda own: own["fit_rounds"] > 0, psnr=lambda _: float("inf"))
    part = part_of(open_comparison(folder))
    assert part is not None
    assert "fedgan 21.12 → ∞" in part.pictures["psnr"].text


@pytest.mark.slow
def test_report_shows_it_without_the_data(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path / "out", subjects=2)
    comparing.report(folder)
    files = [folder / "held_out_scores.csv", folder / "report.html", *(folder / "tables").iterdir()]
    before = {path: path.read_bytes() for path in files}
    found = lines((folder / "held_out_scores.csv").read_text(), task="T1w->T2w", subject="sub-01")
    assert [[line[key] for key in ("method", "seed", "fit_rounds", "model", "psnr")] for line in found] == [
        ["pflsynth", "0", "0", "personalised", "23.0"],  # 30 - 1 - 6, and 0.5 for the second seed
        ["pflsynth", "1", "0", "personalised", "23.5"],
        ["fedgan", "0", "0", "personalised", "21.0"],
        ["fedgan", "1", "0", "personalised", "21.5"],
        ["copy", "", "", "copy", "19.0"],
        ["pflsynth", "0", "5", "personalised", "24.0"],
        ["pflsynth", "1", "5", "personalised", "24.5"],
        ["fedgan", "0", "5", "personalised", "25.0"],
        ["fedgan", "1", "5", "personalised", "25.5"],
    ]
    page = (folder / "report.html").read_text()
    assert re.findall(r'<section id="([a-z]+)">', page) == re.findall(r'<li><a href="#([a-z]+)">', page)
    section = " ".join(page.split('<section id="heldout">')[1].split("</section>")[0].split())
    assert "<b>south</b> has its place in the code, but was left out of the training." in section
    assert section.count("<img") == 2
    assert section.count("<table>") == 4
    comparing.report(folder)
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.slow
def test_an_earlier_version_did_not_record_the_fit(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path / "out", subjects=2)
    record = json.loads((folder / "comparison.json").read_text())
    del record["fit_rounds"]
    (folder / "comparison.json").write_text(json.dumps(record))
    comparing.report(folder)
    assert "How south is served was not recorded" in (folder / "report.html").read_text()
    assert not (folder / "held_out_scores.csv").exists()
    assert not (folder / "tables" / "held_out.csv").exists()


# ---------------------------------------------------------------------------------------------- damaged and ill-matched


def change_scores(folder: Path, method: str, seed: int, which: Any, **columns: Any) -> None:
    """Change columns of the personalised scores at south that ``which`` chooses."""
    path = held_out_scores_path(folder, method, seed)
    scores = json.loads(path.read_text())
    for own in scores:
        if own["score"]["model"] == "personalised" and which(own):
            own["score"] |= {name: change(own["score"][name]) for name, change in columns.items()}
    path.write_text(json.dumps(scores))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_held_out(tmp_path / "out", subjects=2, seeds=(0,))


def test_a_missing_file_is_named(folder: Path) -> None:
    path = held_out_scores_path(folder, "fedgan", 0)
    path.unlink()
    assert refused(folder) == (f"{path}: is missing; restore it, or give the compare command again, which makes it")


@pytest.mark.parametrize("text", ['[{"method": "fedgan"}]', "{}"])
def test_a_damaged_file_is_named(folder: Path, text: str) -> None:
    path = held_out_scores_path(folder, "fedgan", 0)
    path.write_text(text)
    assert refused(folder) == f"{path}: is damaged; remove it, and give the compare command again"


@pytest.mark.parametrize("change", [{"method": "pflsynth"}, {"seed": 1}, {"fit_rounds": 4}])
def test_scores_of_another_run_are_refused(folder: Path, change: dict[str, Any]) -> None:
    path = held_out_scores_path(folder, "fedgan", 0)
    path.write_text(json.dumps([own | change for own in json.loads(path.read_text())]))
    assert "others than those of fedgan, seed 0, at south" in refused(folder)


def test_scores_of_a_site_that_trained_are_refused(folder: Path) -> None:
    change_scores(folder, "fedgan", 0, lambda _: True, site=lambda _: "north")
    assert "others than those of fedgan, seed 0, at south" in refused(folder)


def test_scores_of_another_round_are_refused(folder: Path) -> None:
    change_scores(folder, "fedgan", 0, lambda _: True, round=lambda _: 2)
    assert "is of the test split after round 2, but the test split after round 3 is wanted; remove it" in refused(
        folder
    )


def test_scores_of_other_subjects_are_refused(folder: Path) -> None:
    path = held_out_scores_path(folder, "fedgan", 0)
    path.write_text(json.dumps([own for own in json.loads(path.read_text()) if own["score"]["subject"] != "sub-02"]))
    assert "has no score of south T1w->T2w sub-02" in refused(folder)


def test_rows_are_all_of_the_site(comparison: Comparison) -> None:
    rows = held_out_rows(open_held_out(comparison))
    assert {(row.site, row.task) for row in rows} == {("south", None)}
    assert [row.fit_rounds for row in rows] == 2 * [*3 * [0], *3 * [FIT_ROUNDS]]
    assert [row.test is None for row in rows] == 4 * [True, False, False]
    assert [row.method for row in rows[:2]] == list(METHODS)
