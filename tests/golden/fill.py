"""The rules of README.md: weights and images as functions of a number, and digests of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def read_digests(network: str) -> dict[str, Any]:
    """Return the entry of a network in state_dicts.json: {official key: [shape, mean, sum of |values|]}."""
    entry: dict[str, Any] = json.loads((HERE / "state_dicts.json").read_text())[network]
    return entry


def read_arrays(name: str) -> dict[str, torch.Tensor]:
    """Return the arrays of an .npz file as tensors."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def fill(network: str, salt: int = 0) -> dict[str, torch.Tensor]:
    """Return the filled state dict of a network under its official names, in float32."""
    return {
        key: _fill_tensor(key, shape, number + salt)
        for number, (key, (shape, _, _)) in enumerate(read_digests(network).items())
    }


def _fill_tensor(key: str, shape: list[int], seed: int) -> torch.Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    w = np.random.RandomState(seed).standard_normal(size=shape)
    if key.endswith("running_mean"):
        w = 0.1 * w
    elif key.endswith("running_var"):
        w = 0.5 + w**2
    elif key.endswith("bias"):
        w = (10.0 if key.startswith("mapper.") else 0.05) * w
    elif w.ndim == 1:
        w = 1.0 + 0.2 * w
    elif key.startswith("mapper."):
        w = 100.0 * w
    elif "style_mod" not in key:
        w = w / np.sqrt(w[0].size)
    return torch.from_numpy(w.astype(np.float32))


def img(k: int, size: int, n: int = 1) -> torch.Tensor:
    """Return n smooth test images (n, 1, size, size) in [-1, 1], float32."""
    yy, xx = np.mgrid[0:size, 0:size] / size
    images = [
        np.tanh(1.5 * np.sin(5 * (k + i + 1) * xx + 2 * yy * (i + 1)) + np.cos(7 * yy * (k + 1) - 3 * xx * i))
        for i in range(n)
    ]
    return torch.from_numpy(np.stack(images)[:, None].astype(np.float32))


def check_digests(tensors: Mapping[str, torch.Tensor], digests: Mapping[str, Any]) -> None:
    """Assert that the tensors have the names, shapes and digests given, to the tolerances of README.md."""
    assert set(tensors) == set(digests)
    for key, (shape, mean, total) in digests.items():
        values = tensors[key].double()
        assert list(values.shape) == shape, key
        assert abs(values.abs().sum().item() - total) <= 1e-5 * total, key
        assert abs(values.mean().item() - mean) <= 1e-6 * total / values.numel(), key


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()
