"""Small files of feature networks, in place of published weights: LPIPS on AlexNet, and feature extractors for FID."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.evaluation.feature_metrics import FeatureFiles
from pflsynth.networks.weights import FeatureFile

ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def feature_file(path: Path) -> FeatureFile:
    return FeatureFile(path, hashlib.sha256(path.read_bytes()).hexdigest())


def random_features(shapes: dict[int, tuple[int, int, int]], seed: int) -> dict[str, Tensor]:
    """Weights of convolutions by torchvision's names, of a size that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer, (outputs, inputs, kernel) in shapes.items():
        size = math.sqrt(2 / (inputs * kernel**2))
        weights[f"features.{layer}.weight"] = size * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        weights[f"features.{layer}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return weights


def random_heads(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = [outputs for outputs, _, _ in ALEXNET.values()]
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(channels)}


def slices(count: int, size: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size)).astype(np.float32)


def alexnet_that_can_be_worked_out() -> dict[str, Tensor]:
    """LPIPS that only its first stage decides: two features, 1 and the grey value + 1 at every fourth pixel.

    Of unit length they are (1, g + 1) / sqrt(1 + (g + 1)²): (1, 0) for black, (1, 1) / sqrt(2) for the middle, so black
    and the middle are 2 - sqrt(2) apart.
    """
    weights = {f"features.{layer}.weight": torch.zeros(o, i, k, k) for layer, (o, i, k) in ALEXNET.items()}
    weights |= {f"features.{layer}.bias": torch.zeros(outputs) for layer, (outputs, _, _) in ALEXNET.items()}
    weights["features.0.bias"][:2] = torch.tensor([1.0, 0.97])
    weights["features.0.weight"][1, 0, 5, 5] = 0.458  # undoes the scaling of the first colour, (g + 0.030) / 0.458
    heads = {name: torch.ones_like(head) for name, head in random_heads(0).items()}
    return weights | heads


def lpips_that_can_be_worked_out(folder: Path) -> FeatureFile:
    """A file of :func:`alexnet_that_can_be_worked_out`."""
    path = folder / "lpips.safetensors"
    safetensors.torch.save_file(alexnet_that_can_be_worked_out(), path)
    return feature_file(path)


class Means(nn.Module):
    """A tiny extractor: means of the four quarters and of the whole of the first colour, scaled to [0, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, :1].to(torch.float32) / 255
        quarters = F.adaptive_avg_pool2d(grey, 2).flatten(1)
        return torch.cat((quarters, quarters.mean(1, keepdim=True)), 1)


def scripted(network: nn.Module, path: Path) -> FeatureFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(path)
    return feature_file(path)


def feature_options(files: FeatureFiles) -> list[object]:
    """The options of ``evaluate`` and ``compare`` for these files."""
    words: list[object] = []
    for option, file in (("--lpips", files.lpips), ("--lpips-heads", files.lpips_heads), ("--fid", files.fid)):
        words += [option, file.path, f"{option}-sha256", file.sha256] if file is not None else []
    return words
