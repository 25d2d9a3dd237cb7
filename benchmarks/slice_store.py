"""Slice pairs a second that the slice store delivers into batches, beside plain copies of arrays in memory.

    python benchmarks/slice_store.py [--subjects 64] [--size 256] [--seconds 3] [--out slice_store.json]

Writes prepared subjects of random values into a temporary folder, then copies slice pairs in random order into a
batch of 4, as training does. The files are in the system's cache, as they are from the second epoch on.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pflsynth.config_files import load_config
from pflsynth.data.slices import SliceStore
from pflsynth.data.stand_in import write_stand_in
from pflsynth.files import write_json

RECIPE = Path(__file__).parents[1] / "recipes" / "paper-variable.toml"
BATCH = 4


def pairs_per_second(copy_pair: Callable[[int, np.ndarray], None], pairs: int, size: int, seconds: float) -> float:
    """Copy random pairs into a batch for about ``seconds``."""
    batch = np.empty((BATCH, 2, size, size), np.float32)
    random = np.random.default_rng(0)
    copied, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for row, pair in enumerate(random.integers(0, pairs, BATCH)):
            copy_pair(int(pair), batch[row])
        copied += BATCH
    return copied / (time.perf_counter() - start)


def measure(subjects: int, slices: int, size: int, seconds: float) -> dict[str, object]:
    """Both rates and their ratio."""
    config = load_config(RECIPE, [f"image.size={size}"]).federation
    site = config.site_names[0]
    task = config.sites[site].tasks[0]
    pair = (task.source, task.target)
    with tempfile.TemporaryDirectory() as folder:
        write_stand_in(config, site, Path(folder) / site, slices, subjects)
        store = SliceStore(Path(folder) / site)
        names = [subject.name for subject in store.manifest.subjects]

        def from_store(number: int, row: np.ndarray) -> None:
            subject, index = divmod(number, slices)
            for side, contrast in enumerate(pair):
                row[side] = store.slices(names[subject], contrast)[index]

        in_memory = np.random.default_rng(0).random((subjects * slices, 2, size, size), dtype=np.float32)

        def from_memory(number: int, row: np.ndarray) -> None:
            row[:] = in_memory[number]

        for name in names:
            store.mask(name), store.slices(name, pair[0]).sum(), store.slices(name, pair[1]).sum()
        pairs = subjects * slices
        stored = pairs_per_second(from_store, pairs, size, seconds)
        copied = pairs_per_second(from_memory, pairs, size, seconds)
    return {
        "what": "slice pairs a second copied into a batch",
        "subjects": subjects,
        "slices": slices,
        "size": size,
        "store_pairs_per_second": round(stored),
        "memory_pairs_per_second": round(copied),
        "ratio": round(stored / copied, 3),
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=64, help="more than the store keeps open (32)")
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = measure(arguments.subjects, arguments.slices, arguments.size, arguments.seconds)
    print(
        f"{result['store_pairs_per_second']} slice pairs a second at {arguments.size} x {arguments.size} "
        f"({arguments.subjects} subjects); {result['memory_pairs_per_second']} from arrays in memory, "
        f"ratio {result['ratio']}"
    )
    if arguments.out is not None:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
