"""Every verb, through the command line: the whole road on two small sites, and what users get for bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import pflsynth as package
from pflsynth.data.manifest import load_manifest
from pflsynth.evaluation.feature_metrics import FeatureFiles
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import load_tensors, save_tensors

from ..data_builders import head, image_path, small_disk, tissue, tree, write_nifti, write_site
from ..dicom_builders import Made, Patient, write_series
from ..feature_builders import Means, feature_options, lpips_that_can_be_worked_out, scripted
from ..tiny import TINY, Ended, Tiny, ended, pflsynth, start_pflsynth, write_tiny

VERBS = (
    *("demo", "check", "prepare", "train", "evaluate", "synthesize", "compare", "report"),
    *("keys", "unseal", "serve", "join", "status"),
)


def only_one_sentence(end: Ended) -> str:
    """What was printed on stderr: lines that begin with "error: " or continue it, and no traceback."""
    assert "Traceback" not in end.err
    assert end.err.startswith("error: ")
    return end.err.removeprefix("error: ").strip()


# ---------------------------------------------------------------------------------------------------- the whole road


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ended]]:
    """The folder of a federation that went all the way, and how each verb ended."""
    folder = tmp_path_factory.mktemp("road")
    config = write_tiny(folder)
    prepared, run = folder / "prepared", folder / "runs" / "first"
    before = tree(folder)
    ends = {"check": pflsynth("check", config)}
    assert tree(folder) == before, "check changes nothing"
    ends["prepare"] = pflsynth("prepare", config, "--out", prepared)
    ends["train"] = pflsynth("train", config, "--prepared", prepared, "--run", run)
    ends["evaluate"] = pflsynth("evaluate", "--run", run)
    source = image_path(folder / "data" / "north", "sub-01", "T1w")
    synthesize = ("--task", "T1w->FLAIR", "--site", "north", "--run", run, "--out")
    ends["synthesize"] = pflsynth("synthesize", source, *synthesize, folder / "made" / "one_FLAIR.nii.gz")
    ends["folder"] = pflsynth("synthesize", folder / "data" / "north", *synthesize, folder / "made" / "all")
    return folder, ends


def test_the_whole_road_ends_well(road: tuple[Path, dict[str, Ended]]) -> None:
    for verb, end in road[1].items():
        assert end.code == 0, (verb, end)
        assert end.err == "", "nothing on stderr when it is not a terminal"


def test_check_tells_what_it_found(road: tuple[Path, dict[str, Ended]]) -> None:
    lines = road[1]["check"].out.splitlines()
    assert not any(mark in line for line in lines for mark in "✗!"), lines
    assert sum("✓" in line and "sub-0" in line for line in lines) == 8
    assert any("site south, task T2w->T1w: 2 train, 1 validation, 1 test" in line for line in lines)


def test_check_tells_what_a_round_costs(road: tuple[Path, dict[str, Ended]]) -> None:
    shown = road[1]["check"].out
    number = r"\d[\d.]*(e[-+]\d+)?"
    assert re.search(rf"a slice takes {number} GFLOP to synthesise, {number} GFLOP to train on", shown)
    for site in ("north", "south"):
        assert re.search(rf"{site}: 8 training slices, 2 steps of {number} s: about {number} \w+ a round", shown)
    assert re.search(rf"3 rounds take about {number} \w+ \(cpu, 1 thread\(s\)", shown)
    assert re.search(r"a training needs about \d+ MB, and 0 MB of mapped images", shown)


def test_prepare_tells_of_every_site_and_task(road: tuple[Path, dict[str, Ended]]) -> None:
    shown = road[1]["prepare"].out
    for site, task in (("north", "T1w->FLAIR"), ("south", "T2w->T1w")):
        assert re.search(rf"{site}\W+{task}\W+2 \(8\)\W+1 \(4\)\W+1 \(4\)", shown)


def test_train_tells_of_every_round(road: tuple[Path, dict[str, Ended]]) -> None:
    folder, ends = road
    assert re.findall(r"round +(\d)/3 +mean L1: +north \d\.\d{3} +south \d\.\d{3}", ends["train"].out) == [
        "1",
        "2",
        "3",
    ]
    assert "personalised models are in" in ends["train"].out
    assert sorted(tree(folder / "runs" / "first" / "sites")) == [
        f"{site}/{part}.safetensors"
        for site in ("north", "south")
        for part in ("personalised-0003", "private-0002", "private-0003")
    ]


def test_evaluate_writes_scores_and_shows_the_means(road: tuple[Path, dict[str, Ended]]) -> None:
    folder, ends = road
    with (folder / "runs" / "first" / "evaluation" / "test" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"personalised", "copy"}
    assert "personalised model, round 3, test subjects: mean ± SD over subjects" in ends["evaluate"].out
    for row in rows:
        if row["model"] == "personalised":
            (floor,) = [
                other["psnr"]
                for other in rows
                if other["model"] == "copy" and all(other[key] == row[key] for key in ("site", "task", "subject"))
            ]
            gain = float(row["psnr"]) - float(floor)
            numbers = [f"{float(row['psnr']):.2f}", f"{float(row['ssim']):.3f}", f"{float(floor):.2f}", f"{gain:+.2f}"]
            (line,) = [
                line for line in ends["evaluate"].out.splitlines() if row["site"] in line and row["task"] in line
            ]
            assert all(number in line for number in numbers)


def test_synthesize_writes_a_volume_and_its_json(road: tuple[Path, dict[str, Ended]]) -> None:
    folder, ends = road
    source = nibabel.load(image_path(folder / "data" / "north", "sub-01", "T1w"))
    made = nibabel.load(folder / "made" / "one_FLAIR.nii.gz")
    assert made.shape == source.shape
    assert np.array_equal(made.affine, source.affine)
    content = json.loads((folder / "made" / "one_FLAIR.json").read_text())
    assert (content["site"], content["task"], content["round"]) == ("north", "T1w->FLAIR", 3)
    assert "synthetic, not for diagnosis" in ends["synthesize"].out


def test_a_folder_in_gives_a_folder_out(road: tuple[Path, dict[str, Ended]]) -> None:
    folder, _ = road
    names = [f"sub-{number:02d}" for number in (1, 2, 3, 4)]
    assert sorted(tree(folder / "made" / "all")) == [
        f"{name}/anat/{name}_FLAIR.{ending}" for name in names for ending in ("json", "nii.gz")
    ]
    alone, among = (
        nibabel.load(folder / "made" / name) for name in ("one_FLAIR.nii.gz", "all/sub-01/anat/sub-01_FLAIR.nii.gz")
    )
    assert np.array_equal(alone.get_fdata(), among.get_fdata())


def test_a_site_file_prepares_one_site(road: tuple[Path, dict[str, Ended]], tmp_path: Path) -> None:
    folder, _ = road
    site = tmp_path / "site.toml"
    site.write_text(f'site = "south"\nfederation = "{folder}/federation.toml"\ndata = "{folder}/data/south"\n')
    assert pflsynth("check", site).code == 0
    assert pflsynth("prepare", site, "--out", tmp_path / "prepared").code == 0
    assert [entry.name for entry in (tmp_path / "prepared").iterdir()] == ["south"]
    assert tree(tmp_path / "prepared" / "south") == tree(folder / "prepared" / "south")


# ------------------------------------------------------------------------------------------------------- LPIPS and FID


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> FeatureFiles:
    folder = tmp_path_factory.mktemp("networks")
    return FeatureFiles(lpips_that_can_be_worked_out(folder), fid=scripted(Means(), folder / "means.pt"))


@pytest.mark.slow
def test_evaluate_computes_lpips_and_fid_if_they_are_asked_for(
    trained: Path, networks: FeatureFiles, tmp_path: Path
) -> None:
    words = ("evaluate", "--run", trained, *feature_options(networks), "--out")
    shown = pflsynth(*words, tmp_path / "one" / "scores.csv")
    assert shown.code == 0, shown.err
    document = pflsynth(*words, tmp_path / "two" / "scores.csv", "--json").document
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert sorted(tree(tmp_path / "one")) == ["fid.csv", "scores.csv", "weights.json"]
    assert document["weights"] == networks.weights.model_dump()
    assert len(document["fid"]) == 8
    for row in document["summary"]:
        if row["model"] == "personalised":
            line = next(
                line
                for line in shown.out.partition("Less is better")[2].splitlines()
                if row["site"] in line and row["task"] in line
            )
            keys = ("site", "task", "model")
            (fid,) = [own["fid"] for own in document["fid"] if all(own[key] == row[key] for key in keys)]
            assert f"{row['mean']['lpips']:.3f}" in line
            assert f"{fid:.2f}" in line
    without = pflsynth("evaluate", "--run", trained, "--out", tmp_path / "one" / "scores.csv", "--force")
    assert "LPIPS" not in without.out
    assert list(tree(tmp_path / "one")) == ["scores.csv"]


def test_an_evaluation_is_not_overwritten_by_halves(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "fid.csv").write_text("mine")
    end = pflsynth("evaluate", "--run", trained, "--out", tmp_path / "scores.csv")
    assert end.code == 2
    assert "fid.csv: exists already" in only_one_sentence(end)
    assert tree(tmp_path) == {"fid.csv": b"mine"}


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
@pytest.mark.parametrize("option", ["--lpips", "--fid", "--lpips-heads"])
def test_a_file_without_its_sha256_is_told_its_own(
    verb: str, option: str, trained: Path, tiny: Tiny, networks: FeatureFiles, tmp_path: Path
) -> None:
    assert networks.lpips is not None
    path, out = networks.lpips.path, tmp_path / "out"
    words = {
        "evaluate": ("--run", trained, "--out", out),
        "compare": (tiny.path, "--prepared", tiny.prepared, "--out", out),
    }
    lpips = ("--lpips", path, "--lpips-sha256", networks.lpips.sha256) if option == "--lpips-heads" else ()
    for more, said in (
        ((option, path), f"its SHA-256 is {networks.lpips.sha256}; compare it with the one that the file's source"),
        ((option, tmp_path / "none"), "there is no such file"),
        ((f"{option}-sha256", "0" * 64), f"{option}-sha256 is given without {option}"),
    ):
        end = pflsynth(verb, *words[verb], *lpips, *more)
        assert end.code == 2
        assert said in only_one_sentence(end)
    end = pflsynth(verb, *words[verb], *lpips, option, path, f"{option}-sha256", "0" * 64)
    assert end.code == 4
    assert f'its SHA-256 is {networks.lpips.sha256}, but "{"0" * 64}" was given' in only_one_sentence(end)
    assert not out.exists()


def test_heads_alone_are_no_lpips(trained: Path, networks: FeatureFiles) -> None:
    assert networks.lpips is not None
    words = ("--lpips-heads", networks.lpips.path, "--lpips-heads-sha256", networks.lpips.sha256)
    end = pflsynth("evaluate", "--run", trained, *words)
    assert end.code == 2
    assert "--lpips-heads is given without --lpips" in only_one_sentence(end)


# ------------------------------------------------------------------------------------------------------------- --json


def test_json_is_one_document_on_stdout(road: tuple[Path, dict[str, Ended]], tmp_path: Path) -> None:
    folder, _ = road
    config, prepared, run = folder / "federation.toml", tmp_path / "prepared", tmp_path / "run"
    check = pflsynth("check", config, "--json")
    assert check.document["ok"] is True
    assert check.document["findings"].keys() == {"north", "south"}
    told = check.document["estimate"]
    assert {name: own["steps"] for name, own in told["trainers"].items()} == {"north": 2, "south": 2}
    assert told["round_seconds"] == pytest.approx(sum(own["seconds"] for own in told["trainers"].values()))
    assert 0 < check.document["gflop"]["forward"] < check.document["gflop"]["step"]
    lossy = pflsynth("check", config, "--json", "--no-measure", "--set", "updates.encoding=int8")
    assert lossy.document["estimate"] is None
    sent = [document["sent_megabytes"]["north"] for document in (check.document, lossy.document)]
    assert 0 < sent[1] < 0.4 * sent[0]
    assert f"a site sends at most {sent[1]:.1f} MB after a round (int8)" in lossy.err
    prepare = pflsynth("prepare", config, "--out", prepared, "--json").document
    assert prepare["north"]["tasks"]["T1w->FLAIR"] == {"train": 2, "validation": 1, "test": 1}
    trained = pflsynth("train", config, "--prepared", prepared, "--run", run, "--set", "rounds=1", "--json")
    assert (trained.document["run"], trained.document["round"]) == (str(run), 1)
    assert "round   1/1" in trained.err
    evaluated = pflsynth("evaluate", "--run", run, "--split", "validation", "--json").document
    assert len(evaluated["scores"]) == 8
    assert {row["model"] for row in evaluated["summary"]} == {"personalised", "copy"}
    source = image_path(folder / "data" / "south", "sub-02", "T2w")
    made = pflsynth(
        "synthesize",
        source,
        "--task",
        "T2w:T1w",
        "--site",
        "south",
        "--run",
        run,
        "--out",
        tmp_path / "x.nii",
        "--json",
    ).document
    assert [item["path"] for item in made] == [str(tmp_path / "x.nii")]
    assert made[0]["notice"] == "synthetic, not for diagnosis"


def test_a_check_that_cannot_measure_says_why_and_goes_on(tmp_path: Path) -> None:
    end = pflsynth("check", write_tiny(tmp_path), "--json", "--set", "device=cuda:9")
    assert end.code == 0
    assert end.document["estimate"] is None
    assert re.search(r'! how long a round takes was not measured: device "cuda:9": .* GPUs on this machine', end.err)


def test_a_failing_check_prints_its_document_too(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    image_path(tmp_path / "data" / "north", "sub-02", "T2w").write_bytes(b"no image")
    end = pflsynth("check", config, "--json")
    assert end.code == 3
    assert end.document["ok"] is False
    (wrong,) = [finding for finding in end.document["findings"]["north"] if finding["level"] == "wrong"]
    assert wrong["subject"] == "sub-02"
    assert "sub-02_T2w.nii.gz" in wrong["text"]


def test_check_draws_a_page_and_names_what_is_suspicious(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    north = tmp_path / "data" / "north"
    shutil.copy(image_path(north, "sub-01", "T2w"), image_path(north, "sub-01", "FLAIR"))
    page = tmp_path / "check.html"
    end = pflsynth("check", config, "--html", page, "--json")
    assert end.code == 3
    assert [own["check"] for own in end.document["findings"]["north"] if own["level"] == "wrong"] == ["duplicate"]
    assert end.document["subjects"]["south"]["sub-02"]["contrasts"] == ["T1w", "T2w"]
    assert page.read_text().count("data:image/png;base64,") == 4 * 3 + 4 * 2
    again = pflsynth("check", config, "--html", page)
    assert (again.code, "--force" in again.err) == (2, True)


# ----------------------------------------------------------------------------------------------- prepare, in other ways


def test_prepare_one_site_and_export_its_split(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    words = ("--out", tmp_path / "prepared", "--site", "south")
    plan = pflsynth("prepare", config, *words, "--dry-run", "--json").document
    assert (plan["south"]["images"], plan["south"]["finished"]) == (4, 0)
    assert not (tmp_path / "prepared").exists()
    shown = pflsynth("prepare", config, *words, "--dry-run")
    assert re.search(r"south\W+bids\W+4\W+0\W+0\W+2\W+1\W+1", shown.out)
    end = pflsynth("prepare", config, *words, "--export-splits", tmp_path / "splits")
    assert end.code == 0
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["south"]
    lists = json.loads((tmp_path / "splits" / "south.json").read_text())
    assert {split: tuple(names) for split, names in lists.items()} == {
        split: tuple(names) for split, names in plan["south"]["subjects"].items()
    }
    unknown = pflsynth("prepare", config, "--site", "west")
    assert (unknown.code, "the sites here are north, south" in unknown.err) == (2, True)


def test_prepare_from_dicom(tmp_path: Path) -> None:
    export = tmp_path / "export"
    for number in range(1, 5):
        patient = Patient(f"PID-{number}", f"DOE^{number}")
        heads = [head(bright=200 + 50 * place) * tissue(number, place) for place in range(2)]
        images = [np.flip(own.transpose(2, 1, 0), axis=(1, 2)) for own in heads]  # slices, rows from the front, columns
        series = [
            Made(kind, place + 1, patient, shape=(6, 28, 24), spacing=(3, 1, 1), image=images[place])
            for place, kind in enumerate(("T1w", "T2w"))
        ]
        write_series(export / f"patient {number}", *series)
    config = tmp_path / "federation.toml"
    config.write_text(
        'name = "d"\ncontrasts = ["T1w", "T2w"]\ndata_root = "data"\nimage = {size = 32}\n'
        'sites.oslo.tasks = ["T1w->T2w"]\nsites.lima.tasks = ["T1w->T2w"]\n'
    )
    refused = pflsynth("prepare", config, "--from-dicom", export)
    assert (refused.code, "give --site too" in refused.err) == (2, True)
    words = ("prepare", config, "--site", "oslo", "--from-dicom", export, "--out", tmp_path / "prepared")
    end = pflsynth(*words, "--json")
    assert end.code == 0, end
    names = {name for split in end.document["oslo"]["subjects"].values() for name in split}
    assert names == {f"sub-00{number}" for number in range(1, 5)}
    assert "4 subject(s) converted from DICOM" in end.err
    assert "DOE" not in end.err + end.out
    manifest = load_manifest(tmp_path / "prepared" / "oslo")
    assert {volume.placement.step for own in manifest.subjects for volume in own.contrasts.values()} == {
        "reference",
        "untouched",
    }


# --------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    for option in ("-h", "--help"):
        end = pflsynth(verb, option)
        assert end.code == 0
        assert re.search(rf"Examples?:\s+pflsynth {verb} ", end.out)
        assert "Usage:" in end.out


def test_help_lists_the_verbs() -> None:
    end = pflsynth("-h")
    assert end.code == 0
    assert all(verb in end.out for verb in VERBS)


def test_version() -> None:
    assert pflsynth("--version") == Ended(0, f"pflsynth {package.__version__}\n", "")


# ------------------------------------------------------------------------------------------------- usage (exit code 2)

TRAIN_NEW = ("train", "{config}", "--prepared", "{prepared}", "--run", "{new}", "--set")
SYNTHESIZE = ("synthesize", "{data}/north/sub-01/anat/sub-01_T1w.nii.gz", "--run", "{run}", "--site", "north")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Usage:"),
        (("trian",), "No such command 'trian'"),
        (("train", "--fast"), "No such option"),
        (("train",), "give a federation.toml, or --resume with --run"),
        (("train", "--resume"), "--resume needs --run"),
        (("train", "--resume", "--run", "{run}", "--set", "rounds=5"), "--set changes a configuration; give the"),
        (("train", "--resume", "--run", "{run}", "--force"), "--resume goes on with a run and --force starts it over"),
        (
            ("train", "{config}", "--prepared", "{prepared}", "--run", "{run}"),
            "first: exists already; go on with --resume",
        ),
        (("train", "{config}", "--prepared", "{prepared}", "--run", "{data}"), "data: exists already"),
        (("train", "{config}", "--prepared", "{prepared}", "--run", "{data}", "--force"), "data: is not a run folder"),
        (
            ("train", "{config}", "--set", "device=cuda:9", "--prepared", "{prepared}", "--run", "{new}"),
            'device "cuda:9"',
        ),
        ((*TRAIN_NEW, "method=fedgam"), 'method "fedgam" is unknown (did you mean "fedgan"?); methods are pflsynth,'),
        (
            (*TRAIN_NEW, "method=fedcycle-rerun", "--set", "sites.north.tasks=['T1w:T2w', 'T1w:FLAIR', 'T2w:T1w']"),
            'method "fedcycle-rerun" cannot train these tasks: its switch has two states, and site north has 3 tasks',
        ),
        (("check",), "Missing argument 'CONFIG'"),
        (("check", "nowhere.toml"), "nowhere.toml: there is no such file; give the path of a federation.toml"),
        (("check", "{data}"), "data: is a folder"),
        (("check", "{config}", "--set", "round=3"), 'unknown key "round"; did you mean "rounds"?'),
        (("check", "{config}", "--set", "method=fedgam"), 'method "fedgam" is unknown (did you mean "fedgan"?)'),
        (("check", "{config}", "--set", "held_out=['east']"), 'held_out names "east", which is none of north, south'),
        (("check", "{config}", "--set", "training.flip=often"), "training.flip = 'often'"),
        (("prepare", "{config}", "--out", "{prepared}"), "prepared/north: exists already; give --force"),
        (("evaluate",), "Missing option '--run'"),
        (("evaluate", "--run", "{run}"), "scores.csv: exists already; choose another --out or overwrite with --force"),
        (("evaluate", "--run", "{run}", "--split", "all"), "'all' is not one of 'train', 'validation', 'test'"),
        (("evaluate", "--run", "{run}", "--out", "{new}", "--device", "abacus"), 'device "abacus"'),
        ((*SYNTHESIZE, "--task", "T1w->T2w", "--out", "{data}/north/sub-01/anat/sub-01_T2w.nii.gz"), "exists already"),
        (
            (*SYNTHESIZE, "--task", "T1w->PDw", "--out", "{new}.nii"),
            "--task T1w->PDw: site north was trained for T1w->T2w,",
        ),
        ((*SYNTHESIZE, "--task", "T1w", "--out", "{new}.nii"), '--task: "T1w" is not a task'),
        ((*SYNTHESIZE, "--task", "T1w:T2w", "--out", "{new}.png"), "is not named as NIfTI"),
        ((*SYNTHESIZE[:-1], "west", "--task", "T1w:T2w", "--out", "{new}.nii"), "has the sites north, south"),
        (
            ("synthesize", "no.nii", *SYNTHESIZE[2:], "--task", "T1w:T2w", "--out", "{new}.nii"),
            "no.nii: there is no such",
        ),
        (("demo", "--out", "{data}"), "data: exists already"),
    ],
)
def test_wrong_usage(road: tuple[Path, dict[str, Ended]], words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder, _ = road
    places = {
        "config": folder / "federation.toml",
        "data": folder / "data",
        "prepared": folder / "prepared",
        "run": folder / "runs" / "first",
        "new": tmp_path / "new",
    }
    before = tree(folder)
    end = pflsynth(*(word.format(**places) for word in words))
    assert end.code == 2, end
    assert message in " ".join((end.out + end.err).replace("│", " ").split()), end
    assert "Traceback" not in end.err
    assert tree(folder) == before
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- data (exit code 3)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def not_nifti(path: Path) -> None:
    path.write_bytes(b"GIF89a" * 100)


def with_nan(path: Path) -> None:
    write_nifti(path, np.where(head() > 150, np.nan, head()))


def with_infinity(path: Path) -> None:
    write_nifti(path, np.where(head() > 150, np.inf, head()))


def constant(path: Path) -> None:
    write_nifti(path, np.full((24, 28, 6), 7.0))


def four_dimensional(path: Path) -> None:
    write_nifti(path, np.stack([head(), head()], axis=3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "is cut short, damaged, or not a NIfTI file"),
        (not_nifti, "is cut short, damaged, or not a NIfTI file"),
        (with_nan, "voxels are NaN and 0 are infinite"),
        (with_infinity, "0 voxels are NaN and"),
        (constant, "every voxel is 7, so it holds no image"),
        (four_dimensional, "has 4 axes (shape 24 x 28 x 6 x 2)"),
    ],
)
def test_bad_images(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    config = write_tiny(tmp_path)
    for site in ("north", "south"):
        spoil(image_path(tmp_path / "data" / site, "sub-02", "T2w"))
    end = pflsynth("prepare", config, "--out", tmp_path / "prepared")
    assert end.code == 3
    sentence = only_one_sentence(end)
    assert sentence.count(message) == 2, "both sites are told of at once"
    for site in ("north", "south"):
        assert f"site {site}, subject sub-02" in sentence
    assert not [path for path in (tmp_path / "prepared").iterdir() if not path.name.startswith(".")]
    checked = pflsynth("check", config)
    assert checked.code == 3
    assert message in checked.out
    assert "✗ site south, subject sub-02" in checked.out
    skipped = pflsynth("prepare", config, "--out", tmp_path / "prepared", "--skip-bad")
    assert skipped.code == 0
    assert {path.name for path in (tmp_path / "prepared").rglob("sub-*")} == {
        f"sub-{number:02d}.safetensors" for number in (1, 3, 4)
    }


def test_a_folder_without_subjects(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    shutil.rmtree(tmp_path / "data" / "north")
    shutil.rmtree(tmp_path / "data" / "south")
    (tmp_path / "data" / "south").mkdir()
    end = pflsynth("prepare", config, "--out", tmp_path / "prepared")
    assert end.code == 3
    assert f"site north: there is no folder {tmp_path}/data/north" in only_one_sentence(end)
    assert f"site south: {tmp_path}/data/south has no subjects" in end.err
    assert pflsynth("check", config).code == 3


def test_a_contrast_that_the_site_does_not_have(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    end = pflsynth("prepare", config, "--out", tmp_path / "prepared", "--set", 'sites.south.tasks=["T1w->FLAIR"]')
    assert end.code == 3
    assert "site south, task T1w->FLAIR: no subject has FLAIR (found: T1w); add" in only_one_sentence(end)


def test_no_training_subject_left(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    everyone = [f"sub-{number:02d}" for number in (1, 2, 3, 4)]
    (tmp_path / "data" / "south" / "splits.json").write_text(
        json.dumps({"train": [], "validation": [], "test": everyone})
    )
    end = pflsynth("prepare", config, "--out", tmp_path / "prepared")
    assert end.code == 3
    assert "site south: no training subject is left (4 usable in all)" in only_one_sentence(end)
    assert sorted(entry.name for entry in (tmp_path / "prepared").iterdir()) == ["north"]


def test_training_wants_data_prepared_with_its_settings(tiny: Tiny, tmp_path: Path) -> None:
    end = pflsynth("train", tiny.path, "--prepared", tmp_path, "--run", tmp_path / "run")
    assert end.code == 3
    assert only_one_sentence(end) == (
        f"{tmp_path}/north: holds no prepared data (manifest.json is missing); run: pflsynth prepare"
    )
    end = pflsynth(
        "train", tiny.path, "--prepared", tiny.prepared, "--run", tmp_path / "run", "--set", "image.spacing_mm=2.0"
    )
    assert end.code == 3
    assert "image.spacing_mm is None there and 2.0 in the configuration" in only_one_sentence(end)
    assert not (tmp_path / "run").exists()


def test_force_keeps_the_old_run_if_training_cannot_begin(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = tree(run)
    for wrong in (("--prepared", tmp_path), ("--prepared", tiny.prepared, "--set", "image.spacing_mm=2.0")):
        assert pflsynth("train", tiny.path, "--run", run, "--force", *wrong).code == 3
        assert tree(run) == before


def test_a_bad_file_in_a_folder_does_not_stop_the_others(road: tuple[Path, dict[str, Ended]], tmp_path: Path) -> None:
    run = road[0] / "runs" / "first"
    write_site(tmp_path / "in", 3, ("T1w",))
    cut_short(image_path(tmp_path / "in", "sub-02", "T1w"))
    words = ("synthesize", tmp_path / "in", "--task", "T1w->T2w", "--site", "north", "--run", run)
    end = pflsynth(*words, "--out", tmp_path / "out", "--json")
    assert end.code == 3
    assert [Path(item["path"]).name for item in end.document] == ["sub-01_T2w.nii.gz", "sub-03_T2w.nii.gz"]
    assert "error: site north, contrast T1w: " in end.err
    assert end.err.count("sub-02_T1w.nii.gz: is cut short") == 1
    assert "Traceback" not in end.err
    assert len(tree(tmp_path / "out")) == 4
    end = pflsynth(*words, "--out", tmp_path / "out")
    assert end.code != 0, "what exists is not overwritten"
    assert end.err.count("exists already") == 2


# ------------------------------------------------------------------------------------------------- model (exit code 4)


def newer(path: Path, kind: str) -> None:
    """Write a checkpoint again as a newer pflsynth would."""
    import pflsynth.files

    tensors, metadata = load_tensors(path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pflsynth.files, "FORMAT_VERSION", 2)
        save_tensors(path, tensors, metadata, kind)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "state.json").unlink(), "is not a run folder (it has no state.json)"),
        (lambda run: (run / "state.json").write_text('{"form'), "state.json: is not JSON, or was cut short"),
        (
            lambda run: cut_short(run / "sites/north/personalised-0003.safetensors"),
            "personalised-0003.safetensors: is cut",
        ),
        (
            lambda run: (run / "sites/north/personalised-0003.safetensors").write_bytes(b""),
            "is empty, so it was cut short",
        ),
        (lambda run: (run / "sites/north/personalised-0003.safetensors").unlink(), "there is no such file"),
        (
            lambda run: newer(run / "sites/north/personalised-0003.safetensors", "personalised"),
            "has format 2, this pflsynth reads 1: it was written by a newer pflsynth; update pflsynth",
        ),
        (
            lambda run: shutil.copy(
                run / "sites/north/private-0003.safetensors", run / "sites/north/personalised-0003.safetensors"
            ),
            'holds "private", but "personalised" is wanted here',
        ),
        (
            lambda run: (run / "federation.toml").write_text(
                (run / "federation.toml").read_text().replace("seed = 3", "seed = 4")
            ),
            "federation.toml: was changed after training began",
        ),
    ],
)
def test_damaged_runs(trained: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    spoil(run)
    source = write_nifti(tmp_path / "sub-01_T1w.nii.gz", head())
    words = ("--task", "T1w->T2w", "--site", "north", "--run", run, "--out", tmp_path / "out.nii.gz")
    for end in (pflsynth("evaluate", "--run", run), pflsynth("synthesize", source, *words)):
        assert end.code == 4, end
        assert message in only_one_sentence(end)
        assert str(run) in end.err
    assert not (tmp_path / "out.nii.gz").exists()
    assert not (run / "evaluation").exists()


def test_a_model_of_another_agreement(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("train", tiny.path, "--prepared", tiny.prepared, "--run", run, "--set", "rounds=1", "--set", "seed=9")
    assert pflsynth(*words).code == 0
    shutil.copy(
        trained / "sites" / "north" / "personalised-0003.safetensors",
        run / "sites" / "north" / "personalised-0001.safetensors",
    )
    end = pflsynth("evaluate", "--run", run)
    assert end.code == 4
    assert "belongs to another training: agreement_sha256 is" in only_one_sentence(end)


def test_a_federation_that_diverges(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    end = pflsynth(
        "train", tiny.path, "--prepared", tiny.prepared, "--run", run, "--set", "training.learning_rate=1e38"
    )
    assert end.code == 4
    sentence = only_one_sentence(end)
    assert "only 0 of 2 sites sent a usable update, quorum is 2" in sentence
    assert "site north" in sentence
    assert "site south" in sentence
    assert pflsynth("evaluate", "--run", run).code == 4


# --------------------------------------------------------------------------------------------------------- exports


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_an_export_in_place_of_the_model(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    source = write_nifti(tmp_path / "sub-01_T1w.nii.gz", head())
    model = ("--task", "T1w->T2w", "--site", "north", "--run", trained)
    onnx = tmp_path / "north.onnx"
    end = pflsynth("export", *model, "--out", onnx, "--json")
    assert end.code == 0, end
    assert (end.document["site"], end.document["task"], end.document["path"]) == ("north", "T1w->T2w", str(onnx))
    made = []
    for name, words in (("with", ("--onnx", onnx)), ("without", ())):
        out = tmp_path / f"{name}.nii.gz"
        assert pflsynth("synthesize", source, *model, "--out", out, *words).code == 0
        made.append(nibabel.load(out).get_fdata())
    assert np.abs(made[0] - made[1]).max() < 1e-4 * np.ptp(made[1])
    other = ("--task", "T1w->T2w", "--site", "south", "--run", trained)
    refused = pflsynth("synthesize", source, *other, "--out", tmp_path / "no.nii.gz", "--onnx", onnx)
    assert refused.code == 4
    assert 'its site is "north", "south" is wanted' in only_one_sentence(refused)
    assert not (tmp_path / "no.nii.gz").exists()


# ---------------------------------------------------------------------------------------------------- other endings


def test_a_full_disk(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "sub-01_T1w.nii.gz", head())
    words = ("--task", "T1w->T2w", "--site", "north", "--run", trained, "--out", tmp_path / "out.nii.gz")
    with small_disk(500):
        ends = [
            pflsynth("prepare", tiny.path, "--out", tmp_path / "prepared"),
            pflsynth("train", tiny.path, "--prepared", tiny.prepared, "--run", tmp_path / "run"),
            pflsynth("evaluate", "--run", trained, "--out", tmp_path / "scores.csv"),
            pflsynth("synthesize", source, *words),
        ]
    for end in ends:
        assert end.code == 1, end
        assert re.fullmatch(rf"{tmp_path}/\S+: File too large.*", only_one_sentence(end)), end
    assert [name for name in tree(tmp_path) if not name.startswith("prepared/.")] == ["sub-01_T1w.nii.gz"]


@pytest.mark.parametrize("verb", ["prepare", "train", "evaluate", "synthesize"])
def test_a_place_that_cannot_be_written(tiny: Tiny, trained: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    source = write_nifti(tmp_path / "sub-01_T1w.nii.gz", head())
    words = {
        "prepare": (tiny.path, "--out", below),
        "train": (tiny.path, "--prepared", tiny.prepared, "--run", below),
        "evaluate": ("--run", trained, "--out", below / "scores.csv"),
        "synthesize": (source, "--task", "T1w->T2w", "--site", "north", "--run", trained, "--out", below / "x.nii"),
    }
    end = pflsynth(verb, *words[verb])
    assert end.code == 1
    assert re.fullmatch(rf"{tmp_path}/file\S*: Not a directory.*", only_one_sentence(end)), end
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("verb", ["evaluate", "synthesize"])
def test_ctrl_c_leaves_nothing_half_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PersonalisedModel, "synthesize", stop)
    source = write_nifti(tmp_path / "sub-01_T1w.nii.gz", head())
    words = {
        "evaluate": ("--run", trained, "--out", tmp_path / "scores.csv"),
        "synthesize": (source, "--task", "T1w:T2w", "--site", "north", "--run", trained, "--out", tmp_path / "x.nii"),
    }
    end = pflsynth(verb, *words[verb])
    assert (end.code, end.err.strip()) == (130, "interrupted")
    assert list(tree(tmp_path)) == ["sub-01_T1w.nii.gz"]


@pytest.mark.slow
def test_force_replaces(road: tuple[Path, dict[str, Ended]], tmp_path: Path) -> None:
    folder, _ = road
    config, prepared, run = folder / "federation.toml", tmp_path / "prepared", tmp_path / "run"
    assert pflsynth("prepare", config, "--out", prepared).code == 0
    for rounds in (2, 1):
        force = () if rounds == 2 else ("--force",)
        words = ("train", config, "--prepared", prepared, "--run", run, "--set", f"rounds={rounds}")
        assert pflsynth(*words, *force).code == 0
        assert sorted(path.name for path in (run / "shared").iterdir())[-1] == f"round-000{rounds}.safetensors"
        assert pflsynth("evaluate", "--run", run, *force).code == 0
        source = image_path(folder / "data" / "north", "sub-01", "T1w")
        out = ("--out", tmp_path / "x.nii.gz", *force)
        assert pflsynth("synthesize", source, "--task", "T1w:T2w", "--site", "north", "--run", run, *out).code == 0
        assert json.loads((tmp_path / "x.json").read_text())["round"] == rounds
    assert pflsynth("prepare", config, "--out", prepared, "--force", "--set", "slices.maximum=2").code == 0
    assert json.loads((prepared / "north" / "manifest.json").read_text())["settings"]["slices"]["maximum"] == 2


@pytest.mark.slow
def test_the_program_that_is_installed(tmp_path: Path) -> None:
    """In a process of its own: the entry point, its exit code, and both streams."""
    (tmp_path / "federation.toml").write_text(TINY.replace("rounds = 3", "round = 3"))
    end = ended(start_pflsynth("check", "federation.toml", cwd=tmp_path))
    assert end == Ended(2, "", 'error: federation.toml: unknown key "round"; did you mean "rounds"?\n')
