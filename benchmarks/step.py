"""The training step against a plain eager float32 loop of the same networks at batch 1, and what each option does.

    python benchmarks/step.py [--repetitions 5] [--set threads=1] [--public-code PATH] [--memory] [--out step.json]

The networks are those of the recipe's first site (the paper's size by default) as the seed makes them, on slices of
noise. The plain loop has the same weights in torch's default memory format, the formulas one after another (instance
norm, affine function, gate), and Adam as torch has it. Rows alternate, so ratios are of one run; seconds of the clock
and of the CPU are medians, and ratios above 1 are faster than the plain loop. "slices" tells how many a step has.

Data feed and bookkeeping: a round of ``Site`` whose steps do nothing, as a share of pflsynth's step; the bar is 3 %.
The machine's ceilings, by a large matrix multiplication and a large copy, are printed beside the rate of the step.
``--public-code`` is a copy of icon-lab/pFLSynth; ``--memory`` runs each row in a process of its own for its peak.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.data.slices import SliceStore
from pflsynth.data.stand_in import write_stand_in
from pflsynth.devices import peak_memory_mb, use_device
from pflsynth.federation.batches import Batch
from pflsynth.federation.machine import check_machine, set_up
from pflsynth.federation.method import LocalRound, SiteNetworks, StepLosses
from pflsynth.federation.methods import method_of, task_code
from pflsynth.federation.operations import counting
from pflsynth.federation.sharing import Partition
from pflsynth.federation.site import Site
from pflsynth.federation.step import make_optimizers
from pflsynth.networks.compiling import can_compile

RECIPE = Path(__file__).parents[1] / "recipes" / "paper-variable.toml"
PLAIN = "plain eager loop"
OURS = "pflsynth"
PUBLIC = "public code's networks"
FAST_ROW = "pflsynth, 16 slices, bfloat16 and compile"
Step = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """A kind of step: what it changes of the agreement, and the slices of a step."""

    training: dict[str, object]
    local: dict[str, object]
    slices: int = 1


ROWS = {
    PLAIN: Row({}, {}),
    OURS: Row({}, {}),
    "pflsynth, 4 slices": Row({"batch_size": 4}, {}, 4),
    "pflsynth, checkpoint_activations": Row({}, {"checkpoint_activations": True}),
    "pflsynth, bfloat16": Row({"precision": "bfloat16"}, {}),
    "pflsynth, compile": Row({}, {"compile": True}),
    "pflsynth, bfloat16 and compile": Row({"precision": "bfloat16"}, {"compile": True}),
    FAST_ROW: Row({"precision": "bfloat16", "batch_size": 16}, {"compile": True}, 16),
}
ON_A_GPU = (FAST_ROW,)
"""Rows that a CPU measures only if they are named."""


def noise(config: FederationConfig, device: torch.device, slices: int) -> Batch:
    """A batch of noise, the site's first tasks in turn."""
    images = torch.rand(2, slices, 1, config.image.size, config.image.size) * 2 - 1
    tasks = torch.arange(slices) % len(config.sites[config.site_names[0]].tasks)
    return Batch(images[0], images[1], tasks).to(device)


def our_step(config: FederationConfig, device: torch.device, row: Row) -> Step:
    """The step of pflsynth with a row's options."""
    config = config.model_copy(update={"training": config.training.model_copy(update=row.training), **row.local})
    check_machine(config, device)
    name, method = config.site_names[0], method_of(config)
    networks = method.networks(config, name).train().to(device, memory_format=torch.channels_last)
    set_up(networks, config, device)
    optimizers = make_optimizers(networks, config.training)
    tasks = config.sites[name].tasks
    codes = torch.stack([task_code(config, name, task) for task in tasks]).to(device)
    local = LocalRound(config, tasks, codes, codes, Partition((), ()), {}, {}, 1, 1)
    batch = noise(config, device, row.slices)
    return lambda: float(method.step(networks, optimizers, batch, local, 0).means["l1"][str(tasks[0])])


def plain_generator(generator: nn.Module, image: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """The personalised generator, formula by formula."""
    latent, features = generator.mapper(code), image
    for number, stage in generator.stages.items():
        features = stage(features)
        if number in generator.personalization:
            block = generator.personalization[number]
            deviations, means = block.adain.statistics(latent)
            features = functional.instance_norm(features) * deviations[:, :, None, None] + means[:, :, None, None]
            features = features * block.adacw.gates(latent)[:, :, None, None]
    return features


def plain_step(config: FederationConfig, device: torch.device) -> Step:
    """The plain loop on pflsynth's networks."""
    name = config.site_names[0]
    networks: SiteNetworks = method_of(config).networks(config, name).train().to(device)
    code = task_code(config, name, config.sites[name].tasks[0])[None].to(device)
    generator = networks.generator
    discriminator = next(iter(networks.discriminators.values()))
    return bare_step(
        config,
        noise(config, device, 1),
        (generator, discriminator),
        lambda image: plain_generator(generator, image, code),
        discriminator,
    )


def public_step(config: FederationConfig, device: torch.device, folder: Path) -> Step:
    """The plain loop on the networks of the public code; its discriminator prints, which is silenced."""
    path = folder / "models" / "networks.py"
    spec = importlib.util.spec_from_file_location("public_networks", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--public-code {folder}: has no models/networks.py; give a copy of icon-lab/pFLSynth")
    public = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    width = config.model.width
    with contextlib.redirect_stdout(io.StringIO()):
        generator = public.define_G(
            1, 1, width, "personalized_generator", use_dropout=True, n_clients=4, mapping_layers=6
        ).to(device)
        discriminator = public.define_D(2, width, "basic").to(device)
    code = torch.zeros(1, 12, device=device)
    code[0, [0, 4, 9]] = 1.0

    def judge(source: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            return discriminator(torch.cat((source, image), dim=1))

    batch = noise(config, device, 1)
    return bare_step(config, batch, (generator, discriminator), lambda image: generator(image, code), judge)


def bare_step(
    config: FederationConfig,
    batch: Batch,
    modules: tuple[nn.Module, nn.Module],
    translate: Callable[[torch.Tensor], torch.Tensor],
    judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Step:
    """A plain step of generator and discriminator on tensors that are there."""
    discriminator = modules[1]
    rate, betas = config.training.learning_rate, config.training.betas
    of_generator, of_discriminator = (torch.optim.Adam(own.parameters(), lr=rate, betas=betas) for own in modules)

    def step() -> None:
        fake = translate(batch.source)
        discriminator.requires_grad_(True)
        wrong, right = judge(batch.source, fake.detach()), judge(batch.source, batch.target)
        loss = 0.5 * (wrong.square().mean() + (right - 1).square().mean())
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()
        discriminator.requires_grad_(False)
        l1 = functional.l1_loss(fake, batch.target)
        loss = config.training.l1_weight * l1 + (judge(batch.source, fake) - 1).square().mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        l1.item()  # waits for a GPU

    return step


def make(name: str, config: FederationConfig, device: torch.device, public: Path | None) -> Step:
    """The step of a row."""
    torch.manual_seed(0)
    if name == PLAIN:
        return plain_step(config, device)
    if name == PUBLIC:
        assert public is not None
        return public_step(config, device, public)
    return our_step(config, device, ROWS[name])


def timed(step: Step) -> tuple[float, float]:
    """Seconds of the clock and of the CPU."""
    started, used = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started, time.process_time() - used


def feed(config: FederationConfig) -> tuple[float, float]:
    """Seconds that data feed and bookkeeping of ``Site`` take for a step: the median of a round that does nothing."""
    name = config.site_names[0]
    with tempfile.TemporaryDirectory() as folder:
        write_stand_in(config, name, Path(folder) / name, 16, subjects=4)
        private = Path(folder) / "private"
        private.mkdir()
        site = Site(config, name, {name: SliceStore(Path(folder) / name)}, private)
        site._method = replace(site._method, step=lambda networks, optimizers, batch, local, index: StepLosses({}))
        shared = method_of(config).initial_shared(config, name)
        marks: list[tuple[float, float]] = []
        site.train_round(shared, 1, 0, lambda done, steps: marks.append((time.perf_counter(), time.process_time())))
    kinds = zip(*[(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)], strict=True)
    clock, cpu = (statistics.median(kind) for kind in kinds)
    return clock, cpu


def ceilings(device: torch.device) -> dict[str, float]:
    """What the machine can do: float32 multiplications of matrices (GFLOP/s) and copies (GB/s), by seconds of the CPU.

    On a GPU, by seconds of the clock.
    """
    size = 2048
    one, other = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    large = torch.rand(2**25, device=device)
    into = torch.empty_like(large)
    kind = 0 if device.type == "cuda" else 1
    multiply = min(timed(lambda: float((one @ other)[0, 0]))[kind] for _ in range(4))
    copy = min(timed(lambda: float(into.copy_(large)[0]))[kind] for _ in range(4))
    return {"matrix_gflops": 2 * size**3 / multiply / 1e9, "copy_gb_per_second": 2 * large.nbytes / copy / 1e9}


def peak_megabytes(name: str) -> float:
    """Peak memory of a process that does two steps of a row and nothing else."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def only(step: Step, device: torch.device) -> None:
    """Do two steps and print the peak memory in MB: of the process, or of the GPU."""
    step(), step()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated(device) / 1e6)
    else:
        print(peak_memory_mb() * 2**20 / 1e6)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help="default: all that fit the device")
    parser.add_argument("--public-code", type=Path, help="a copy of icon-lab/pFLSynth")
    parser.add_argument("--memory", action="store_true", help="peak memory of each row too")
    parser.add_argument("--only", choices=[*ROWS, PUBLIC], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = load_config(options.config, [*options.overrides, f"device={options.device}"]).federation
    device = use_device(config.device, config.threads)
    if options.only:
        return only(make(options.only, config, device, options.public_code), device)
    default = [name for name in ROWS if device.type == "cuda" or name not in ON_A_GPU]
    names = [
        name
        for name in dict.fromkeys([PLAIN, OURS, *(options.rows or default)])
        if "compile" not in name or can_compile(device.type)
    ]
    names += [PUBLIC] if options.public_code else []
    slices = {name: ROWS[name].slices if name in ROWS else 1 for name in names}
    steps = {name: make(name, config, device, options.public_code) for name in names}
    for step in steps.values():
        step()  # warm, and compiled
    with counting() as counter:
        make(OURS, config, device, None)()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(options.repetitions):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    steps.clear()
    rows = {}
    for name, own in seconds.items():
        clock, cpu = (statistics.median(kind) / slices[name] for kind in zip(*own, strict=True))
        rows[name] = {"slices": slices[name], "seconds_a_slice": clock, "cpu_seconds_a_slice": cpu}
    for own in rows.values():
        for kind in ("seconds_a_slice", "cpu_seconds_a_slice"):
            own[f"ratio_{kind}"] = rows[PLAIN][kind] / own[kind]
    if options.memory:
        for name, own in rows.items():
            own["peak_mb"] = peak_megabytes(name)
    limits, (feed_clock, feed_cpu) = ceilings(device), feed(config)
    kind = "seconds_a_slice" if device.type == "cuda" else "cpu_seconds_a_slice"
    flops = counter.get_total_flops() / 1e9
    facts = {
        "size": config.image.size,
        "width": config.model.width,
        "threads": config.threads,
        "device": str(device),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "repetitions": options.repetitions,
        "gflop_a_step": flops,
        "gflops_of_the_step": flops / rows[OURS][kind],
        **limits,
        "feed_seconds": feed_clock,
        "feed_share": feed_clock / rows[OURS]["seconds_a_slice"],
        "feed_share_of_cpu_seconds": feed_cpu / rows[OURS]["cpu_seconds_a_slice"],
    }
    print(
        "\n".join(
            f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}" for key, value in facts.items()
        )
    )
    print("| row | s a slice | CPU s a slice | ratio | ratio of CPU s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, own in rows.items():
        cells = [f"{own['seconds_a_slice']:.3f}", f"{own['cpu_seconds_a_slice']:.3f}"]
        cells += [f"{own['ratio_seconds_a_slice']:.2f}", f"{own['ratio_cpu_seconds_a_slice']:.2f}"]
        cells.append(f"{own['peak_mb']:.0f}" if "peak_mb" in own else "–")
        print(f"| {name} | {' | '.join(cells)} |")
    if options.out:
        options.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
