"""The contract of the two engines: the same bytes in one process and over Flower, whoever arrives when."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from pflsynth import training
from pflsynth.evaluation.evaluate import evaluate_run
from pflsynth.federation.aggregate import UpdateRefused
from pflsynth.federation.methods import METHODS
from pflsynth.federation.personalised import open_personalised
from pflsynth.runs import RunDirectory

from ..data_builders import tree
from ..tiny import Silent, Tiny, changed, new_federation, pflsynth, train
from .grid import Hospitals, Letter


def shared_half(run: Path) -> dict[str, bytes]:
    """What a coordinator keeps of a run."""
    names = ("agreement.sha256", "federation.toml", "metrics.jsonl", "state.json")
    return {name: data for name, data in tree(run).items() if name.startswith("shared/") or name in names}


def site_half(run: Path, site: str) -> dict[str, bytes]:
    """What a site keeps of a run."""
    return {name: data for name, data in tree(run).items() if name.startswith(f"sites/{site}/")}


def assert_same(hospitals: Hospitals, one_process: Path) -> None:
    """The coordinator holds the shared half of the same run and nothing private, each site holds its own."""
    assert shared_half(hospitals.coordinator) == shared_half(one_process)
    assert not any(name.startswith("sites/") for name in tree(hospitals.coordinator))
    for site in hospitals.config.participants:
        assert site_half(hospitals.run_of(site), site) == site_half(one_process, site)
        assert {path.name for path in (hospitals.run_of(site) / "sites").iterdir()} == {site}


def later(*sites: str) -> Callable[[Letter], int]:
    """Replies of these sites come after the others'."""
    return lambda letter: 3 * (sites.index(letter.site) + 1) if letter.site in sites else 0


@pytest.fixture(scope="module")
def served(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """The tiny federation, trained over the grid; tests do not change it."""
    hospitals = Hospitals(tmp_path_factory.mktemp("served"), tiny.config, tiny.prepared)
    hospitals.serve(gather_s=60.0)
    return hospitals


@pytest.mark.slow
def test_the_bytes_of_one_process(served: Hospitals, trained: Path) -> None:
    assert_same(served, trained)
    assert served.order == ["north", "south"] * 3


@pytest.mark.slow
def test_whatever_the_order_of_arrival(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, patience=later("north"))
    hospitals.serve(gather_s=60.0)
    assert hospitals.order == ["south", "north"] * 3
    assert_same(hospitals, trained)


@pytest.mark.slow
def test_asked_in_waves_of_one(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, patience=later("north"))
    hospitals.serve(gather_s=60.0, wave=1)
    assert hospitals.order == ["north", "south"] * 3
    assert_same(hospitals, trained)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedmri", "fedbadam", "local"])
def test_methods_with_more_than_a_mean(tiny: Tiny, tmp_path: Path, method: str) -> None:
    """Updates that are passed on, moments of the server, and nothing shared at all."""
    config = changed(tiny.config, method=method)
    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, patience=later("north"))
    train(hospitals.config, tiny.prepared, tmp_path / "run")
    hospitals.serve(gather_s=60.0)
    assert_same(hospitals, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "encoding"), [("pflsynth", "bfloat16"), ("fedmri", "int8"), ("fedbadam", "int8")])
def test_lossy_updates(tiny: Tiny, tmp_path: Path, method: str, encoding: str) -> None:
    config = changed(tiny.config, method=method, updates={"encoding": encoding})
    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, patience=later("north"))
    train(hospitals.config, tiny.prepared, tmp_path / "run")
    hospitals.serve(gather_s=60.0)
    assert_same(hospitals, tmp_path / "run")
    sent = METHODS[method].sent_megabytes(config, "north") * 1e6
    assert sent < (0.6 if encoding == "bfloat16" else 0.4) * METHODS[method].shared_megabytes(config, "north") * 1e6
    updates = [len(data) for site, data in hospitals.sent if site == "north" and len(data) > sent]
    assert len(updates) == config.rounds
    assert max(updates) < sent + 4000, "hardly more than the encoded tensors"


@pytest.mark.slow
def test_validation_selects_the_same_round(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(
        tiny.config,
        split={"validation": 0.3},
        training={"validate_every": 1, "select": "validation", "learning_rate": 0.05},
    )
    prepared = tmp_path / "prepared"
    tiny_again = prepare(config, prepared)
    training.train(tiny_again, prepared, tmp_path / "run", Silent())
    hospitals = Hospitals(tmp_path / "grid", tiny_again, prepared, patience=later("north"))
    hospitals.serve(gather_s=60.0)
    assert_same(hospitals, tmp_path / "run")
    assert RunDirectory(tmp_path / "run").state().selected_score is not None


def prepare(config: Any, folder: Path) -> Any:
    from pflsynth.data.prepare import prepare_site

    for site in config.site_names:
        prepare_site(config, site, folder / site)
    return config


def with_absences(tiny: Tiny, run: Path, absences: dict[int, set[str]], **changes: Any) -> Any:
    """Train in one process, with sites that refuse their update in some rounds."""
    config = changed(tiny.config, **changes)
    federation = new_federation(config, tiny.prepared, run)
    for site in federation.sites:
        site.train_round = _sometimes(site, absences)  # type: ignore[method-assign]
    federation.train(Silent())
    return config


def _sometimes(site: Any, absences: dict[int, set[str]]) -> Any:
    train_round = site.train_round

    def trained(shared: Any, number: int, *others: Any) -> Any:
        if site.name in absences.get(number, set()):
            raise UpdateRefused(f"site {site.name}: was not there")
        return train_round(shared, number, *others)

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(("method", "encoding"), [("pflsynth", "float32"), ("fedmri", "float32"), ("pflsynth", "int8")])
def test_a_site_that_is_away_for_a_round_and_comes_back(tiny: Tiny, tmp_path: Path, method: str, encoding: str) -> None:
    absences = {1: {"north"}, 3: {"south"}}
    others = {"method": method, "updates": {"encoding": encoding}}
    config = with_absences(tiny, tmp_path / "run", absences, quorum=1, rounds=4, **others)
    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, absent=lambda number: absences.get(number, set()))
    state = hospitals.serve()
    assert_same(hospitals, tmp_path / "run")
    assert state.bases == {"north": 4, "south": 4}


@pytest.mark.slow
def test_a_site_whose_reply_never_comes(tiny: Tiny, tmp_path: Path) -> None:
    """It did train, so its private state of that round is there; it starts from the round before all the same."""
    config = with_absences(tiny, tmp_path / "run", {2: {"south"}}, quorum=1)

    def hang(letter: Letter, reply: Message) -> Message | None:
        return None if letter.site == "south" and letter.header.kind == "train" and letter.header.round == 2 else reply

    hospitals = Hospitals(tmp_path / "grid", config, tiny.prepared, spoil=hang)
    hospitals.serve(deadline_s=1.0)
    shared = {name: data for name, data in shared_half(hospitals.coordinator).items() if name != "metrics.jsonl"}
    assert shared.items() <= shared_half(tmp_path / "run").items()
    records = RunDirectory(hospitals.coordinator).records("metrics.jsonl")
    assert records[1]["refused"] == {"south": "site south: no answer within 1 seconds"}
    assert records[2]["refused"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_coordinator_that_was_killed_goes_on(tiny: Tiny, trained: Path, tmp_path: Path, number: int) -> None:
    """Killed in the middle of a round, when one site's update is in."""

    class Killed(BaseException):
        pass

    def kill(letter: Letter, reply: Message) -> Message:
        if letter.site == "south" and letter.header.kind == "train" and letter.header.round == number:
            raise Killed
        return reply

    hospitals = Hospitals(tmp_path, tiny.config, tiny.prepared, spoil=kill)
    with pytest.raises(Killed):
        hospitals.serve()
    assert hospitals.status()["phase"] == "stopped"
    assert RunDirectory(hospitals.coordinator).state().round == number - 1
    again = Hospitals(tmp_path, tiny.config, tiny.prepared)
    again.serve()
    assert_same(again, trained)
    assert again.order == ["north", "south"] * (4 - number)


@pytest.mark.slow
def test_the_passed_on_updates_survive_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, method="fedmri")
    train(config, tiny.prepared, tmp_path / "run")

    def stop(letter: Letter, reply: Message) -> Message:
        if letter.header.kind == "train" and letter.header.round == 3:
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        Hospitals(tmp_path / "grid", config, tiny.prepared, spoil=stop).serve()
    again = Hospitals(tmp_path / "grid", config, tiny.prepared)
    again.serve()
    assert_same(again, tmp_path / "run")


# ------------------------------------------------------------------------------------------------------ after training


@pytest.mark.slow
def test_a_site_ends_with_a_run_that_evaluate_and_synthesize_take(
    served: Hospitals, trained: Path, tiny: Tiny, tmp_path: Path
) -> None:
    of_all = {score for score in evaluate_run(trained, "test").scores if score.site == "south"}
    assert set(evaluate_run(served.run_of("south"), "test").scores) == of_all
    assert open_personalised(served.run_of("south"), "south").sha256 == open_personalised(trained, "south").sha256
    source = next((tiny.folder / "data" / "south").rglob("*_T1w.nii.gz"))
    words = ("--run", served.run_of("south"), "--site", "south", "--task", "T1w:T2w")
    end = pflsynth("synthesize", source, *words, "--out", tmp_path / "made.nii.gz")
    assert end.code == 0, end
    assert (tmp_path / "made.nii.gz").is_file()


@pytest.mark.slow
def test_a_coordinator_has_no_model_to_evaluate(served: Hospitals) -> None:
    end = pflsynth("evaluate", "--run", served.coordinator)
    assert end.code == 4
    assert "keeps no site's model, as a coordinator's run does; evaluate at the sites" in end.err


@pytest.mark.slow
def test_a_site_that_was_away_at_the_end_gets_its_model_later(
    served: Hospitals, tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(served.folder, tmp_path / "grid")
    again = Hospitals(tmp_path / "grid", tiny.config, tiny.prepared)
    model = RunDirectory(again.run_of("north")).personalised_path("north", 3)
    model.unlink()
    again.serve()
    assert again.order == []
    assert_same(again, trained)
    assert {site: told["finished"] for site, told in again.status()["sites"].items()} == {"north": True, "south": True}
