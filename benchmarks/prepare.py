"""Time and memory of ``prepare``, and the part that is our own code against nibabel's decoding of the same files.

    python benchmarks/prepare.py recipes/realdata.toml [--set registration.transform=none] [--repeats 3] [--out FILE]

- "end to end": ``pflsynth prepare`` in a process of its own: wall seconds, processor seconds, peak resident memory.
- "decode": ``nibabel.load(file).get_fdata(dtype=float32)`` of every file that ``prepare`` reads, one after the other.
- "reading": the part of ``prepare`` that reads, inflates and hashes the files (``read_nifti``).
- "writing": the part that writes files and flushes them to the disk (``write_atomic``).
- "own code": all of ``prepare`` but reading and writing: converting, turning, checking, masks, scales, resampling,
  hashing what was written, split and manifest.

Decoding and ``prepare`` (one worker, in this process) take turns; each figure is the least of the repeats. Seconds are
told twice: "wall", which is what a user waits, and "processor", which other programs on the machine disturb less and
which leaves out waiting for the disk. The files are in the system's cache.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.data.grid import SliceGrid
from pflsynth.data.head import head_mask
from pflsynth.data.nifti import read_nifti
from pflsynth.data.prepare import prepare_site
from pflsynth.data.scan import scan_site
from pflsynth.files import sha256_of_file, write_atomic, write_json

READING, WRITING = read_nifti.__name__, write_atomic.__name__
STEPS = (read_nifti, head_mask, sha256_of_file, write_atomic)
"""Functions whose share of ``prepare`` is told."""


Seconds = npt.NDArray[np.float64]
CLOCKS = ("wall", "processor")


def now() -> Seconds:
    """Both clocks."""
    return np.array([time.perf_counter(), time.process_time()])


@contextmanager
def step_seconds() -> Iterator[dict[str, Seconds]]:
    """Add up the time of the steps, wherever the package calls them."""
    seconds: dict[str, Seconds] = defaultdict(lambda: np.zeros(2))
    undo: list[tuple[Any, str, Any]] = []

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def run(*arguments: Any, **named: Any) -> Any:
            start = now()
            try:
                return step(*arguments, **named)
            finally:
                seconds[name] += now() - start

        return run

    modules = [module for name, module in sys.modules.items() if name.startswith("pflsynth")]
    places = [(module, step.__name__, step) for module in modules for step in STEPS]
    for owner, name, step in (*places, (SliceGrid, "to_slices", SliceGrid.to_slices)):
        if getattr(owner, name, None) is step:
            undo.append((owner, name, step))
            setattr(owner, name, timed(name, step))
    try:
        yield seconds
    finally:
        for owner, name, step in undo:
            setattr(owner, name, step)


def decode_seconds(files: list[Path]) -> tuple[Seconds, int]:
    """nibabel's time for all files, and the number of voxels."""
    start, voxels = now(), 0
    for path in files:
        voxels += nibabel.load(path).get_fdata(dtype=np.float32).size
    return now() - start, voxels


def prepare_seconds(config: FederationConfig) -> dict[str, Seconds]:
    """Time of ``prepare`` in this process, in all and by step."""
    with tempfile.TemporaryDirectory() as folder, step_seconds() as seconds:
        start = now()
        for site in config.site_names:
            prepare_site(config, site, Path(folder) / site)
        total = now() - start
    own = total - seconds[READING] - seconds[WRITING]
    return {"all": total, "own code": own, **dict(sorted(seconds.items()))}


def end_to_end(config: Path, overrides: list[str]) -> dict[str, float]:
    """``pflsynth prepare`` as a user runs it."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pflsynth", "prepare", str(config), "--out", str(Path(folder) / "out"), *sets]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def least(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of each figure; a pair of clocks becomes a dictionary."""
    found = {name: np.min([run[name] for run in runs], axis=0).round(3) for name in runs[0]}
    return {
        name: dict(zip(CLOCKS, value.tolist(), strict=True)) if value.ndim else float(value)
        for name, value in found.items()
    }


def measure(path: Path, overrides: list[str], repeats: int) -> dict[str, Any]:
    """Everything, in one run."""
    config = load_config(path, [*overrides, "workers=1"]).federation
    subjects = [subject for site in config.site_names for subject in scan_site(config, site).subjects]
    files = [file for subject in subjects for file in subject.volumes.values()]
    whole = [end_to_end(path, overrides) for _ in range(repeats)]
    runs: list[dict[str, Any]] = []
    voxels = 0
    for _ in range(repeats):
        seconds, voxels = decode_seconds(files)
        runs.append({"decode": seconds, **prepare_seconds(config)})
    figures = least(runs)
    ratios = {
        clock: {
            "own code / decode": round(figures["own code"][clock] / figures["decode"][clock], 2),
            "(all - decode) / decode": round(figures["all"][clock] / figures["decode"][clock] - 1, 2),
        }
        for clock in CLOCKS
    }
    return {
        "what": "prepare of all sites",
        "config": path.name,
        "set": overrides,
        "subjects": len(subjects),
        "files": len(files),
        "voxels": voxels,
        "end_to_end": least(whole),
        "seconds": figures,
        "ratios": ratios,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    result = measure(options.config, options.overrides or ["registration.transform=none"], options.repeats)
    whole = result["end_to_end"]
    print(
        f"prepare of {result['subjects']} subjects, {result['files']} files: {whole['seconds']:.1f} s end to end "
        f"({whole['processor_seconds']:.1f} s of processor), {whole['peak_mb']:.0f} MB at most"
    )
    for name, seconds in result["seconds"].items():
        print(f"  {name:16s} {seconds['wall']:7.2f} s wall {seconds['processor']:7.2f} s processor")
    for clock, ratios in result["ratios"].items():
        print(f"{clock}: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
