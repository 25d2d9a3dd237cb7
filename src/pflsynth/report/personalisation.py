"""What personalisation did, in numbers: latents of sites and tasks, gates of AdaCW, distances between sites.

Read off the finished personalised generators of one run; without images, so that it works where no data is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pflsynth.federation.methods import task_code
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.personalization import AdaCW
from pflsynth.runs import RunDirectory

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Personalisation:
    """The numbers of one run; sites are those that trained, sorted by name.

    Attributes:
        sites: names of the sites.
        points: (site, task) of every code.
        latents: (points, 2), the first two principal components of the mapper's latents.
        explained: their shares of the variance, in [0, 1]; 0 where all latents are equal.
        gates: for each site, the gates in (0, 1) of each stage ("1", "2", ...), of all its tasks and channels.
        distances: for each private part ("layers 1", "block 1", "mapper", ...) relative L2 distances (sites, sites).
    """

    sites: tuple[str, ...]
    points: tuple[tuple[str, str], ...]
    latents: np.ndarray
    explained: tuple[float, float]
    gates: Mapping[str, Mapping[str, np.ndarray]]
    distances: Mapping[str, np.ndarray]


def personalisation(run: Path) -> Personalisation | None:
    """Read the personalised models of a finished run.

    Args:
        run: its folder.

    Returns:
        The numbers, or ``None`` for a method whose generator has no personalization blocks.

    Raises:
        ModelError: if the run is not finished, or a model is missing or damaged.
    """
    _, config = RunDirectory.open(run)
    latents: dict[tuple[str, str], np.ndarray] = {}
    gates: dict[str, dict[str, np.ndarray]] = {}
    parts: list[Parts] = []
    for site in config.participants:
        model = open_personalised(run, site)
        if not isinstance(model.generator, PersonalizedGenerator):
            return None
        own = _latents(model, model.generator)
        latents |= {(site, task): latent.cpu().numpy() for task, latent in own.items()}
        gates[site] = _gates(model.generator, torch.stack(list(own.values())))
        parts.append(_parts(model.generator))
    coordinates, explained = principal_components(np.stack(list(latents.values())))
    return Personalisation(config.participants, tuple(latents), coordinates, explained, gates, _distances(parts))


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal components of vectors, each turned so that its largest entry is positive.

    Args:
        vectors: (N, D).

    Returns:
        Coordinates (N, 2), zeros where there is no such component, and the components' shares of the variance.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(vectors), 2))
    count = min(2, len(strengths))
    coordinates[:, :count] = left[:, :count] * strengths[:count]
    largest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[largest, (0, 1)] < 0, -1.0, 1.0)
    total = float(np.sum(strengths**2))
    if total <= 1e-12 * float(np.sum(vectors.astype(np.float64) ** 2)):  # equal but for rounding
        return np.zeros_like(coordinates), (0.0, 0.0)
    first, second = (float(np.sum(coordinates[:, axis] ** 2)) / total for axis in (0, 1))
    return coordinates, (first, second)


def relative_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Euclidean distance over the mean of both norms: 0 for equal vectors, 2 for opposite ones, 0 for two zeros."""
    mean = (float(np.linalg.norm(one)) + float(np.linalg.norm(other))) / 2
    return float(np.linalg.norm(one - other)) / mean if mean else 0.0


@torch.inference_mode()
def _latents(model: PersonalisedModel, generator: PersonalizedGenerator) -> dict[str, torch.Tensor]:
    """The mapper's latents (512,) of the site's tasks."""
    device = next(generator.parameters()).device
    return {
        str(task): generator.mapper(task_code(model.config, model.site, task).to(device)[None])[0]
        for task in model.config.sites[model.site].tasks
    }


@torch.inference_mode()
def _gates(generator: PersonalizedGenerator, latents: torch.Tensor) -> dict[str, np.ndarray]:
    """All gates (tasks · channels,) of each stage that has them, for latents (tasks, 512)."""
    gates = {}
    for number, block in generator.personalization.items():
        for layer in block.modules():
            if isinstance(layer, AdaCW):
                gates[number] = layer.gates(latents).flatten().cpu().numpy()
    return gates


def _parts(generator: PersonalizedGenerator) -> Parts:
    """The parameters of each part as one vector: layers and personalization block of each stage, and the mapper."""
    vectors: dict[str, list[np.ndarray]] = {}
    for name, parameter in generator.named_parameters():
        module, number, *_ = name.split(".")
        part = {"stages": f"layers {number}", "personalization": f"block {number}"}.get(module, module)
        vectors.setdefault(part, []).append(parameter.detach().cpu().numpy().ravel())
    return {part: np.concatenate(own) for part, own in vectors.items()}


def _distances(parts: list[Parts]) -> dict[str, np.ndarray]:
    """Distances (sites, sites) of each part that is not the same at all sites, which only a private one can be."""
    distances = {}
    for part, first in parts[0].items():
        if all(np.array_equal(first, own[part]) for own in parts):
            continue
        distances[part] = np.array([[relative_distance(one[part], other[part]) for other in parts] for one in parts])
    return distances
