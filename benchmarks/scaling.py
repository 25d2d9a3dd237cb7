"""How a training step grows with resolution, width, residual layers and batch, each by itself.

    python benchmarks/scaling.py [--set threads=1] [--device cpu] [--repetitions 3] [--out scaling.json]

The networks are those of the recipe's first site (the paper's size by default) on slices of noise. Each row changes one
size; seconds a slice are medians of the CPU (on a GPU: of the clock), and GFLOP/s are the step's operations by these.
How it grows with sites and subjects is measured by federation_scale.py, aggregation_scale.py and slice_store.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from step import RECIPE, Row, our_step, timed

from pflsynth.config_files import load_config
from pflsynth.devices import use_device
from pflsynth.federation.operations import counting

CURVES: dict[str, Sequence[int]] = {
    "image.size": (64, 128, 192, 256),
    "model.width": (16, 32, 48, 64),
    "model.residual_layers": (1, 4, 9),
    "training.batch_size": (1, 2, 4, 8),
}
FAMILIES = ("full", "lite")


def row_of(config_file: Path, overrides: list[str], key: str, value: int, repetitions: int) -> dict[str, object]:
    """Measure one point of a curve."""
    config = load_config(config_file, [*overrides, f"{key}={value}"]).federation
    device = use_device(config.device, config.threads)
    batch = config.training.batch_size
    torch.manual_seed(0)
    step = our_step(config, device, Row({}, {}, batch))
    with counting() as counter:
        step()
    kind = 0 if device.type == "cuda" else 1
    seconds = statistics.median(timed(step)[kind] for _ in range(repetitions)) / batch
    gflop = counter.get_total_flops() / 1e9 / batch
    row = {"key": key, "value": value, "family": config.model.family, "gflop": gflop, "seconds_a_slice": seconds}
    return row | {"gflops": gflop / seconds}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = [*options.overrides, f"device={options.device}"]
    rows = []
    print("| key | value | family | GFLOP a slice | s a slice | GFLOP/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key, values in CURVES.items():
        for family in FAMILIES:
            for value in values:
                row = row_of(options.config, [*shared, f"model.family={family}"], key, value, options.repetitions)
                rows.append(row)
                numbers = " | ".join(f"{row[name]:.3g}" for name in ("gflop", "seconds_a_slice", "gflops"))
                print(f"| {key} | {value} | {family} | {numbers} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
