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

from pflsynth.data.manifest import Manifest, Placement, PreparedSubject, SiteIntensity, VolumeRecord
from pflsynth.data.slices import SliceStore
from pflsynth.files import save_tensors, sha256_of_file, write_json

BATCH = 4
PAIR = ("T1w", "T2w")


def write_prepared(
    folder: Path,
    subjects: int,
    slices: int,
    size: int,
    site: str = "benchmark",
    settings: dict[str, object] | None = None,
) -> None:
    """Write a folder such as ``prepare`` makes, of a site and with the settings of an agreement."""
    entries = []
    random = np.random.default_rng(0)
    for number in range(subjects):
        name = f"sub-{number:04d}"
        path = folder / f"{name}.safetensors"
        tensors = {contrast: random.random((slices, size, size), dtype=np.float32) for contrast in PAIR}
        mask = np.ones((slices, size, size), np.uint8)
        save_tensors(path, {**tensors, "mask": mask}, {}, kind="subject")
        placement = Placement(step="untouched", reason="made here")
        volume = VolumeRecord(source="x", source_sha256="x", voxels_sha256="x", placement=placement, statistics=(0, 1))
        entries.append(
            PreparedSubject(
                name=name,
                person=name,
                split="train",
                file=path.name,
                sha256=sha256_of_file(path),
                bytes=path.stat().st_size,
                slices=tuple(range(slices)),
                shape=(size, size, slices),
                affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
                spacing_mm=(1, 1, 1),
                contrasts=dict.fromkeys(PAIR, volume),
            )
        )
    manifest = Manifest(
        pflsynth="benchmark",
        site=site,
        settings=settings or {"image": {"size": size}},
        tasks=(),
        split_source="fractions",
        splits_sha256=None,
        notes=(),
        skipped={},
        intensity=SiteIntensity(normalizer="percentile", contrasts={}),
        subjects=tuple(entries),
    )
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


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
    with tempfile.TemporaryDirectory() as folder:
        write_prepared(Path(folder), subjects, slices, size)
        store = SliceStore(Path(folder))
        names = [subject.name for subject in store.manifest.subjects]

        def from_store(pair: int, row: np.ndarray) -> None:
            subject, index = divmod(pair, slices)
            for side, contrast in enumerate(PAIR):
                row[side] = store.slices(names[subject], contrast)[index]

        in_memory = np.random.default_rng(0).random((subjects * slices, 2, size, size), dtype=np.float32)

        def from_memory(pair: int, row: np.ndarray) -> None:
            row[:] = in_memory[pair]

        for name in names:
            store.mask(name), store.slices(name, PAIR[0]).sum(), store.slices(name, PAIR[1]).sum()
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
