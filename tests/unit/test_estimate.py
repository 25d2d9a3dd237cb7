"""What ``check`` tells of a round's time and memory: that it is measured on real steps, and how it is extrapolated."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pflsynth import estimate as module
from pflsynth.console import duration
from pflsynth.data.slices import SliceStore
from pflsynth.data.stand_in import write_stand_in
from pflsynth.errors import PflsynthError, UsageError
from pflsynth.estimate import Estimate, estimate
from pflsynth.federation.methods import CENTRAL
from pflsynth.federation.site import Site
from pflsynth.measuring import STEPS, Measured, busiest, measure, measure_here, thread_counts
from pflsynth.quality.site import check_site

from ..tiny import Tiny, changed

MEASURED = Measured(
    step_seconds=0.5, other_seconds=2.0, memory_mb=300.0, device_memory_mb=None, threads={1: 0.52, 2: 0.5, 4: 0.7}
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained: what is extrapolated is known."""
    monkeypatch.setattr(module, "measure", lambda config, trainer, threads: MEASURED)


def test_check_counts_the_slices_and_steps_that_training_has(tiny: Tiny, measured: None, tmp_path: Path) -> None:
    slices = {site: check_site(tiny.config, site).training_slices for site in tiny.config.participants}
    found = estimate(tiny.config, slices)
    for name, own in found.trainers.items():
        store = tiny.store(name)
        kept = {subject.name: len(subject.slices) for subject in store.subjects("train")}
        site = Site(tiny.config, name, {name: store}, tmp_path)
        assert slices[name] == kept
        assert (own.slices, own.steps) == (site.slices, site.steps_per_round)


def test_seconds_and_images_grow_with_the_slices(tiny: Tiny, measured: None) -> None:
    config = changed(tiny.config, training={"batch_size": 4, "local_epochs": 3})
    found = estimate(config, {"north": {"one": 6, "two": 4}, "south": {"one": 4}})
    north, south = found.trainers["north"], found.trainers["south"]
    assert (north.slices, north.steps, north.seconds) == (10, 9, 2 + 3 * 2.5 * 0.5)
    assert (south.slices, south.steps, south.seconds) == (4, 3, 2 + 3 * 1 * 0.5)
    assert found.round_seconds == north.seconds + south.seconds
    one_image = 32 * 32 * 4 / 2**20
    assert north.images_mb == 10 * 3 * one_image  # T1w, T2w and FLAIR
    assert south.images_mb == 4 * 2 * one_image
    assert found.peak_memory_mb == 300 + north.images_mb + south.images_mb


def test_at_most_as_many_subjects_as_stay_mapped_are_counted(tiny: Tiny, measured: None) -> None:
    many = estimate(tiny.config, {"south": {f"sub-{number}": 2 for number in range(40)}}).trainers["south"]
    assert many.slices == 80
    assert many.images_mb == 32 * 2 * 2 * 32 * 32 * 4 / 2**20


def test_a_centralised_method_has_one_trainer_with_all_slices(tiny: Tiny, measured: None) -> None:
    found = estimate(changed(tiny.config, method="pflsynth-central"), {"north": {"one": 6}, "south": {"one": 4}})
    assert {name: own.slices for name, own in found.trainers.items()} == {CENTRAL: 10}


def test_the_fewest_threads_that_are_nearly_as_fast_are_suggested() -> None:
    assert Estimate(MEASURED, {}).best_threads == 1  # 0.52 s is within 5 % of 0.5 s


def test_thread_counts_are_those_of_this_machine() -> None:
    counts = thread_counts()
    assert counts[0] == 1
    assert counts[-1] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("method", ["pflsynth", "fedmri", "fedmm", "pflsynth-central"])
def test_steps_are_measured_with_every_kind_of_method(method: str, tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny.config, method=method)
    found = measure_here(config, busiest(config), [1, 2], tmp_path)
    assert found.step_seconds > 0
    assert found.other_seconds > 0
    assert list(found.threads) == [1, 2]
    assert found.threads[1] == found.step_seconds
    assert found.device_memory_mb is None


def test_a_process_of_its_own_measures_and_leaves_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ballast = bytearray(os.urandom(1)) * 1000 * 2**20  # what this process takes is not in the figures
    found = measure(tiny.config, "north")
    assert len(ballast) == 1000 * 2**20
    assert 50 < found.memory_mb < 1000
    assert list(tmp_path.iterdir()) == []


def die(config: object, trainer: str, threads: object, folder: Path) -> None:
    """In place of measuring: end as the system ends a process for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_out(config: object, trainer: str, threads: object, folder: Path) -> None:
    """In place of measuring: a GPU that is too small."""
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("ending", "what"), [(die, "was ended from outside"), (run_out, "ran out of the GPU's memory")]
)
def test_too_little_memory_is_told_of(
    ending: Callable[..., None], what: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pflsynth.measuring.measure_here", ending)
    with pytest.raises(PflsynthError, match=rf"{what}; .* take a smaller image\.size, model\.width or"):
        measure(tiny.config, "north")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there_is_told_of(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="GPUs on this machine"):
        measure(tiny.config.model_copy(update={"device": "cuda:9"}), "north")


def test_the_stand_in_is_taken_for_the_sites_own_data(tiny: Tiny, tmp_path: Path) -> None:
    write_stand_in(tiny.config, "north", tmp_path / "north", STEPS * 4)
    store = SliceStore(tmp_path / "north")
    store.verify()
    site = Site(tiny.config, "north", {"north": store}, tmp_path / "state")
    assert site.steps_per_round == STEPS
    images = store.slices("stand-in-1", "FLAIR")
    assert images.shape == (16, 32, 32)
    assert -1 <= images.min() < -0.9 < 0.9 < images.max() <= 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.84 s"), (119, "119 s"), (720, "12 min"), (12_240, "3.4 h"), (216_000, "2.5 days"), (1e8, "1157 days")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
