"""Every method: it trains, what is private never leaves, the MB it names are sent, and it resumes to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pflsynth import training
from pflsynth.config import FederationConfig
from pflsynth.errors import DataError, ModelError, UsageError
from pflsynth.federation import site as site_module
from pflsynth.federation.checkpoint import OPTIMIZER
from pflsynth.federation.methods import CENTRAL, METHODS, PAPER, method_of, named, task_code
from pflsynth.federation.personalised import open_personalised
from pflsynth.federation.site import Site
from pflsynth.files import load_tensors
from pflsynth.networks.personalization import PersonalizationBlock
from pflsynth.runs import RunDirectory

from ..tiny import Silent, Tiny, changed, initial_shared, new_federation, results, train

FEDERATED = [name for name, method in METHODS.items() if not method.central]
QUICK = {"fedmri", "ditto", "fedbadam"}
"""Those that keep more between rounds than the others: updates passed on, two models, a server's moments."""


def small(tiny: Tiny, name: str, model: Mapping[str, object] | None = None, **sections: object) -> FederationConfig:
    """The tiny federation with a method, and the shortest mapper, which is most of what is written to disk."""
    return changed(tiny.config, method=name, model={"mapper_layers": 1, **(model or {})}, **sections)


@pytest.mark.parametrize("name", FEDERATED)
def test_only_the_shared_part_leaves_and_weighs_what_is_said(tiny: Tiny, tmp_path: Path, name: str) -> None:
    config = small(tiny, name)
    method, networks = METHODS[name], METHODS[name].networks(config, "north")
    partition = method.sharing(config).partition(networks)
    site = Site(config, "north", {"north": tiny.store("north")}, tmp_path)
    update = site.train_round(initial_shared(config, "north"), 1, 0)
    assert set(update.tensors) == set(partition.shared)
    assert not set(update.tensors) & set(partition.private)
    assert all(torch.isfinite(tensor).all() for tensor in update.tensors.values())
    assert update.megabytes == method.sent_megabytes(config, "north")
    assert update.megabytes == sum(4 * tensor.numel() for tensor in update.tensors.values()) / 1e6

    # What does not leave is on the site's disk; and all of it, shared or private, has been trained.
    written, _ = load_tensors(tmp_path / "private-0001.safetensors", kind="private")
    kept = {key: tensor for key, tensor in written.items() if not key.startswith(OPTIMIZER)}
    assert set(kept) == set(partition.private)
    trained, before = {**update.tensors, **kept}, networks.state_dict()
    filters = [key for key in before if before[key].ndim == 4]
    assert filters
    assert not [key for key in filters if torch.equal(trained[key], before[key])]


def test_what_is_received_is_what_is_sent_and_all_that_the_server_passes_on(tiny: Tiny) -> None:
    for name in FEDERATED:
        config = small(tiny, name)
        sent, received = (
            METHODS[name].sent_megabytes(config, "north"),
            METHODS[name].received_megabytes(config, "north"),
        )
        assert received == pytest.approx(3 * sent if name == "fedmri" else sent), name  # own and two sites' encoders
    assert METHODS["local"].sent_megabytes(small(tiny, "local"), "north") == 0


def private(tiny: Tiny, name: str, model: Mapping[str, object] | None = None) -> set[str]:
    """What a method keeps at north, batch norm's counters apart."""
    config = small(tiny, name, model)
    networks = METHODS[name].networks(config, "north")
    return _learnt(METHODS[name].sharing(config).partition(networks).private)


def state(tiny: Tiny, name: str, *prefixes: str, kind: type[nn.Module] = nn.Module) -> set[str]:
    """All that a method trains at north below ``prefixes``, in modules of a kind."""
    networks = METHODS[name].networks(small(tiny, name), "north")
    inside = {f"{own}." for own, module in networks.named_modules() if own and isinstance(module, kind)}
    return {
        key
        for key in _learnt(networks.state_dict())
        if key.startswith(tuple(f"{prefix}." for prefix in prefixes)) and any(map(key.startswith, inside))
    }


def _learnt(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def stages(*numbers: int) -> list[str]:
    return [f"generator.{part}.{number}" for part in ("stages", "personalization") for number in numbers]


@pytest.mark.parametrize(
    ("names", "prefixes", "kind"),
    [
        (("fedgan",), (), nn.Module),
        (("fedbn",), ("generator", "discriminators"), nn.BatchNorm2d),
        (("fedmri", "fedmri-rerun"), ("generator.decoder", "discriminators"), nn.Module),
        (("fedgan-rerun", "fedmed-rerun", "fedmm-rerun", "fedcycle-rerun"), ("discriminators",), nn.Module),
        (("fedmed", "fedmm", "fedcycle", "fedavg", "fedprox"), ("discriminators",), nn.Module),
        (("fedper", "fedrep"), (*stages(5, 6, 7), "discriminators"), nn.Module),
        (("lg-fedavg",), (*stages(1, 2, 3, 4), "discriminators"), nn.Module),
        (("fedftn",), ("generator.mapper", "generator.personalization", "discriminators"), nn.Module),
        (("ditto",), ("generator", "discriminators", "helpers.common.discriminators"), nn.Module),
        (("local", "pix2pix", "pgan", "pflsynth-central"), ("generator", "discriminators"), nn.Module),
    ],
)
def test_what_each_method_keeps_private(
    tiny: Tiny, names: tuple[str, ...], prefixes: tuple[str, ...], kind: type[nn.Module]
) -> None:
    for name in names:
        assert private(tiny, name) == state(tiny, name, *prefixes, kind=kind), name


@pytest.mark.parametrize("name", ["fedbn-rerun", "fedbadam"])
def test_batch_norm_and_discriminators_can_both_be_private(tiny: Tiny, name: str) -> None:
    norms = state(tiny, name, "generator", kind=nn.BatchNorm2d)
    assert norms
    assert private(tiny, name) == norms | state(tiny, name, "discriminators")


class StopAfterRoundOne(Silent):
    """Copies the run as a kill right after the first round would have left it."""

    def __init__(self, run: Path, copy: Path) -> None:
        super().__init__()
        self.run, self.copy = run, copy

    def on_round(self, record: Mapping[str, Any]) -> None:
        super().on_round(record)
        if record["round"] == 1:
            shutil.copytree(self.run, self.copy)


def resumed_to_the_same_bytes(config: FederationConfig, tiny: Tiny, folder: Path) -> Path:
    """Train two rounds at once, and stopped between them; the run of the former."""
    whole, stopped = folder / "whole", folder / "stopped"
    new_federation(config, tiny.prepared, whole).train(StopAfterRoundOne(whole, stopped))
    assert results(stopped) != results(whole)
    train(config, tiny.prepared, stopped)
    assert results(stopped) == results(whole)
    return whole


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_it_trains_and_resumes_to_the_same_bytes(tiny: Tiny, tmp_path: Path, name: str) -> None:
    config = small(tiny, name, rounds=2)
    whole = resumed_to_the_same_bytes(config, tiny, tmp_path)
    store = tiny.store("south")
    source = store.slices(store.subjects("train")[0].name, "T1w")
    image = open_personalised(whole, "south").synthesize(source, config.sites["south"].tasks[0])
    assert image.shape == source.shape
    assert abs(image).max() <= 1


def test_local_training_is_the_same_whoever_takes_part(tiny: Tiny, tmp_path: Path) -> None:
    both = small(tiny, "local", rounds=1)
    alone = changed(both, held_out=["south"])
    train(both, tiny.prepared, tmp_path / "both")
    train(alone, tiny.prepared, tmp_path / "alone")
    models = [open_personalised(tmp_path / run, "north").generator.state_dict() for run in ("both", "alone")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_a_central_method_trains_once_for_all_sites(tiny: Tiny, tmp_path: Path) -> None:
    config = small(tiny, "pflsynth-central", rounds=1)
    assert method_of(config).trainers(config) == (CENTRAL,)
    train(config, tiny.prepared, tmp_path / "run")
    models = [open_personalised(tmp_path / "run", site).generator.state_dict() for site in ("north", "south")]
    learnt = [key for key in models[0] if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(models[0][key], models[1][key]) for key in learnt)
    statistics = [key for key in models[0] if key.endswith("running_mean")]
    assert not any(torch.equal(models[0][key], models[1][key]) for key in statistics)  # re-estimated at each site
    assert load_tensors(tmp_path / "run" / "shared" / "round-0001.safetensors", kind="shared")[0] == {}


def test_held_out_sites_have_a_code_and_no_part_in_the_training(tiny: Tiny, tmp_path: Path) -> None:
    config = small(tiny, "pflsynth", held_out=["south"], rounds=1)
    train(config, tiny.prepared, tmp_path / "run")
    assert not (tmp_path / "run" / "sites" / "south").exists()
    (record,) = RunDirectory(tmp_path / "run").records("metrics.jsonl")
    assert record["losses"].keys() == {"north"}
    assert record["refused"] == {}
    with_south, networks = (METHODS["pflsynth"].generator(own, "north") for own in (small(tiny, "pflsynth"), config))
    assert networks.code_length == with_south.code_length == 2 + 2 * 3
    with pytest.raises(
        UsageError, match=r"--site south: was held out .* pflsynth compare CONFIG --held-out-site south"
    ):
        open_personalised(tmp_path / "run", "south")
    task = config.sites["north"].tasks[0]
    assert torch.equal(task_code(config, "north", task), task_code(tiny.config, "north", task))


def test_an_unknown_method_is_told_with_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(
        UsageError, match=r'method "fedgam" is unknown \(did you mean "fedgan"\?\); methods are pflsynth'
    ):
        named("fedgam")
    with pytest.raises(UsageError, match=r'method "xyz" is unknown; methods are'):
        method_of(changed(tiny.config, method="xyz"))


def test_methods_that_cannot_train_these_tasks_say_why_before_training(tiny: Tiny) -> None:
    three = changed(
        tiny.config, method="fedcycle-rerun", sites={"north": {"tasks": ["T1w->T2w", "T1w->FLAIR", "T2w->T1w"]}}
    )
    with pytest.raises(
        UsageError, match=r"its switch has two states, and site north has 3 tasks \(T1w->T2w, T1w->FLAIR"
    ):
        method_of(three)
    for name in ("fedmm", "fedcycle", "fedcycle-rerun"):
        with pytest.raises(UsageError, match=r'put "task" into model\.code'):
            method_of(changed(tiny.config, method=name, model={"code": ["site"]}))


def test_every_method_says_what_it_is() -> None:
    assert set(PAPER) <= set(METHODS)
    for name, method in METHODS.items():
        for text in (method.title, method.citation, method.shared, method.private, method.loss):
            assert text, name


def test_pgan_without_its_file_says_so(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, method="pgan", training={"perceptual_sha256": "0" * 64})
    with pytest.raises(ModelError, match="perceptual_weights = FILE"):
        train(config, tiny.prepared, tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "private_stages"),
    [
        ({}, 4),
        ({"private_blocks": False}, 4),
        ({"private_discriminators": False}, 4),
        ({"split_stage": 1}, 0),
        ({"split_stage": 1, "private_blocks": False, "private_discriminators": False}, 0),
        ({"split_stage": 8}, 7),
    ],
)
def test_blocks_and_discriminators_can_be_shared_and_stages_split_anywhere(
    tiny: Tiny, model: dict[str, object], private_stages: int
) -> None:
    wanted: set[str] = set()
    if private_stages:
        wanted |= state(tiny, "pflsynth", *(f"generator.stages.{number}" for number in range(1, private_stages + 1)))
    if model.get("private_blocks", True):
        wanted |= state(tiny, "pflsynth", "generator", kind=PersonalizationBlock)
    if model.get("private_discriminators", True):
        wanted |= state(tiny, "pflsynth", "discriminators")
    assert private(tiny, "pflsynth", model=model) == wanted


def test_a_run_of_one_method_is_not_resumed_as_another(tiny: Tiny, tmp_path: Path) -> None:
    train(small(tiny, "fedavg", rounds=1), tiny.prepared, tmp_path / "run")
    with pytest.raises(ModelError, match="belongs to another training"):
        train(small(tiny, "fedprox", rounds=1), tiny.prepared, tmp_path / "run")


def test_a_central_method_refuses_a_site_without_training_slices(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(tiny.config, method="pix2pix")
    every = site_module.usable_slices
    monkeypatch.setattr(
        site_module, "usable_slices", lambda *given: [usable for usable in every(*given) if usable.site == "north"]
    )
    with pytest.raises(DataError, match="site south: no training slices for T1w->T2w, T2w->T1w; prepare again"):
        Site(config, CENTRAL, {site: tiny.store(site) for site in config.participants}, tmp_path)


def test_a_wrong_file_of_weights_is_refused_before_the_run_is_made(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"other")
    config = changed(tiny.config, method="pgan", training={"perceptual_sha256": "0" * 64})
    config = config.model_copy(update={"perceptual_weights": tmp_path / "vgg.pth"})
    with pytest.raises(ModelError, match=r"vgg\.pth"):
        training.train(config, tiny.prepared, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()
