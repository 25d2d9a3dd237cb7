"""FIDs of a comparison as rows, tables and a section of the report, from files written by hand."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from pflsynth.errors import ModelError
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.feature_files import FeatureWeights, FidScore, write_features
from pflsynth.evaluation.feature_tables import FidRow, comparison_weights, feature_table, fid_rows
from pflsynth.evaluation.table_facts import MAIN_METRICS
from pflsynth.evaluation.tables import write_tables
from pflsynth.report import sections
from pflsynth.report.facts import facts, not_computed
from pflsynth.report.html import write_report

from ..comparison_builders import FORMULAS, change_comparison, lines, run_path, scores_path, write_comparison

SHA256 = "f" * 64
TOPS = {"pflsynth": 10.0, "fedgan": 12.0}
PLACES = (("north", "T1w->T2w"), ("north", "T1w->FLAIR"), ("south", "T1w->T2w"), ("south", "T2w->T1w"))


def write_fids(folder: Path, method: str, seed: int, note: str | None = None, **changed: object) -> None:
    """FIDs of a run: that of :data:`TOPS`, 2 more for seed 1, 1 more for each place; copying has 40 everywhere."""
    fids = []
    for number, (site, task) in enumerate(PLACES):
        for model, value in (("personalised", TOPS[method] + 2 * seed + number), ("copy", 40.0)):
            values: dict[str, object] = {"round": 3, "fid": value, "note": note, "fid_sha256": SHA256, **changed}
            fids.append(FidScore(site, task, "test", model, images=24, features=5, **values))  # type: ignore[arg-type]
    write_features(scores_path(run_path(folder, method, seed)).parent, FeatureWeights(lpips="a" * 64, fid=SHA256), fids)


def written(folder: Path, methods: tuple[str, ...] = ("pflsynth", "fedgan"), **settings: object) -> Comparison:
    """A comparison of two seeds with LPIPS, and FIDs of these methods."""
    formulas = {**FORMULAS, "lpips": lambda level: 1 - level / 64}
    write_comparison(folder, formulas=formulas)
    for method in methods:
        for seed in (0, 1):
            write_fids(folder, method, seed, **settings)  # type: ignore[arg-type]
    return open_comparison(folder)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return written(tmp_path_factory.mktemp("fid") / "out")


@pytest.fixture(scope="module")
def tables(comparison: Comparison) -> Mapping[str, str]:
    return {path.name: path.read_text() for path in write_tables(comparison)}


def test_rows_are_means_over_seeds(comparison: Comparison) -> None:
    rows = fid_rows(comparison)
    assert [(row.site, row.task, row.method) for row in rows] == [
        (*place, method) for place in PLACES for method in ("pflsynth", "fedgan", "copy")
    ]
    # 10 and 12 of the seeds: mean 11, standard deviation sqrt(2)
    assert rows[0] == FidRow("pflsynth", *PLACES[0], 24, 5, 11.0, pytest.approx(2**0.5), None, SHA256)  # type: ignore[arg-type]
    assert [rows[-1].mean, rows[-1].seed_deviation] == [40.0, None]
    assert [rows[0].text, rows[2].text] == ["11.00 ± 1.41", "40.00"]


def test_a_method_with_a_seed_that_lacks_fids_is_left_out(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(tmp_path / "out")
    assert fid_rows(open_comparison(tmp_path / "out")) == []
    write_fids(tmp_path / "out", "fedgan", 1)
    assert {row.method for row in fid_rows(open_comparison(tmp_path / "out"))} == {"copy"}
    write_fids(tmp_path / "out", "fedgan", 0)
    assert {row.method for row in fid_rows(open_comparison(tmp_path / "out"))} == {"fedgan", "copy"}


def test_a_fid_without_a_number_has_its_reason(tmp_path: Path) -> None:
    found = written(tmp_path / "out", fid=None, note="not computed: a FID needs at least 2 images")
    row = fid_rows(found)[0]
    assert (row.mean, row.text, row.note) == (None, "not computed", "not computed: a FID needs at least 2 images")
    texts = {path.name: path.read_text() for path in write_tables(found)}
    assert "pflsynth & not computed & not computed" in texts["fid.tex"]
    assert "Not computed: a FID needs at least 2 images." in texts["fid.tex"]
    assert "not computed: a FID needs at least 2 images" in texts["fid.csv"]


@pytest.mark.parametrize("changed", [{"round": 2}, {"fid_sha256": "e" * 64}])
def test_fids_of_something_else_are_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    found = written(tmp_path / "out", **changed)
    with pytest.raises(ModelError, match=r"seed-0/evaluation/test/fid.csv: is not of the run's result"):
        fid_rows(found)


def test_fids_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    found = written(tmp_path / "out")
    path = scores_path(run_path(tmp_path / "out", "pflsynth", 0)).with_name("fid.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ModelError, match=r"fid.csv: is not of the run's result"):
        fid_rows(found)


def test_runs_of_other_weights_are_refused_with_both(tmp_path: Path) -> None:
    written(tmp_path / "out")
    folder = scores_path(run_path(tmp_path / "out", "fedgan", 1)).parent
    write_features(folder, FeatureWeights(lpips="b" * 64), [])
    with pytest.raises(
        ModelError, match=f"seed-1/evaluation/test: its LPIPS is by weights with SHA-256 {'b' * 64}.*{'a' * 64}"
    ):
        open_comparison(tmp_path / "out")
    write_features(folder, FeatureWeights(), [])
    assert comparison_weights(open_comparison(tmp_path / "out")) == FeatureWeights(lpips="a" * 64, fid=SHA256)
    change_comparison(tmp_path / "out", weights={"lpips": "c" * 64})
    with pytest.raises(ModelError, match=f"{'a' * 64}, but that of .*out by {'c' * 64}"):
        open_comparison(tmp_path / "out")


# -------------------------------------------------------------------------------------------------------------- tables


def test_csv(tables: Mapping[str, str]) -> None:
    found = lines(tables["fid.csv"])
    assert len(found) == 4 * 3
    assert found[1] == {
        "method": "fedgan",
        "site": "north",
        "task": "T1w->T2w",
        "images": "24",
        "features": "5",
        "fid": "13",
        "seed_sd": "1.41421",
        "model": "personalised",
        "round": "3",
        "split": "test",
        "seeds": "0 1",
        "normalizer": "percentile",
        "note": "",
        "fid_sha256": SHA256,
    }
    assert [found[2][key] for key in ("method", "fid", "seed_sd", "round", "seeds")] == ["copy", "40", "", "", ""]


def test_latex_has_a_table_a_site(tables: Mapping[str, str]) -> None:
    north, south = tables["fid.tex"].split(r"\end{table}")[:2]
    assert r"Method & T1w$\rightarrow$T2w & T1w$\rightarrow$FLAIR \\" in north
    assert r"pflsynth & $\mathbf{11.00 \pm 1.41}$ & $\mathbf{12.00 \pm 1.41}$ \\" in north
    assert r"fedgan & $15.00 \pm 1.41$ & $16.00 \pm 1.41$ \\" in south
    assert r"copy & $40.00$ & $40.00$ \\" in south
    for words in ("no p-value", "24 real and as many", "between seeds", "4 subjects of site south", SHA256):
        assert words in south


def test_lpips_is_in_the_tables_of_scores(tables: Mapping[str, str]) -> None:
    (line,) = lines(tables["overall.csv"], method="pflsynth", metric="lpips")
    # subjects of pflsynth: 30.375 dB in the mean (see comparison_builders.py), so 1 - 30.375 / 64
    assert float(line["mean"]) == pytest.approx(1 - 30.375 / 64, abs=1e-6)
    assert "LPIPS: not computed" not in tables["overall.tex"]


def test_tables_of_a_comparison_that_has_no_fid_any_more_are_removed(tmp_path: Path) -> None:
    write_tables(written(tmp_path / "out"))
    assert (tmp_path / "out" / "tables" / "fid.tex").is_file()
    for method in TOPS:
        for seed in (0, 1):
            write_features(scores_path(run_path(tmp_path / "out", method, seed)).parent, FeatureWeights(), [])
    names = [path.name for path in write_tables(open_comparison(tmp_path / "out"))]
    assert not any(name.startswith("fid") for name in names)
    assert sorted(path.name for path in (tmp_path / "out" / "tables").iterdir()) == sorted(names)


def test_the_terminal_shows_both(comparison: Comparison, tmp_path: Path) -> None:
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(feature_table(comparison))
    text = console.export_text()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert ["copy", "0.686 ± 0.013", *["40.00"] * 4] in cells
    assert ["pflsynth", "0.525 ± 0.013", "11.00 ± 1.41", "12.00 ± 1.41", "13.00 ± 1.41", "14.00 ± 1.41"] in cells
    assert "no p-value" in text
    write_comparison(tmp_path / "out")
    assert feature_table(open_comparison(tmp_path / "out")) is None
    write_fids(tmp_path / "out", "pflsynth", 0)
    alone = feature_table(open_comparison(tmp_path / "out"))
    assert alone is not None
    assert [str(column.header)[:4] for column in alone.columns] == ["meth", *["FID "] * 4]  # no LPIPS was computed


# -------------------------------------------------------------------------------------------------------------- report


def test_the_table_of_the_report(comparison: Comparison) -> None:
    table = sections.fid_table(fid_rows(comparison), ("fedgan", "pflsynth", "copy"))
    assert table is not None
    assert table.headings == ("site and task", "slices", "fedgan", "pflsynth", "copy")
    assert [line.head for line in table.lines][:2] == ["north, T1w → T2w", "north, T1w → FLAIR"]
    assert [cell.text for cell in table.lines[0].cells] == ["24", "13.00 ± 1.41", "11.00 ± 1.41", "40.00"]
    assert [cell.bold for cell in table.lines[0].cells] == [False, False, True, False]
    assert sections.fid_table([], ("fedgan",)) is None


def test_what_was_computed_is_not_told_as_missing(comparison: Comparison, tmp_path: Path) -> None:
    order = ("pflsynth", "fedgan", "copy")
    differences = {metric: sections.difference_table(comparison, metric, order) for metric in MAIN_METRICS}
    assert not {"FID", "LPIPS"} & dict(not_computed(comparison, differences)).keys()
    assert dict(facts(comparison))["weights of FID"] == f"SHA-256 {SHA256}"
    some = written(tmp_path / "out", methods=("fedgan",))
    told = dict(not_computed(some, differences))
    assert told["FID"] == (
        "not computed for pflsynth; give pflsynth compare a file of weights with --fid and --fid-sha256"
    )


@pytest.mark.slow
def test_the_page_shows_fid_where_it_was_computed(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(written(tmp_path / "with"), page, prepared=None)
    text = " ".join(page.read_text().split())
    assert "<h3>FID</h3>" in text
    assert "11.00 ± 1.41" in text
    write_report(open_comparison(write_comparison(tmp_path / "without")), page, prepared=None)
    assert "<h3>FID</h3>" not in page.read_text()
    assert "give pflsynth compare a file of weights with --fid and --fid-sha256" in page.read_text()
