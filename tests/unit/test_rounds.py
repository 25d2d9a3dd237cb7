"""The in-process engine: what it accepts, records, selects, keeps, and does when sites fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pflsynth import training
from pflsynth.data.slices import SliceStore
from pflsynth.errors import DataError, ModelError
from pflsynth.federation import site as site_module
from pflsynth.federation.aggregate import Aggregation, Update
from pflsynth.federation.checkpoint import Provenance, load_shared
from pflsynth.federation.methods import METHODS
from pflsynth.federation.rounds import Federation, Validate
from pflsynth.federation.site import Site
from pflsynth.files import load_tensors, save_tensors
from pflsynth.runs import RunDirectory, RunState

from ..tiny import Silent, Tiny, changed, initial_shared, new_federation, results


class Watched:
    """Stands before a site's ``train_round``: remembers what went in and out, and can spoil a round."""

    def __init__(self, site: Site, spoil: Callable[[Update], Update] | None = None, rounds: tuple[int, ...] = ()):
        self._train_round, self._spoil, self._rounds = site.train_round, spoil, rounds
        self.bases: dict[int, int] = {}
        self.received: dict[int, Any] = {}
        self.previous: dict[int, Any] = {}
        self.updates: dict[int, Update] = {}
        site.train_round = self  # type: ignore[method-assign,assignment]

    def __call__(self, shared: Any, round_number: int, base: int, on_step: Any, previous: Any) -> Update:
        self.received[round_number], self.previous[round_number] = dict(shared), previous
        update = self._train_round(shared, round_number, base, on_step, previous)
        if self._spoil is not None and round_number in self._rounds:
            update = self._spoil(update)
        self.bases[round_number], self.updates[round_number] = base, update
        return update


def with_nan(update: Update, name: str = "generator.mapper.layers.0.bias") -> Update:
    return Update(update.site, update.round, {**update.tensors, name: update.tensors[name] * np.nan}, update.slices)


def numbers(folder: Path, pattern: str) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob(pattern))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scores_by_round(scores: dict[int, Any]) -> tuple[Silent, Validate]:
    """An observer, and a validation that gives the round's score, for both sites or each its own."""
    observer = Silent()

    def validate(site: str, store: SliceStore, generator: nn.Module) -> float | None:
        assert not generator.training
        assert store.manifest.site == site
        score = scores[len(observer.records) + 1]
        return score[site] if isinstance(score, dict) else score

    return observer, validate


# ------------------------------------------------------------------------------------------------------ plain rounds


def test_a_round_is_the_weighted_mean_of_the_updates(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    watched = [Watched(site) for site in federation.sites]
    state = federation.train(Silent())
    assert state == RunState(round=1, bases={"north": 1, "south": 1})
    one, other = (each.updates[1] for each in watched)
    shared = load_shared(tmp_path / "run" / "shared" / "round-0001.safetensors", _provenance(config, 1))
    assert shared.keys() == one.tensors.keys() == other.tensors.keys()
    for name, tensor in shared.items():
        mean = one.slices * one.tensors[name].double() + other.slices * other.tensors[name].double()
        torch.testing.assert_close(tensor.double(), mean / (one.slices + other.slices), rtol=1e-6, atol=2**-24)


def test_the_order_of_sites_changes_no_bit(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=2)
    new_federation(config, tiny.prepared, tmp_path / "run").train(Silent())
    federation = new_federation(config, tiny.prepared, tmp_path / "turned")
    Federation(config, federation.sites[::-1], federation.run).train(Silent())
    one, other = results(tmp_path / "run"), results(tmp_path / "turned")
    assert one == other


def test_every_round_is_recorded(trained: Path, tiny: Tiny) -> None:
    lines = records(trained)
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["refused"] == {}
        for site in ("north", "south"):
            kinds = ("l1", "adversarial", "discriminator")
            wanted = {f"{kind}/{task}" for kind in kinds for task in tiny.config.sites[site].tasks}
            assert set(line["losses"][site]) == wanted
    timings = [json.loads(line) for line in (trained / "timings.jsonl").read_text().splitlines()]
    assert [line["round"] for line in timings] == [1, 2, 3]
    assert all(line["seconds"] > 0 and line["peak_memory_mb"] > 0 for line in timings)


def test_training_makes_the_losses_fall(trained: Path) -> None:
    first, *_, last = records(trained)
    ratios = [
        value / first["losses"][site][name]
        for site, losses in last["losses"].items()
        for name, value in losses.items()
        if name.startswith("l1/")
    ]
    assert len(ratios) == 4
    assert max(ratios) < 0.95  # of a few samples in three rounds
    assert fmean(ratios) < 0.8


def test_the_last_two_rounds_are_kept(trained: Path) -> None:
    assert numbers(trained / "shared", "round-*") == [2, 3]
    for site in ("north", "south"):
        assert numbers(trained / "sites" / site, "private-*") == [2, 3]
        assert numbers(trained / "sites" / site, "personalised-*") == [3]


@pytest.mark.slow
def test_every_nth_round_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=5, training={"keep_every": 2})
    new_federation(config, tiny.prepared, tmp_path / "run").train(Silent())
    assert numbers(tmp_path / "run" / "shared", "round-*") == [2, 4, 5]
    for site in ("north", "south"):
        assert numbers(tmp_path / "run" / "sites" / site, "private-*") == [2, 4, 5]


# -------------------------------------------------------------------------------------------- what the server goes by


def test_the_servers_rule_steps_from_the_mean_and_its_moments_are_saved(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, method="fedbadam", rounds=2, model={"mapper_layers": 1})
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    watched = [Watched(site) for site in federation.sites]
    federation.train(Silent())
    before, name = initial_shared(config, "north"), "generator.stages.1.0.weight"
    current, first, second = before[name], torch.zeros_like(before[name]), torch.zeros_like(before[name])
    for number in (1, 2):
        one, other = (each.updates[number] for each in watched)
        mean = one.slices * one.tensors[name].double() + other.slices * other.tensors[name].double()
        change = mean / (one.slices + other.slices) - current
        first, second = 0.9 * first + 0.1 * change, 0.99 * second + 0.01 * change**2
        current = current + 0.1 * first / (second.sqrt() + 1e-3)
        saved = load_shared(tmp_path / "run" / "shared" / f"round-000{number}.safetensors", _provenance(config, number))
        for key, wanted in ((name, current), (f"server/first/{name}", first), (f"server/second/{name}", second)):
            torch.testing.assert_close(saved[key].double(), wanted.double(), rtol=1e-4, atol=1e-6)
        assert {key for key in saved if not key.startswith("server/")} == set(before)
        current, first, second = saved[name], saved[f"server/first/{name}"], saved[f"server/second/{name}"]
    assert set(watched[0].received) == {1, 2}
    assert set(watched[0].received[2]) == set(before)  # moments stay at the server
    assert torch.equal(watched[0].received[2][name], watched[1].received[2][name])


def test_the_server_passes_on_what_every_site_sent_the_round_before(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, method="fedmri", rounds=3, quorum=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    encoder = "generator.encoder.blocks.0.conv1.weight"
    north = Watched(federation.sites[0])
    south = Watched(federation.sites[1], lambda update: with_nan(update, encoder), rounds=(2,))
    federation.train(Silent())
    assert north.previous[1] == {}
    for site in (north, south):
        assert site.previous[2].keys() == {"north", "south"}  # its own too
        assert site.previous[3].keys() == {"north"}  # south's was refused
    for sender, name in ((north, "north"), (south, "south")):
        sent, passed_on = sender.updates[1].tensors, north.previous[2][name]
        assert passed_on.keys() == sent.keys()
        assert all(torch.equal(tensor, sent[key]) for key, tensor in passed_on.items())
        assert all(key.startswith("generator.encoder.") for key in passed_on)
    assert all(torch.equal(tensor, north.updates[2].tensors[key]) for key, tensor in south.previous[3]["north"].items())


def test_other_methods_are_told_of_no_other_site(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=2, method="fedmri-rerun")
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    watched = [Watched(site) for site in federation.sites]
    federation.train(Silent())
    assert all(each.previous == {1: {}, 2: {}} for each in watched)


# -------------------------------------------------------------------------------------------------------- bad updates


def test_a_site_that_sends_nan_is_refused_and_goes_on_from_its_base(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, quorum=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    north = Watched(federation.sites[0], with_nan, rounds=(2,))
    south = Watched(federation.sites[1])
    states: list[RunState] = []
    save_state = federation.run.save_state
    federation.run.save_state = lambda state: (states.append(state), save_state(state))[1]  # type: ignore[method-assign]
    state = federation.train(Silent())

    assert [dict(one.bases) for one in states] == [
        {"north": 1, "south": 1},
        {"north": 1, "south": 2},
        {"north": 3, "south": 3},
    ]
    assert state.round == 3
    assert north.bases == {1: 0, 2: 1, 3: 1}
    assert south.bases == {1: 0, 2: 1, 3: 2}
    _, second, _ = records(tmp_path / "run")
    assert list(second["losses"]) == ["south"]
    assert second["refused"] == {
        "north": "update of site north, round 2, tensor generator.mapper.layers.0.bias: "
        "holds NaN, Inf or no floating-point numbers"
    }
    shared = load_shared(tmp_path / "run" / "shared" / "round-0002.safetensors", _provenance(config, 2))
    alone = Aggregation(initial_shared(config, "south"), {"south": frozenset(shared)})
    alone.add(south.updates[2])
    assert all(torch.equal(shared[name], tensor) for name, tensor in alone.result().items())


def test_a_site_that_diverges_is_refused_and_recovers(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tiny.config, quorum=1)
    federation = new_federation(config, tiny.prepared, tmp_path / "run")
    north = federation.sites[0]
    train_round = north.train_round

    def absurd(shared: Any, round_number: int, *others: Any) -> Update:
        with monkeypatch.context() as patch:
            if round_number == 2:
                patch.setattr(site_module, "learning_rate_factor", lambda *_: 1e38)
            return train_round(shared, round_number, *others)

    north.train_round = absurd  # type: ignore[method-assign,assignment]
    state = federation.train(Silent())
    assert state.bases == {"north": 3, "south": 3}
    _, second, third = records(tmp_path / "run")
    assert second["refused"].keys() == {"north"}
    assert second["refused"]["north"].startswith("update of site north, round 2, tensor generator.")
    assert third["refused"] == {}
    for path in (tmp_path / "run").rglob("*.safetensors"):
        tensors, _ = load_tensors(path, kind=path.stem.partition("-")[0].replace("round", "shared"))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_nan_that_stays_private_is_refused_too(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["pflsynth"]

    def spoiled(networks: Any, *arguments: Any) -> Any:
        losses = method.step(networks, *arguments)
        with torch.no_grad():
            networks.discriminators["T1w->T2w"].layers[0].bias[0] = float("nan")
        return losses

    monkeypatch.setattr(site_module, "method_of", lambda config: replace(method, step=spoiled))
    federation = new_federation(changed(tiny.config, rounds=1), tiny.prepared, tmp_path / "run")
    with pytest.raises(ModelError, match=r"round 1, tensor discriminators\.T1w->T2w\.\S+: holds NaN or Inf"):
        federation.train(Silent())


@pytest.mark.slow
def test_below_the_quorum_the_run_stays_at_the_round_before(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    federation = new_federation(tiny.config, tiny.prepared, run)  # quorum: both
    Watched(federation.sites[1], with_nan, rounds=(2,))
    with pytest.raises(ModelError, match=r"only 1 of 2 sites sent a usable update, quorum is 2: update of site south"):
        federation.train(Silent())
    assert federation.run.state() == RunState(round=1, bases={"north": 1, "south": 1})
    assert [line["round"] for line in records(run)] == [1]
    assert numbers(run / "shared", "round-*") == [1]
    again = new_federation(tiny.config, tiny.prepared, run)
    again.train(Silent())
    assert results(run) == results(trained)


def test_a_site_with_damaged_data_is_refused_and_the_others_are_saved(tiny: Tiny, tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    shutil.copytree(tiny.prepared, prepared)
    subject = tiny.store("south").subjects("train")[0]
    path = prepared / "south" / subject.file
    path.write_bytes(path.read_bytes()[:-10])
    config = changed(tiny.config, rounds=2, quorum=1)
    with pytest.raises(DataError, match=rf"{subject.file}: has \d+ bytes instead of \d+, so it was cut short"):
        new_federation(config, prepared, run).train(Silent())
    assert [list(line["refused"]) for line in records(run)] == [["south"], ["south"]]
    assert RunDirectory(run).state().bases == {"north": 2, "south": 0}
    assert numbers(run / "sites" / "north", "personalised-*") == [2]
    shutil.copy(tiny.prepared / "south" / subject.file, path)
    new_federation(config, prepared, run).train(Silent())  # mended: only what was missing is made
    assert numbers(run / "sites" / "south", "personalised-*") == [2]


# ---------------------------------------------------------------------------------------------------------- selection


def test_validation_selects_a_round_for_the_whole_federation(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = changed(tiny.config, rounds=5, training={"select": "validation", "validate_every": 1})
    observer, validate = scores_by_round({1: 5.0, 2: {"north": 9.0, "south": 7.0}, 3: 8.0, 4: 6.0, 5: 7.5})
    state = new_federation(config, tiny.prepared, run).train(observer, validate)
    assert (state.selected, state.selected_score) == (2, 8.0)  # the first of a tie
    assert state.selected_bases == {"north": 2, "south": 2}
    assert records(run)[1]["validation_psnr"] == {"north": 9.0, "south": 7.0}
    assert numbers(run / "shared", "round-*") == [2, 4, 5]
    for site in ("north", "south"):
        assert numbers(run / "sites" / site, "private-*") == [2, 4, 5]
        assert numbers(run / "sites" / site, "personalised-*") == [2]
        model, _ = load_tensors(run / "sites" / site / "personalised-0002.safetensors", kind="personalised")
        shared = load_shared(run / "shared" / "round-0002.safetensors", _provenance(config, 2))
        private, _ = load_tensors(run / "sites" / site / "private-0002.safetensors", kind="private")
        for name, tensor in model.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                owner = shared if f"generator.{name}" in shared else private
                assert torch.equal(tensor, owner[f"generator.{name}"])
    assert RunDirectory(run).result(config) == (2, {"north": 2, "south": 2})


@pytest.mark.slow
def test_the_private_state_that_the_selected_round_rests_on_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = changed(tiny.config, rounds=5, quorum=1, training={"select": "validation", "validate_every": 2})
    observer, validate = scores_by_round({2: 9.0, 4: 1.0})
    federation = new_federation(config, tiny.prepared, run)
    Watched(federation.sites[0], with_nan, rounds=(2,))
    state = federation.train(observer, validate)
    assert (state.selected, dict(state.selected_bases)) == (2, {"north": 1, "south": 2})
    assert numbers(run / "sites" / "north", "private-*") == [1, 2, 4, 5]
    model, _ = load_tensors(run / "sites" / "north" / "personalised-0002.safetensors", kind="personalised")
    private, _ = load_tensors(run / "sites" / "north" / "private-0001.safetensors", kind="private")
    name = "stages.1.0.weight"
    assert torch.equal(model[name], private[f"generator.{name}"])


@pytest.mark.slow
def test_sites_without_validation_subjects_do_not_count(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=2, training={"select": "validation", "validate_every": 1})
    observer, validate = scores_by_round({1: {"north": None, "south": 3.0}, 2: {"north": None, "south": 2.0}})
    state = new_federation(config, tiny.prepared, tmp_path / "some").train(observer, validate)
    assert (state.selected, state.selected_score) == (1, 3.0)
    observer, validate = scores_by_round({1: None, 2: None})
    state = new_federation(config, tiny.prepared, tmp_path / "none").train(observer, validate)
    assert state.selected == 0
    assert state.result(config) == (2, {"north": 2, "south": 2})


def test_a_score_that_is_no_number_is_never_the_best(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=2, training={"select": "validation", "validate_every": 1})
    observer, validate = scores_by_round({1: float("nan"), 2: 2.0})
    state = new_federation(config, tiny.prepared, tmp_path / "run").train(observer, validate)
    assert (state.selected, state.selected_score) == (2, 2.0)


def test_a_damaged_validation_subject_does_not_stop_the_federation(tiny: Tiny, tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    shutil.copytree(tiny.prepared, prepared)
    (subject,) = tiny.store("south").subjects("validation")
    path = prepared / "south" / subject.file
    path.write_bytes(path.read_bytes()[:-10])
    config = changed(tiny.config, rounds=1, training={"validate_every": 1})
    training.train(config, prepared, run, Silent())
    (line,) = records(run)
    assert line["validation_psnr"].keys() == {"north"}
    assert line["losses"].keys() == {"north", "south"}
    assert line["refused"].keys() == {"south"}
    assert subject.file in line["refused"]["south"]


def test_validation_takes_place_every_nth_round_and_changes_no_weight(
    tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = changed(tiny.config, training={"validate_every": 2})
    observer, validate = scores_by_round({2: 4.0})
    state = new_federation(config, tiny.prepared, run).train(observer, validate)
    assert ["validation_psnr" in line for line in records(run)] == [False, True, False]
    assert state.result(config)[0] == 3  # recorded, but the last round stays the result
    one, _ = load_tensors(run / "shared" / "round-0003.safetensors", kind="shared")
    other, _ = load_tensors(trained / "shared" / "round-0003.safetensors", kind="shared")
    assert all(torch.equal(one[name], other[name]) for name in other)


# ------------------------------------------------------------------------------------------------------- wrong states


def test_a_shared_state_of_another_agreement_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=1)
    run = tmp_path / "run"
    new_federation(config, tiny.prepared, run).train(Silent())
    path = run / "shared" / "round-0001.safetensors"
    tensors, metadata = load_tensors(path, kind="shared")
    save_tensors(path, tensors, {**metadata, "agreement_sha256": "0" * 64}, kind="shared")
    with pytest.raises(
        ModelError, match=r"round-0001\.safetensors: belongs to another training: agreement_sha256 is 0{64}"
    ):
        new_federation(config, tiny.prepared, run).train(Silent())


def _provenance(config: Any, round_number: int) -> Provenance:
    return Provenance(config.agreement_sha256(), round_number)
