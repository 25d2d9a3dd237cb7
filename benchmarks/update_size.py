"""Bytes of an update at the paper's size in each encoding, what they lose, and the arithmetic that they take.

    python benchmarks/update_size.py [--config recipes/paper-variable.toml] [--steps 4] [--out update_size.json]

The networks of a site of the configuration take real training steps on random images (``--size`` pixels wide: the
filters, and so the bytes, do not depend on it), and the update is packed as it goes over the wire. Ratios are to the
lossless update of the same run; the bar of int8 is 6.6 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import get_args

import torch

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.config_sections import Encoding
from pflsynth.deployment.messages import pack_update
from pflsynth.federation.aggregate import Update, distance
from pflsynth.federation.batches import Batch
from pflsynth.federation.methods import LocalRound, method_of, task_code
from pflsynth.federation.sharing import shared_tensors
from pflsynth.federation.step import make_optimizers
from pflsynth.federation.update_encoding import Tensors, decode, encode


def train(config: FederationConfig, site: str, steps: int, size: int) -> tuple[Tensors, Tensors]:
    """Shared tensors of a site before and after some training steps."""
    method = method_of(config)
    networks = method.networks(config, site).train()
    partition = method.sharing(config).partition(networks)
    optimizers = make_optimizers(networks, config.training)
    received = shared_tensors(networks, partition)
    tasks = config.sites[site].tasks
    codes, reverse = (
        torch.stack([task_code(config, site, task) for task in own])
        for own in (tasks, [task.reversed for task in tasks])
    )
    local = LocalRound(config, tasks, codes, reverse, partition, received, {}, 1, steps)
    torch.manual_seed(config.seed)
    for index in range(steps):
        source, target = 2 * torch.rand(2, 1, 1, size, size) - 1
        method.step(networks, optimizers, Batch(source, target, torch.tensor([index % len(tasks)])), local, index)
    return received, shared_tensors(networks, partition)


def measure(encoding: Encoding, received: Tensors, trained: Tensors, agreement: str) -> dict[str, float | str]:
    """One line of the table, without ratios."""
    started = time.process_time()
    sent, _ = encode(encoding, trained, received, {})
    encoded = time.process_time()
    decoded = decode(encoding, sent, received)
    seconds = time.process_time() - encoded
    return {
        "encoding": encoding,
        "megabytes": pack_update(Update("site", 1, sent, 1), 0, agreement).size / 1e6,
        "relative_error": distance(decoded, trained) / distance(trained, received),
        "encode_cpu_s": encoded - started,
        "decode_cpu_s": seconds,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("recipes/paper-variable.toml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = load_config(options.config, (*options.overrides, "device=cpu")).federation
    torch.set_num_threads(config.threads)
    received, trained = train(config, config.participants[0], options.steps, options.size)
    lines = [measure(encoding, received, trained, config.agreement_sha256()) for encoding in get_args(Encoding)]
    for line in lines:
        line["ratio"] = line["megabytes"] / lines[0]["megabytes"]
    print("| encoding | MB a site and round | ratio | error, of the change | encode, CPU s | decode, CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        times = f"{line['encode_cpu_s']:.2f} | {line['decode_cpu_s']:.2f}"
        error = f"{100 * line['relative_error']:.2f} %"
        print(f"| {line['encoding']} | {line['megabytes']:.2f} | {line['ratio']:.3f} | {error} | {times} |")
    if options.out is not None:
        numbers = sum(math.prod(tensor.shape) for tensor in received.values())
        content = {"config": str(options.config), "method": config.method, "width": config.model.width}
        options.out.write_text(json.dumps({**content, "numbers": numbers, "encodings": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
