"""The server's half of a training: what it passes on, and which updates are too far to be plausible."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import pytest
import torch

from pflsynth.config import FederationConfig
from pflsynth.federation.aggregate import Update, UpdateRefused, distance
from pflsynth.federation.coordinator import Coordinator, Round, Tensors
from pflsynth.federation.method import Method
from pflsynth.runs import RunDirectory

from ..tiny import Tiny, changed

WEIGHT = "generator.mapper.layers.0.weight"


def coordinator(config: FederationConfig, folder: Path) -> Coordinator:
    """A new one, or one that goes on."""
    if not folder.exists():
        RunDirectory.create(folder, config, None, {}, config.participants, ())
    made = Coordinator(config, RunDirectory(folder))
    made.resume()
    return made


def accept(current: Round, site: str, moved: float) -> None:
    """Accept an update that moves one number of a site's shared parameters."""
    tensors = {name: tensor.clone() for name, tensor in current.assignment(site).shared.items()}
    name = WEIGHT if WEIGHT in tensors else next(name for name in tensors if name.endswith("weight"))
    tensors[name].view(-1)[0] += moved
    current.accept(Update(site, current.number, tensors, 10))


def play(made: Coordinator, north: float, south: float) -> dict[str, object]:
    """A round in which both sites move one number."""
    current = made.begin()
    accept(current, "north", north)
    accept(current, "south", south)
    current.aggregate()
    return current.close()


def test_distance_is_euclidean_and_leaves_running_statistics_out() -> None:
    before = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.0), "norm.running_mean": torch.tensor([0.0])}
    after = {"a": torch.tensor([4.0, 2.0]), "b": torch.tensor(-4.0), "norm.running_mean": torch.tensor([99.0])}
    assert distance(after, before) == 5.0
    assert distance({}, {}) == 0.0


def test_ten_times_the_median_of_the_last_five_rounds_largest_is_the_farthest(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, rounds=20)
    made = coordinator(config, tmp_path / "run")
    assert made.farthest() == math.inf
    pairs = [(8.0, 1.0), (0.5, 0.25), (0.125, 1.0), (0.5, 2.0), (4.0, 0.5), (2.0, 0.5)]
    for round_number, (north, south) in enumerate(pairs, 1):
        record = play(made, north, south)
        assert record["distances"] == pytest.approx({"north": north, "south": south}, rel=1e-4), round_number
    # the largest of the last five rounds: 0.5, 1, 2, 4, 2
    assert made.farthest() == pytest.approx(20.0, rel=1e-4)
    assert coordinator(config, tmp_path / "run").farthest() == made.farthest(), "the same after a stop"
    current = made.begin()
    with pytest.raises(UpdateRefused, match=r"site south, round 7: is 21 away .* 20 is the farthest"):
        accept(current, "south", 21.0)
    assert current.accepted == frozenset()
    accept(current, "north", 19.0)
    assert current.accepted == {"north"}
    assert made.farthest() == pytest.approx(20.0, rel=1e-4), "rounds that are not whole tell nothing"


def test_an_update_that_comes_after_a_refusal_counts(tiny: Tiny, tmp_path: Path) -> None:
    current = coordinator(tiny.config, tmp_path / "run").begin()
    current.refuse("north", "site north: was late")
    accept(current, "north", 1.0)
    assert current.refused == {}


def test_updates_are_passed_on_in_one_order_whoever_came_first(tiny: Tiny, tmp_path: Path) -> None:
    made = coordinator(changed(tiny.config, method="fedmri"), tmp_path / "run")
    current = made.begin()
    for site in ("south", "north"):
        accept(current, site, 0.5)
    current.aggregate()
    current.close()
    assert list(made.begin().assignment("north").previous) == ["north", "south"]


def test_a_run_of_an_earlier_version_goes_on_without_a_limit(tiny: Tiny, tmp_path: Path) -> None:
    made = coordinator(tiny.config, tmp_path / "run")
    play(made, 1.0, 1.0)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text('{"losses": {}, "refused": {}, "round": 1}\n')
    again = coordinator(tiny.config, tmp_path / "run")
    assert (again.state.round, again.farthest()) == (1, math.inf)


def test_the_initial_parameters_of_many_sites_are_not_in_memory_together(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = {f"site-{number}": {"tasks": ["T1w->T2w"]} for number in range(6)}
    config = FederationConfig.model_validate({**tiny.config.model_dump(), "sites": sites})
    made: list[list[weakref.ref[torch.Tensor]]] = []
    alive: list[int] = []
    build = Method.initial_shared

    def watched(method: Method, config: FederationConfig, trainer: str) -> Tensors:
        alive.append(sum(any(tensor() is not None for tensor in tensors) for tensors in made))
        tensors = build(method, config, trainer)
        made.append([weakref.ref(tensor) for tensor in tensors.values()])
        return tensors

    monkeypatch.setattr(Method, "initial_shared", watched)
    coordinator(config, tmp_path / "run")
    assert len(alive) == 6
    assert max(alive) == 1, "one site's, while the next one's are built"
