"""The commands that the README shows do what it says, on small data; and every recipe can be read."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pflsynth.cli import main
from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.data.layouts import LAYOUTS
from pflsynth.data.phantom import PHANTOM_SITES
from tests.data_builders import image_path, write_site

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOUR = ("brats", "ixi", "midas", "oasis")
PAPER = {  # arXiv:2207.06509, Sec. IV
    "paper-common": {site: ["T1w->T2w"] for site in FOUR},
    "paper-common-both": {site: ["T1w->T2w", "T2w->T1w"] for site in FOUR},
    "paper-variable": {
        "ixi": ["T1w->T2w", "T2w->PDw"],
        "brats": ["T1w->T2w", "FLAIR->T2w"],
        "midas": ["T1w->T2w", "T2w->T1w"],
        "oasis": ["T1w->T2w", "T2w->FLAIR"],
    },
}
SMALL = ["--set", "model.width=8", "--set", "model.residual_layers=1", "--set", "rounds=1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "pflsynth"]


def run(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0, words


def test_two_commands_are_targets_of_the_makefile() -> None:
    shown = [line.split()[1] for line in blocks("bash")[0].splitlines()]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert shown == ["demo", "test"]
    assert set(shown) <= set(targets)


def test_debian_packages_are_those_of_ci() -> None:
    listed = re.search(r"on Debian or Ubuntu these packages: `([^`]+)`", README)
    installed = re.search(r"--no-install-recommends (.+)", (ROOT / ".ci" / "run").read_text())
    assert listed is not None
    assert installed is not None
    assert listed[1].split() == installed[1].split()


@pytest.mark.slow
def test_commands_for_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation.toml").write_text(blocks("toml")[0])
    write_site(tmp_path / "data" / "oslo", 4, ("T1w", "T2w", "FLAIR"))
    lima = write_site(tmp_path / "data" / "lima", 4, ("T1w", "T2w"), first_seed=700)
    for path in sorted(lima.rglob("*.nii.gz")):  # the names that the README shows
        name = {"T1w": "MPRAGE", "T2w": "t2"}[path.name.split("_")[1].split(".")[0]]
        path.rename(path.parents[1] / f"{name}.nii.gz")
    shutil.copy(image_path(tmp_path / "data" / "oslo", "sub-01", "T1w"), tmp_path / "sub-09_T1w.nii.gz")
    small = [*SMALL, "--set", "image.size=32"]
    shown = commands(blocks("text")[0])
    assert [words[0] for words in shown] == ["check", "prepare", "train", "train", "evaluate", "synthesize"]
    for words in shown:
        run(words if "--run" in words and "--prepared" not in words else [*words, *small])
    assert (tmp_path / "sub-09_T2w.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.realdata
def test_commands_for_real_data(realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    small = [*SMALL, "--set", "slices.maximum=2"]
    for words in commands(blocks("bash")[1]):
        words = [word.replace("../shared/realdata", str(realdata)) for word in words]
        if words[0] in ("check", "prepare"):
            words += ["--data-root", str(realdata)]
        run(words if words[0] in ("evaluate", "synthesize") else [*words, *small])
    assert (tmp_path / "work" / "sub-03_FLAIR.nii.gz").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_recipes_can_be_read(path: Path) -> None:
    config = load_config(path).federation
    assert config.name == path.stem
    if path.stem.startswith(("paper-", "phantom-")):
        tasks = {site: [str(task) for task in content.tasks] for site, content in config.sites.items()}
        setting = path.stem.partition("-")[2].removesuffix("lite").removesuffix("full").removesuffix("-") or "variable"
        assert tasks == PAPER[f"paper-{setting}"]
        model, image = config.model, config.image
        if path.stem.startswith("paper-") or path.stem.endswith("-full"):
            assert (model.width, model.residual_layers, image.size) == (64, 9, 256)
        if path.stem.startswith("paper-"):
            assert config.rounds == 150
    else:
        sources = {site: [task.source for task in content.tasks] for site, content in config.sites.items()}
        assert any(len(set(own)) < len(own) for own in sources.values()), "no site has an ambiguous pair"


def test_demo_has_the_tasks_of_the_phantom() -> None:
    content = tomllib.loads((ROOT / "src" / "pflsynth" / "demo.toml").read_text())
    assert {site: set(own["tasks"]) for site, own in content["sites"].items()} == {
        site: set(protocol.tasks) for site, protocol in PHANTOM_SITES.items()
    }


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "datasets").glob("*.md")), ids=lambda page: page.stem)
def test_configurations_of_dataset_pages_can_be_read(page: Path, tmp_path: Path) -> None:
    whole: dict[str, Any] = {}
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        whole |= tomllib.loads(block)  # a later block on a page shows other sites of the same federation
        config = FederationConfig.model_validate(whole)
        for site in config.sites.values():
            assert site.layout in LAYOUTS or "{subject}" in site.layout
