"""Finished personalised models: written once at the end of a training, read by evaluation and synthesis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from pflsynth import __version__
from pflsynth.config import FederationConfig, Task
from pflsynth.data.manifest import SiteIntensity
from pflsynth.devices import use_device
from pflsynth.errors import ModelError, UsageError
from pflsynth.federation.checkpoint import Provenance, load_part
from pflsynth.federation.methods import method_of, task_code
from pflsynth.files import load_tensors, save_tensors, sha256_of_file
from pflsynth.runs import RunDirectory

SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class PersonalisedModel:
    """The generator of one site with all that evaluation and synthesis need to know about it."""

    config: FederationConfig
    site: str
    round: int
    generator: nn.Module
    intensity: SiteIntensity
    sha256: str

    @torch.inference_mode()
    def synthesize(self, slices: np.ndarray, task: Task) -> np.ndarray:
        """Translate slices of a task's source contrast.

        Args:
            slices: (S, H, W) float32 in [-1, 1].
            task: one of the site's tasks.

        Returns:
            (S, H, W) float32 in (-1, 1).
        """
        device = next(self.generator.parameters()).device
        code = task_code(self.config, self.site, task).to(device)
        outputs = [
            self.generator(images, code.expand(len(images), -1))
            for images in torch.from_numpy(np.array(slices))[:, None].to(device).split(SLICES_AT_ONCE)
        ]
        translated: np.ndarray = torch.cat(outputs)[:, 0].cpu().numpy()
        return translated

    def own_task(self, text: str) -> Task:
        """Read a task and check that the site trained for it.

        Raises:
            UsageError: if the text is no task, or not one of this site's.
        """
        try:
            task = Task.parse(text)
        except ValueError as error:
            raise UsageError(f"--task: {error}") from None
        own = self.config.sites[self.site].tasks
        if task not in own:
            raise UsageError(f"--task {task}: site {self.site} was trained for {', '.join(map(str, own))}")
        return task


def save_personalised(path: Path, generator: nn.Module, provenance: Provenance, intensity: SiteIntensity) -> None:
    """Write a site's finished generator, atomically.

    Args:
        path: file to write.
        generator: with re-estimated batch-norm statistics.
        provenance: agreement, round and site.
        intensity: what the site's training subjects say of each contrast.
    """
    metadata = {
        **provenance.metadata(),
        "intensity": intensity.model_dump(mode="json"),
        "pflsynth": __version__,
    }
    save_tensors(path, generator.state_dict(), metadata, kind="personalised")


def open_personalised(run_folder: Path, site: str, device: str | None = None) -> PersonalisedModel:
    """Open the finished personalised model of a site.

    Args:
        run_folder: made by ``pflsynth train``.
        site: name of the site in the agreement.
        device: torch device; default: the run's.

    Raises:
        UsageError: if the agreement has no such site, or it was held out, or the device cannot be used.
        ModelError: if the run is not finished, or the model is missing, damaged or of another agreement.
    """
    run, config = RunDirectory.open(run_folder)
    if site not in config.sites:
        raise UsageError(f"--site {site}: the run {run_folder} has the sites {', '.join(config.site_names)}")
    if site in config.held_out:
        raise UsageError(
            f"--site {site}: was held out of the training, so {run_folder} has no personalised model of it; how the "
            "shared parameters serve it, as they are and after a local fit, is scored by: "
            f"pflsynth compare CONFIG --held-out-site {site}"
        )
    round_number, _ = run.result(config)
    path = run.personalised_path(site, round_number)
    chosen = use_device(device or config.device, config.threads)
    tensors, metadata = load_tensors(path, kind="personalised")
    Provenance(config.agreement_sha256(), round_number, site).check(metadata, path)
    generator = method_of(config).generator(config, site)
    load_part(generator, tuple(generator.state_dict()), tensors, path)
    intensity = _intensity(metadata, path)
    generator = generator.to(chosen).eval()
    return PersonalisedModel(config, site, round_number, generator, intensity, sha256_of_file(path))


def _intensity(metadata: Mapping[str, Any], path: Path) -> SiteIntensity:
    try:
        return SiteIntensity.model_validate(metadata["intensity"])
    except (KeyError, ValidationError):
        raise ModelError(
            f"{path}: does not tell how intensities were normalised; it was written by another version: train again"
        ) from None
