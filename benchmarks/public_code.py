"""What faults of the public code cost, each put into the evaluation of the same trained models.

    pflsynth compare recipes/phantom-variable.toml --methods pflsynth,fedbn --set model.dropout=0.5 --out work/faults
    python benchmarks/public_code.py --run work/faults/runs/pflsynth/seed-0 --fedbn work/faults/runs/fedbn/seed-0

Mean PSNR and SSIM of the test subjects over the whole slice, averaged over a site and task's subjects, then over sites
and tasks. The faults: models in training mode (dropout on, each slice normalised by itself); the first site's model
saved for every site; FedBN with the first site's batch norm everywhere; slices scaled one by one to 8 bit, enlarged by
286/256 and cropped at random; PSNR over each image's own maximum, also of outputs of half the brightness.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from skimage.transform import resize
from unfolded import slice_by_slice

from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.metrics import psnr, ssim, to_unit
from pflsynth.federation.batch_norm import batch_norms
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.runs import RunDirectory

Models = Mapping[str, PersonalisedModel]
Image = np.ndarray
Change = Callable[[Image, Image, np.random.Generator], tuple[Image, Image]]
Compare = Callable[[Image, Image], tuple[float, float]]


def ours(target: Image, output: Image) -> tuple[float, float]:
    """PSNR and SSIM of one slice, as ``pflsynth evaluate`` has them."""
    return psnr(target, output), ssim(target, output)


def own_maximum(target: Image, output: Image) -> tuple[float, float]:
    """The same after each image is divided by its own maximum, as in the public code."""
    return ours(target / (target.max() or 1), output / (output.max() or 1))


def unchanged(source: Image, target: Image, _: np.random.Generator) -> tuple[Image, Image]:
    """The slices as they are."""
    return source, target


def as_png(source: Image, target: Image, random: np.random.Generator) -> tuple[Image, Image]:
    """Each slice over its own maximum in 8 bit; both enlarged by 286/256 and cropped at one random place."""
    size = source.shape[-1]
    large = round(size * 286 / 256)
    top, left = random.integers(0, large - size + 1, 2)

    def one(image: Image) -> Image:
        unit = to_unit(image)
        bytes_ = np.rint(255 * unit / (unit.max() or 1)) / 255
        crop = resize(bytes_, (large, large), order=3)[top : top + size, left : left + size]
        return (2 * np.clip(crop, 0, 1) - 1).astype(np.float32)

    pairs = [(one(own), one(other)) for own, other in zip(source, target, strict=True)]
    return np.stack([own for own, _ in pairs]), np.stack([other for _, other in pairs])


def score(
    models: Models, prepared: Path, change: Change = unchanged, compare: Compare = ours, gain: float = 1.0
) -> dict[str, float]:
    """Mean PSNR and SSIM over sites and tasks of the means over their test subjects."""
    random, means = np.random.default_rng(0), []
    torch.manual_seed(0)  # dropout, where it is on
    for site, model in models.items():
        store = SliceStore(prepared / site)
        for task in model.config.sites[site].tasks:
            people = []
            for subject in (own for own in store.subjects("test") if own.serves(task)):
                shown = store.mask(subject.name).any(axis=(1, 2))
                pair = (store.slices(subject.name, contrast)[shown] for contrast in (task.source, task.target))
                source, target = change(*pair, random)
                output = gain * to_unit(model.synthesize(source, task))
                slices = [compare(*images) for images in zip(to_unit(target), output, strict=True)]
                people.append(np.mean(slices, axis=0))
            means.append(np.mean(people, axis=0))
    values = np.mean(means, axis=0)
    return {"psnr": float(values[0]), "ssim": float(values[1])}


def opened(run: Path) -> dict[str, PersonalisedModel]:
    """Every site's personalised model."""
    _, config = RunDirectory.open(run)
    return {site: open_personalised(run, site) for site in config.participants}


def training_mode(models: Models) -> Models:
    """The models with dropout on and batch statistics, at batch 1 as in the public code."""
    trained = {site: replace(own, generator=deepcopy(own.generator).train()) for site, own in models.items()}
    return {site: slice_by_slice(own) for site, own in trained.items()}


def first_everywhere(models: Models) -> Models:
    """The first site's generator at every site, with the site's own code."""
    first = next(iter(models.values())).generator
    return {site: replace(own, generator=first) for site, own in models.items()}


def first_batch_norm(models: Models) -> Models:
    """The first site's batch norm, affine and statistics, at every site."""
    first = [norm.state_dict() for norm in batch_norms(next(iter(models.values())).generator)]
    changed = {site: replace(own, generator=deepcopy(own.generator)) for site, own in models.items()}
    for own in changed.values():
        for norm, state in zip(batch_norms(own.generator), first, strict=True):
            norm.load_state_dict(state)
    return changed


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--fedbn", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    prepared = Path(RunDirectory(options.run).local()["prepared"])
    models, fedbn = opened(options.run), opened(options.fedbn)
    right, right_fedbn = score(models, prepared), score(fedbn, prepared)
    rows: list[tuple[str, dict[str, float], dict[str, float]]] = [
        ("training mode (dropout on, each slice normalised by itself)", score(training_mode(models), prepared), right),
        ("the first site's model at every site", score(first_everywhere(models), prepared), right),
        ("FedBN, the first site's batch norm at every site", score(first_batch_norm(fedbn), prepared), right_fedbn),
        ("8-bit slices scaled one by one, enlarged, cropped at random", score(models, prepared, as_png), right),
        ("each image over its own maximum", score(models, prepared, compare=own_maximum), right),
        ("output of half the brightness, our scores", score(models, prepared, gain=0.5), right),
        (
            "output of half the brightness, each image over its own maximum",
            score(models, prepared, compare=own_maximum, gain=0.5),
            score(models, prepared, compare=own_maximum),
        ),
    ]
    print("| in the evaluation | PSNR dB | without | change | SSIM | without | change |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, found, base in rows:
        cells = [f"{found['psnr']:.2f}", f"{base['psnr']:.2f}", f"{found['psnr'] - base['psnr']:+.2f}"]
        cells += [f"{found['ssim']:.3f}", f"{base['ssim']:.3f}", f"{found['ssim'] - base['ssim']:+.3f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.out is not None:
        lines = [{"fault": name, "with": found, "without": base} for name, found, base in rows]
        options.out.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
