"""Synthesis of a volume, file to file, against a plain eager forward of the same network on the same slices.

    python benchmarks/synthesis.py --volume sub-01_T1w.nii.gz --slices 4 [--out synthesis.json]

The network is that of the recipe (the paper's size by default), as the seed makes it, with batch norm settled on one
slice. Of the volume, ``--slices`` slices around its middle are cut into a file of their own; without ``--volume``, a
head of noise takes its place. All rows are measured in alternating repetitions, on the same slices, so that their
ratios are of one run; seconds of the clock and of the CPU are medians. The plain forward is the faster of two: one
slice at a time, or batches of 16. Ratios above 1 are faster than it; the bar of "file to file" is 1.0. The difference
is the largest one to the plain forward, on outputs in [-1, 1]. ONNX Runtime and OpenVINO have rows if installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch

from pflsynth.config_files import load_config
from pflsynth.data.manifest import ContrastIntensity, SiteIntensity
from pflsynth.data.normalizers import NORMALIZERS, measure_volume
from pflsynth.data.scaling import find_head
from pflsynth.data.volumes import load_volume
from pflsynth.devices import use_device
from pflsynth.federation.batch_norm import reestimate_batch_norm
from pflsynth.federation.methods import method_of, task_code
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.synthesis.export import INPUT, export_onnx, open_onnx
from pflsynth.synthesis.synthesize import synthesize_file
from pflsynth.synthesis.volume import see_volume

RECIPE = Path(__file__).parents[1] / "recipes" / "paper-variable.toml"
Row = Callable[[], np.ndarray | None]


def cut(volume: Path | None, slices: int, out: Path) -> dict[str, object]:
    """Write the slices of a volume around the middle of its head; return what is known of the whole."""
    if volume is None:
        x, y = np.meshgrid(np.linspace(-1.2, 1.2, 240), np.linspace(-1.2, 1.2, 240), indexing="ij")
        plane = np.where(x**2 + y**2 < 1, 100, 0)[:, :, None]
        data = plane * np.random.default_rng(0).uniform(0.5, 1.5, (240, 240, slices))
        nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), np.eye(4)), out)
        return {"volume": "a head of noise", "shape": list(data.shape)}
    shown = np.flatnonzero(find_head(load_volume(volume, "").data, "").mask.any(axis=(0, 1)))
    image = nibabel.as_closest_canonical(nibabel.load(volume))
    first = max(0, int(shown[len(shown) // 2]) - slices // 2)
    nibabel.save(image.slicer[:, :, first : first + slices], out)
    return {"volume": volume.name, "shape": list(image.shape), "slices_with_head": len(shown)}


def model_of(recipe: Path, overrides: list[str], device: str, path: Path) -> PersonalisedModel:
    """The model of the recipe's first site, with intensities measured on the volume itself."""
    config = load_config(recipe, [*overrides, f"device={device}"]).federation
    name, normalizer = config.site_names[0], NORMALIZERS[config.intensity.normalizer]
    measured, _ = measure_volume(load_volume(path, "").data, config.intensity.normalizer, "")
    own = ContrastIntensity(reference=normalizer.fit([measured]) if normalizer.fit else (), typical=measured)
    intensity = SiteIntensity(normalizer=config.intensity.normalizer, contrasts=dict.fromkeys(config.contrasts, own))
    generator = method_of(config).generator(config, name).to(use_device(device, config.threads)).eval()
    return PersonalisedModel(config, name, 0, generator, intensity, "")


def rows_of(model: PersonalisedModel, path: Path, folder: Path) -> tuple[dict[str, Row], int]:
    """What is measured, by name, and the number of slices that the network sees."""
    task = model.config.sites[model.site].tasks[0]
    code = task_code(model.config, model.site, task).to(model.device)
    slices = see_volume(load_volume(path, ""), model, task).slices
    images = torch.from_numpy(slices)[:, None].to(model.device)
    middle = images[len(images) // 2, None]
    reestimate_batch_norm(model.generator, [(middle, code[None])])

    def eager(at_once: int) -> np.ndarray:
        with torch.inference_mode():
            made = [model.generator(own, code.expand(len(own), -1)) for own in images.split(at_once)]
            return torch.cat(made)[:, 0].cpu().numpy()

    def bfloat16(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16):
            return model.network(task)(batch).float()

    half = model.with_network(task, bfloat16)

    def files(other: PersonalisedModel) -> None:
        synthesize_file(path, folder / "out.nii.gz", other, task, force=True)

    rows: dict[str, Row] = {
        "plain forward, one slice at a time": lambda: eager(1),
        "plain forward, batches of 16": lambda: eager(16),
        "inference form": lambda: model.synthesize(slices, task),
        "file to file": lambda: files(model),
        "inference form, bfloat16 autocast": lambda: half.synthesize(slices, task),
    }
    if importlib.util.find_spec("onnxscript") and model.device.type == "cpu":
        exported = folder / "model.onnx"
        export_onnx(model, task, exported)
        networks = {}
        if importlib.util.find_spec("onnxruntime"):
            networks["ONNX Runtime"] = open_onnx(exported, model, task)
        if importlib.util.find_spec("openvino"):
            for precision in ("f32", "bf16"):
                networks[f"OpenVINO {precision}"] = openvino_network(exported, model.config.threads, precision)
        for name, network in networks.items():
            other = model.with_network(task, network)
            rows[name] = lambda other=other: other.synthesize(slices, task)
    return rows, len(slices)


def openvino_network(path: Path, threads: int, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An exported model that OpenVINO runs on the CPU."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: torch.from_numpy(np.array(compiled({INPUT: images.numpy()})[0]))


def measure(rows: dict[str, Row], repetitions: int) -> dict[str, dict[str, float]]:
    """Median seconds of every row, and its largest difference to the first one."""
    clock: dict[str, list[float]] = {name: [] for name in rows}
    cpu: dict[str, list[float]] = {name: [] for name in rows}
    made = {name: row() for name, row in rows.items()}  # and all is warm now
    reference = next(iter(made.values()))
    for _ in range(repetitions):
        for name, row in rows.items():
            started, used = time.perf_counter(), time.process_time()
            row()
            clock[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - used)
    results = {
        name: {"seconds": statistics.median(clock[name]), "cpu_seconds": statistics.median(cpu[name])} for name in rows
    }
    plain = [own for name, own in results.items() if name.startswith("plain")]
    for name, result in results.items():
        for kind in ("seconds", "cpu_seconds"):
            result[f"ratio_{kind}"] = min(own[kind] for own in plain) / result[kind]
        if made[name] is not None:
            result["difference"] = float(np.abs(made[name] - reference).max())
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=Path, help="NIfTI volume; default: a head of noise")
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = cut(options.volume, options.slices, folder / "source.nii.gz")
        model = model_of(options.config, options.overrides, options.device, folder / "source.nii.gz")
        rows, slices = rows_of(model, folder / "source.nii.gz", folder)
        results = measure(rows, options.repetitions)
    config = model.config
    facts = {
        **whole,
        "slices": slices,
        "size": config.image.size,
        "width": config.model.width,
        "threads": config.threads,
        "device": str(model.device),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "repetitions": options.repetitions,
    }
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print("| row | s a slice | CPU s a slice | ratio | ratio of CPU s | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, own in results.items():
        cells = [f"{own['seconds'] / slices:.3f}", f"{own['cpu_seconds'] / slices:.3f}"]
        cells += [f"{own['ratio_seconds']:.2f}", f"{own['ratio_cpu_seconds']:.2f}"]
        cells.append(f"{own['difference']:.1e}" if "difference" in own else "–")
        print(f"| {name} | {' | '.join(cells)} |")
    if options.out:
        options.out.write_text(json.dumps({"facts": facts, "rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
