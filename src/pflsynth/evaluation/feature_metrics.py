"""LPIPS and FID of a run's images: the networks that the user names, opened once, and the numbers of each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pflsynth.evaluation.feature_files import FeatureWeights, FidScore
from pflsynth.evaluation.perceptual import (
    FeatureExtractor,
    FrechetStatistics,
    SliceDistances,
    fid,
    open_fid,
    open_lpips,
)
from pflsynth.networks.weights import FeatureFile


@dataclass(frozen=True)
class FeatureFiles:
    """The files of weights that the user names; ``None`` for a metric that is not asked for.

    ``lpips_heads`` is ``None`` too where the file of LPIPS holds its linear heads.
    """

    lpips: FeatureFile | None = None
    lpips_heads: FeatureFile | None = None
    fid: FeatureFile | None = None

    @property
    def weights(self) -> FeatureWeights:
        """Their SHA-256, as they were given; raises ValueError (pydantic) for what is no SHA-256."""
        given = {"lpips": self.lpips, "lpips_heads": self.lpips_heads, "fid": self.fid}
        return FeatureWeights.model_validate(
            {name: file.sha256.strip().lower() for name, file in given.items() if file is not None}
        )


@dataclass(frozen=True)
class FeatureNetworks:
    """Opened networks, and the SHA-256 of their files; ``None`` for a metric that is not computed."""

    lpips: SliceDistances | None = None
    fid: FeatureExtractor | None = None
    weights: FeatureWeights = field(default_factory=FeatureWeights)


class Place(NamedTuple):
    """What a FID is of, beside its model: a site, a task as text, a split, and the models' round."""

    site: str
    task: str
    split: str
    round: int


def open_networks(files: FeatureFiles, size: int, device: torch.device | str = "cpu") -> FeatureNetworks:
    """Check the files, open their networks, and try each with black slices.

    Args:
        files: what is asked for.
        size: pixels a side of the slices that are to come.
        device: where the networks run.

    Raises:
        ModelError: no such file, another SHA-256, or not a network for this metric.
        DataError: slices that are too small for LPIPS.
    """
    black = np.full((2, size, size), -1, np.float32)
    lpips = extract = None
    if files.lpips is not None:
        lpips = open_lpips(files.lpips, files.lpips_heads, device)
        lpips(black, black)
    if files.fid is not None:
        extract = open_fid(files.fid, device)
        extract(black)
    return FeatureNetworks(lpips, extract, files.weights)


class FeatureScorer:
    """Is shown every subject of a run once: gives the LPIPS of its images at once, and the FIDs of a finished site."""

    def __init__(self, networks: FeatureNetworks):
        self._networks = networks
        self._real: dict[Place, FrechetStatistics] = {}
        self._synthetic: dict[tuple[Place, str], FrechetStatistics] = {}
        self.fids: list[FidScore] = []
        """FIDs of all finished sites, in the order in which they were shown."""

    @property
    def weights(self) -> FeatureWeights:
        """SHA-256 of the networks' files."""
        return self._networks.weights

    def add(self, place: Place, target: np.ndarray, images: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Show the slices of a subject.

        Args:
            place: what they are of.
            target: real slices (S, H, W) in [-1, 1]; S is at least 1.
            images: for each model, the slices (S, H, W) in [-1, 1] that stand for them.

        Returns:
            Mean LPIPS over the slices by model; ``None`` where it is not computed.
        """
        if self._networks.fid is not None:
            self._real.setdefault(place, FrechetStatistics()).add(self._networks.fid(target))
            for model, image in images.items():
                statistics = self._synthetic.setdefault((place, model), FrechetStatistics())
                statistics.add(self._networks.fid(image))
        if self._networks.lpips is None:
            return dict.fromkeys(images)
        return {model: float(self._networks.lpips(target, image).mean()) for model, image in images.items()}

    def finish_site(self) -> None:
        """Compute the FIDs of all that was shown since the last site, and forget its features (they are large)."""
        for (place, model), synthetic in self._synthetic.items():
            self.fids.append(self._fid(place, model, self._real[place], synthetic))
        self._real.clear()
        self._synthetic.clear()

    def _fid(self, place: Place, model: str, real: FrechetStatistics, synthetic: FrechetStatistics) -> FidScore:
        value, note = None, "not computed: a FID needs at least 2 images"
        if real.images > 1:
            found = fid(real, synthetic)
            value, note = found.value, found.note or ""
        site, task, split, number = place
        sha256 = str(self.weights.fid)
        return FidScore(
            site, task, split, model, number, real.images, len(real.mean), value, note or None, fid_sha256=sha256
        )
