"""``pflsynth compare``: from one command to scores, tables and a report; resumed, refused, repeated."""

from __future__ import annotations

import csv
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pflsynth.evaluation.feature_metrics import FeatureFiles
from pflsynth.files import read_json, write_json

from ..data_builders import tree
from ..feature_builders import Means, feature_options, lpips_that_can_be_worked_out, scripted
from ..tiny import Ended, Tiny, pflsynth, start_pflsynth

METHODS = "pflsynth,local,pix2pix"
SMALL = ("--set", "rounds=2", "--set", "model.mapper_layers=1")  # the mapper is most of what is written to disk


def compare(tiny: Tiny, out: Path, *more: object, methods: str = METHODS) -> Ended:
    words = ("--methods", methods, "--prepared", tiny.prepared, "--out", out, *SMALL)
    return pflsynth("compare", tiny.path, *words, *more)


@pytest.fixture(scope="module")
def compared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare(tiny, out, "--seeds", "0,1", "--json")


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in [out / "scores.csv", *(out / "tables").iterdir()]}


def shown_files(out: Path) -> list[Path]:
    return [out / "scores.csv", out / "held_out_scores.csv", out / "report.html", *(out / "tables").iterdir()]


@pytest.mark.slow
def test_it_ends_with_scores_tables_and_a_report(compared: tuple[Path, Ended]) -> None:
    out, ended = compared
    assert ended.code == 0, ended.err
    with (out / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["method"], line["seed"]) for line in lines} == {
        *((method, seed) for method in METHODS.split(",") for seed in ("0", "1")),
        ("copy", ""),
    }
    assert (out / "report.html").stat().st_size > 20_000
    assert (out / "tables" / "overall.tex").is_file()
    document = ended.document
    assert {row["method"] for row in document["overall"]} == {*METHODS.split(","), "copy"}
    test = document["tests"]["psnr"]["local"]
    assert test["p"] is None  # four people are too few, and no p-value is invented
    assert "6" in test["reason"]
    costs = read_json(out / "comparison.json")["costs"]
    assert all(cost["received"] == cost["megabytes"] for cost in costs.values())  # none of them passes updates on
    assert costs["pflsynth"]["received"]["north"] > 0


@pytest.mark.slow
def test_the_same_comparison_gives_the_same_bytes(compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path) -> None:
    out, _ = compared
    compare(tiny, tmp_path / "again", "--seeds", "0,1")
    again = bytes_of(tmp_path / "again")
    assert again["scores.csv"] == bytes_of(out)["scores.csv"]


@pytest.mark.slow
def test_nothing_is_done_twice(compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    models = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert compare(tiny, out, "--seeds", "0,1").code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == models
    fewer = compare(tiny, out, "--seeds", "1", "--json", methods="local")  # a part of it, from what is there
    assert {row["method"] for row in fewer.document["overall"]} == {"local", "copy"}


@pytest.mark.slow
def test_the_report_is_written_anew(compared: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert pflsynth("report", out).code == 0
    assert (out / "report.html").read_bytes() == before


@pytest.mark.slow
def test_a_killed_comparison_goes_on(compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--methods", METHODS, "--seeds", "0,1", "--prepared", tiny.prepared, "--out", out, *SMALL)
    for wanted in ("runs/pflsynth/seed-0/state.json", "runs/pix2pix/seed-0/shared/round-0001.safetensors"):
        process = start_pflsynth("compare", tiny.path, *words)
        while not (out / wanted).exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert compare(tiny, out, "--seeds", "0,1").code == 0
    assert bytes_of(out)["scores.csv"] == bytes_of(compared[0])["scores.csv"]


@pytest.mark.slow
def test_a_held_out_site_is_served_as_it_is_and_after_a_fit(tiny: Tiny, tmp_path: Path) -> None:
    ended = compare(tiny, tmp_path / "out", "--held-out-site", "south", "--fit-rounds", "1")
    assert ended.code == 0, ended.err
    document = compare(tiny, tmp_path / "out", "--held-out-site", "south", "--fit-rounds", "1", "--json").document
    served = [(row["method"], row["fit_rounds"]) for row in document["held_out"]]
    assert served == 2 * [(method, rounds) for rounds in (0, 1) for method in (*METHODS.split(","), "copy")]
    assert "south, which did not take part" in ended.out
    for method in METHODS.split(","):
        scores = read_json(tmp_path / f"out/runs/{method}/seed-0/evaluation/test/held-out-1.json")
        own = [score for score in scores if score["score"]["model"] == "personalised"]
        assert {score["fit_rounds"] for score in own} == {0, 1}
        assert {score["score"]["site"] for score in own} == {"south"}
        before, after = (
            [score["score"]["psnr"] for score in own if score["fit_rounds"] == rounds] for rounds in (0, 1)
        )
        assert before != after
    with (tmp_path / "out" / "held_out_scores.csv").open(newline="") as file:
        found = {(line["method"], line["fit_rounds"], line["site"]) for line in csv.DictReader(file)}
    assert found == {*((method, fit, "south") for method in METHODS.split(",") for fit in "01"), ("copy", "", "south")}
    before = {path: path.read_bytes() for path in shown_files(tmp_path / "out")}
    for path in before:
        path.unlink()
    again = pflsynth("report", tmp_path / "out")  # from the runs' scores alone
    assert again.out.partition("report:")[2] == ended.out.partition("report:")[2]
    assert "south, which did not take part" in again.out
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_lpips_and_fid_are_added_to_what_is_there(tiny: Tiny, tmp_path: Path) -> None:
    out, methods = tmp_path / "out", "pflsynth,local"
    networks = FeatureFiles(lpips_that_can_be_worked_out(tmp_path), fid=scripted(Means(), tmp_path / "means.pt"))
    assert compare(tiny, out, methods=methods).code == 0
    assert not (out / "tables" / "fid.csv").exists()
    record = read_json(out / "comparison.json")
    del record["weights"]  # as earlier versions wrote it
    write_json(out / "comparison.json", record)
    models = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}

    ended = compare(tiny, out, *feature_options(networks), "--json", methods=methods)
    assert ended.code == 0, ended.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == models  # nothing is trained again
    with (out / "scores.csv").open(newline="") as file:
        assert all(float(line["lpips"]) > 0 for line in csv.DictReader(file))
    with (out / "tables" / "fid.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 3  # tasks of both sites; two methods, and copying
    assert {line["fid_sha256"] for line in lines} == {networks.weights.fid}
    assert "<h3>FID</h3>" in (out / "report.html").read_text()
    document = ended.document
    assert document["weights"] == read_json(out / "comparison.json")["weights"] == networks.weights.model_dump()
    assert {row["metric"] for row in document["overall"]} == {"psnr", "ssim", "lpips"}
    assert len(document["fid"]) == 12

    found = tree(out)
    scores = out / "runs" / "local" / "seed-0" / "evaluation" / "test" / "scores.csv"
    written = scores.stat().st_mtime_ns
    assert compare(tiny, out, methods=methods).code == 0  # they stay where they are not asked for again
    assert scores.stat().st_mtime_ns == written
    assert compare(tiny, tmp_path / "again", *feature_options(networks), methods=methods).code == 0
    again = tree(tmp_path / "again")
    for name in found:
        if name.endswith(("scores.csv", "fid.csv", "fid.tex", "weights.json")):
            assert again[name] == found[name] == (out / name).read_bytes(), name


@pytest.mark.slow
def test_evaluations_of_other_weights_are_made_again_or_refused(tiny: Tiny, tmp_path: Path) -> None:
    out, one = tmp_path / "out", FeatureFiles(fid=scripted(Means(), tmp_path / "one.pt"))
    brighter = Means()
    brighter.register_buffer("unused", torch.zeros(1))  # the same numbers from a file with another SHA-256
    two = FeatureFiles(fid=scripted(brighter, tmp_path / "two.pt"))
    assert compare(tiny, out, *feature_options(one), methods="local").code == 0
    first = (out / "tables" / "fid.csv").read_text()
    assert compare(tiny, out, *feature_options(two), methods="local").code == 0
    second = (out / "tables" / "fid.csv").read_text()
    assert second != first
    assert second == first.replace(str(one.weights.fid), str(two.weights.fid))

    assert compare(tiny, out, *feature_options(one), methods="pflsynth").code == 0
    mixed = compare(tiny, out, methods="local,pflsynth,fedavg")
    assert mixed.code == 4
    assert str(one.weights.fid) in mixed.err
    assert str(two.weights.fid) in mixed.err
    assert not (out / "runs" / "fedavg").exists()  # said before any training
    assert compare(tiny, out, *feature_options(one), methods="local,pflsynth").code == 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--methods", "pflsynth,fedgam"), 2, 'method "fedgam" is unknown (did you mean "fedgan"?)'),
        (("--methods", ","), 2, "--methods names none"),
        (("--seeds", "0,x"), 2, '--seeds "0,x" is no list of different whole numbers'),
        (("--seeds", "1,1"), 2, "no list of different whole numbers"),
        (("--held-out-site", "east"), 2, "--held-out-site east: the sites are north, south"),
        (("--methods", "fedmm", "--set", 'model.code=["site"]'), 2, "cannot train these tasks: it reads the task off"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_training(
    tiny: Tiny, tmp_path: Path, more: tuple[Any, ...], code: int, said: str
) -> None:
    ended = pflsynth("compare", tiny.path, "--prepared", tiny.prepared, "--out", tmp_path / "out", *more)
    assert ended.code == code
    assert said in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_agreement_or_budget_is_refused_with_the_difference(
    compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    ended = compare(tiny, out, "--set", "rounds=7", "--set", "model.width=16")
    assert ended.code == 4
    assert "model.width is 8 there, 16 now" in ended.err
    assert "rounds is 2 there, 7 now" in ended.err


@pytest.mark.slow
def test_a_run_that_lost_a_file_is_named(compared: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared[0], out)
    (out / "runs" / "local" / "seed-1" / "metrics.jsonl").unlink()
    ended = pflsynth("report", out)
    assert ended.code == 4
    assert "runs/local/seed-1/metrics.jsonl: is missing" in ended.err


def test_a_folder_that_is_no_comparison_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("important")
    ended = compare(tiny, tmp_path)
    assert ended.code == 2
    assert "is no comparison; choose another --out" in ended.err
    assert (tmp_path / "mine.txt").read_text() == "important"
    assert pflsynth("report", tmp_path).code == 4


@pytest.mark.slow
def test_data_is_prepared_if_it_is_not(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--methods", "local", "--set", "rounds=1", "--out", out)
    ended = pflsynth("compare", tiny.path, *words)
    assert ended.code == 0, ended.err
    assert (out / "prepared" / "north" / "manifest.json").read_bytes() == (
        tiny.prepared / "north" / "manifest.json"
    ).read_bytes()


@pytest.mark.slow
def test_runs_side_by_side_give_the_same_bytes(compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--methods", METHODS, "--seeds", "0,1", "--prepared", tiny.prepared, "--out", out, "--set", "workers=2")
    process = start_pflsynth("compare", tiny.path, *words, *SMALL)
    said, _ = process.communicate()
    assert process.returncode == 0
    assert bytes_of(out)["scores.csv"] == bytes_of(compared[0])["scores.csv"]
    for number, method in enumerate(METHODS.split(","), 1):
        assert f"run {number}/6: {method}, seed 0\n" in said
        assert f"{method}, seed 0: round   2/2" in said


@pytest.mark.slow
def test_ctrl_c_stops_runs_side_by_side_at_once(compared: tuple[Path, Ended], tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--methods", METHODS, "--seeds", "0,1", "--prepared", tiny.prepared, "--out", out, "--set", "workers=2")
    long = start_pflsynth("compare", tiny.path, *words, *SMALL, "--set", "rounds=100000")
    while len(list(out.glob("runs/*/seed-0/shared/round-*1.safetensors"))) < 2 and long.poll() is None:
        time.sleep(0.02)
    long.send_signal(signal.SIGINT)  # to the main process alone: it ends the others
    said, _ = long.communicate(timeout=30)
    assert long.returncode == 130
    assert "stopped; give the same command again to go on" in said
