"""Measure a short training of a configuration on this machine, in a process of its own.

It is a real training of one site, files and all, over a few slices of noise: two rounds, of which the first warms up.
So what is measured is what a training does, and its peak of memory is that of a training.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pflsynth.config import FederationConfig
from pflsynth.data.stand_in import write_stand_in
from pflsynth.devices import peak_memory_mb
from pflsynth.errors import PflsynthError
from pflsynth.federation.methods import CENTRAL, method_of
from pflsynth.training import train
from pflsynth.workers import begin_worker

STEPS = 4
"""Steps of a measured round, of a site."""


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        step_seconds: of one training step, data feed included.
        other_seconds: of what else a site does in a round: it builds its networks, reads and writes its state, sends.
        memory_mb: peak resident memory of the process (2**20 bytes).
        device_memory_mb: the same on the GPU, as torch allocated it; ``None`` on a CPU.
        threads: seconds of a step by number of CPU threads; only the configured number on a GPU.
    """

    step_seconds: float
    other_seconds: float
    memory_mb: float
    device_memory_mb: float | None
    threads: Mapping[int, float]


def measure(config: FederationConfig, trainer: str, threads: Sequence[int] = ()) -> Measured:
    """Measure in a new process, so that nothing of this one is in the figures.

    Args:
        config: the federation.
        trainer: who trains: a site, or ``CENTRAL``.
        threads: numbers of CPU threads to measure a step with, besides the configured one.

    Raises:
        UsageError: the device is not there.
        ModelError: a file of weights that the method needs is missing or another.
        PflsynthError: the GPU's memory is too small, or the process was ended from outside, as for want of memory.
    """
    with TemporaryDirectory(prefix="pflsynth-") as folder:  # made here: a process that is killed cleans up nothing
        return _apart(config, trainer, tuple(threads), Path(folder))


def _apart(config: FederationConfig, trainer: str, threads: tuple[int, ...], folder: Path) -> Measured:
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin_worker)
    try:
        return pool.submit(measure_here, config, trainer, threads, folder).result()
    except (BrokenProcessPool, torch.OutOfMemoryError) as failure:
        what = (
            "ran out of the GPU's memory" if isinstance(failure, torch.OutOfMemoryError) else "was ended from outside"
        )
        raise PflsynthError(
            f"the process that measured a training step {what}; a training most likely needs more memory than there "
            "is: take a smaller image.size, model.width or training.batch_size"
        ) from None
    except BaseException:  # Ctrl-C: do not wait for its end
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def measure_here(config: FederationConfig, trainer: str, threads: Sequence[int], folder: Path) -> Measured:
    """As :func:`measure`, in this process, whose memory so far counts, and in an empty folder."""
    short = _short(config, trainer)
    for site in short.participants:
        write_stand_in(short, site, folder / "prepared" / site, STEPS * config.training.batch_size)
    step, other = _timed(short, folder, "run")
    memory = peak_memory_mb()
    on_gpu = torch.device(config.device).type == "cuda"
    device_memory = torch.cuda.max_memory_allocated(config.device) / 2**20 if on_gpu else None
    by_threads = {config.threads: step}
    for number in threads:
        if not on_gpu and number not in by_threads:
            other_number = short.model_copy(update={"threads": number, "rounds": 1})
            by_threads[number], _ = _timed(other_number, folder, f"threads-{number}")
    return Measured(step, other, memory, device_memory, dict(sorted(by_threads.items())))


def thread_counts() -> list[int]:
    """Numbers of threads that are worth a try: 1, 2, 4, ... and all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})


def _short(config: FederationConfig, trainer: str) -> FederationConfig:
    """The configuration with two short rounds of one trainer; code and networks are as large as before."""
    training = {"local_epochs": 1, "validate_every": 0, "select": "last", "keep_every": 0}
    changes: dict[str, object] = {"rounds": 2, "quorum": None, "training": config.training.model_copy(update=training)}
    if trainer != CENTRAL:
        changes["held_out"] = tuple(site for site in config.site_names if site != trainer)
    return config.model_copy(update=changes)


def _timed(config: FederationConfig, folder: Path, run: str) -> tuple[float, float]:
    """Seconds of a step, and of all else, in the last round of a training."""
    clock = _Clock(config.device)
    train(config, folder / "prepared", folder / run, clock)
    step = statistics.fmean(later - earlier for earlier, later in pairwise(clock.steps))
    return step, max(0.0, clock.ended - clock.began - step * len(clock.steps))


class _Clock:
    """Notes when the last round began, when each of its steps was done, and when it was whole."""

    def __init__(self, device: str):
        self._device = torch.device(device)
        self.began = self.ended = 0.0
        self.steps: list[float] = []

    def on_site(self, round_number: int, site: str, steps: int) -> None:
        """The one trainer begins."""
        self.began, self.steps = time.perf_counter(), []

    def on_step(self, done: int, steps: int) -> None:
        """A step was done; on a GPU it is waited for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.steps.append(time.perf_counter())

    def on_round(self, record: Mapping[str, object]) -> None:
        """The round is whole."""
        self.ended = time.perf_counter()


def busiest(config: FederationConfig) -> str:
    """The trainer whose steps cost most: the one with the most tasks, for each has a discriminator of its own."""
    trainers = method_of(config).trainers(config)
    return max(trainers, key=lambda name: 0 if name == CENTRAL else len(config.sites[name].tasks))
