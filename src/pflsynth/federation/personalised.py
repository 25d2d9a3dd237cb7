"""Finished personalised models: written once at the end of a training, read by evaluation and synthesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
from pflsynth.networks.inference import inference_form
from pflsynth.runs import RunDirectory

Network = Callable[[torch.Tensor], torch.Tensor]
"""From source images (B, 1, H, W) in [-1, 1] to target images."""

_FEATURE_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Most bytes of the largest feature map of a batch. A CPU gains nothing from more (docs/performance.md)."""


@dataclass(frozen=True)
class PersonalisedModel:
    """The generator of one site with all that evaluation and synthesis need to know about it.

    Attributes:
        config: the agreement.
        site: name of the site.
        round: of the training that it is the result of.
        generator: in evaluation mode; it must not change any more.
        intensity: what the site's training subjects say of each contrast.
        sha256: of the model's file, or empty.
        networks: what synthesises each task; a task that is absent gets the inference form of the generator when it
            is first wanted.
    """

    config: FederationConfig
    site: str
    round: int
    generator: nn.Module
    intensity: SiteIntensity
    sha256: str
    networks: dict[Task, Network] = field(default_factory=dict, init=False, repr=False, compare=False)

    @torch.inference_mode()
    def synthesize(self, slices: np.ndarray, task: Task) -> np.ndarray:
        """Translate slices of a task's source contrast.

        Args:
            slices: (S, H, W) float32 in [-1, 1].
            task: one of the site's tasks.

        Returns:
            (S, H, W) float32 in (-1, 1).
        """
        device, network = self.device, self.network(task)
        images = torch.from_numpy(np.array(slices))[:, None].to(device)
        outputs = [network(batch) for batch in images.split(self.slices_at_once(images[0].numel()))]
        translated: np.ndarray = torch.cat(outputs)[:, 0].cpu().numpy()
        return translated

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.generator.parameters()).device

    def with_network(self, task: Task, network: Network) -> PersonalisedModel:
        """The same model with another network in place of a task's inference form."""
        model = replace(self)
        model.networks.update(self.networks | {task: network})
        return model

    def network(self, task: Task) -> Network:
        """What synthesises a task: see :attr:`networks`."""
        if task not in self.networks:
            self.networks[task] = self.inference_form(task)
        return self.networks[task]

    def inference_form(self, task: Task) -> nn.Module:
        """A new inference form of the generator for a task."""
        return inference_form(self.generator, task_code(self.config, self.site, task).to(self.device))

    def slices_at_once(self, pixels: int) -> int:
        """Slices of a batch: by sizes and kind of device alone, for the last bits of outputs depend on it.

        Args:
            pixels: of a slice.
        """
        return max(1, _FEATURE_BYTES[self.device.type] // (4 * self.config.model.width * pixels))

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
