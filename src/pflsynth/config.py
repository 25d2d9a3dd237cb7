"""The agreement of a federation, ``federation.toml``.

It is strict: an unknown key, a wrong type or a value out of range is refused in one sentence that names file,
key and value. The agreement's hash leaves out the local keys, which say where things are on one machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, model_validator

from pflsynth.canonical import sha256_of_json
from pflsynth.config_sections import (
    ImageConfig,
    IntensityConfig,
    ModelConfig,
    RegistrationConfig,
    SlicesConfig,
    SplitConfig,
    Strict,
    TrainingConfig,
    UpdatesConfig,
)

CONTRASTS = ("T1w", "T1ce", "T2w", "PDw", "FLAIR")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
LOCAL_KEYS = (
    "data_root",
    "device",
    "workers",
    "threads",
    "compile",
    "checkpoint_activations",
    "perceptual_weights",
    "phantom",
)
SITE_LOCAL_KEYS = ("data", "layout", "contrast_names")

_TASK = re.compile(r"^\s*([A-Za-z0-9]+)\s*(?:->|→|:)\s*([A-Za-z0-9]+)\s*$")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
DEVICE = r"^(cpu|cuda(:[0-9]+)?)$"
"""Pattern of a torch device that a configuration may name."""


class Task(BaseModel, frozen=True):
    """A translation from a source contrast to a target contrast, written ``T1w->T2w`` (or ``T1w:T2w``)."""

    source: str
    target: str

    @classmethod
    def parse(cls, text: str) -> Task:
        """Read ``T1w->T2w`` or the shell-safe ``T1w:T2w``.

        Raises:
            ValueError: if the text is not a task or source and target are the same.
        """
        match = _TASK.match(text)
        if match is None:
            raise ValueError(f'"{text}" is not a task; write it as "T1w->T2w" or "T1w:T2w"')
        task = cls(source=match[1], target=match[2])
        if task.source == task.target:
            raise ValueError(f'task "{text}" has the same source and target')
        return task

    @property
    def reversed(self) -> Task:
        """The task from target to source."""
        return Task(source=self.target, target=self.source)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


def _parse_task(value: object) -> object:
    return Task.parse(value) if isinstance(value, str) else value


TaskText = Annotated[Task, BeforeValidator(_parse_task), PlainSerializer(str, return_type=str)]


class SiteConfig(Strict):
    """One hospital of the federation."""

    tasks: tuple[TaskText, ...] = Field(min_length=1, strict=False)
    brain_mask: bool = Field(False, description="every subject comes with a brain mask, which is applied")
    data: Path | None = Field(None, strict=False, description="folder of images (local); default: data_root/<site>")
    layout: str = Field("bids", description="bids, ixi, brats, oasis3, a file name pattern, or a .csv list (local)")
    contrast_names: dict[str, str] = Field(
        default_factory=dict, description="the site's own names of contrasts, such as {MPRAGE = T1w} (local)"
    )


class FederationConfig(Strict):
    """The agreement that all sites accept, plus this machine's local keys."""

    name: str = Field(pattern=_NAME)
    seed: int = Field(0, ge=0)
    rounds: int = Field(150, ge=1)
    method: str = Field("pflsynth", description="an entry of METHODS")
    held_out: tuple[str, ...] = Field((), strict=False, description="sites that have a code but do not train")
    quorum: int | None = Field(None, ge=1, description="least accepted updates a round; default: more than half")
    contrasts: tuple[str, ...] = Field(min_length=2, strict=False)
    image: ImageConfig = ImageConfig()
    slices: SlicesConfig = SlicesConfig()
    split: SplitConfig = SplitConfig()
    registration: RegistrationConfig = RegistrationConfig()
    intensity: IntensityConfig = IntensityConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    updates: UpdatesConfig = UpdatesConfig()
    sites: dict[Annotated[str, Field(pattern=_NAME)], SiteConfig] = Field(min_length=1)

    data_root: Path = Field(Path(), strict=False, description="folder of the sites' data (local)")
    device: str = Field("cpu", pattern=DEVICE, description="torch device: cpu, cuda or cuda:1 (local)")
    workers: int = Field(1, ge=1, description="processes of check, prepare and compare, threads of synthesize (local)")
    threads: int = Field(2, ge=1, description="CPU threads of torch, of each process (local)")
    compile: bool = Field(False, description="training runs compiled networks, by torch.compile (local)")
    checkpoint_activations: bool = Field(
        False, description="training keeps less and computes it once more: less memory, same result (local)"
    )
    phantom: int | None = Field(
        None, ge=4, description="write the phantom, this many subjects a site, to data_root if it is absent (local)"
    )
    perceptual_weights: Path | None = Field(None, strict=False, description="file of VGG-16's weights (local)")

    @model_validator(mode="after")
    def _consistent(self) -> FederationConfig:
        for contrast in self.contrasts:
            if contrast not in CONTRASTS:
                raise ValueError(f'contrast "{contrast}" is unknown; known are {", ".join(CONTRASTS)}')
        if len(set(self.contrasts)) < len(self.contrasts):
            raise ValueError(f"contrasts names one twice: {', '.join(self.contrasts)}")
        for name, site in self.sites.items():
            if len(set(site.tasks)) < len(site.tasks):
                raise ValueError(f"site {name} names a task twice: {', '.join(map(str, site.tasks))}")
            for task in site.tasks:
                for contrast in (task.source, task.target):
                    if contrast not in self.contrasts:
                        raise ValueError(
                            f'site {name}, task {task}: contrast "{contrast}" is not among contrasts '
                            f"({', '.join(self.contrasts)})"
                        )
        if self.registration.reference is not None and self.registration.reference not in self.contrasts:
            raise ValueError(
                f'registration.reference "{self.registration.reference}" is not among contrasts '
                f"({', '.join(self.contrasts)})"
            )
        for name in self.held_out:
            if name not in self.sites:
                raise ValueError(f'held_out names "{name}", which is none of {", ".join(self.site_names)}')
        if not self.participants:
            raise ValueError("held_out names every site; leave some to train")
        if self.quorum is not None and self.quorum > len(self.participants):
            raise ValueError(f"quorum {self.quorum} is more than the {len(self.participants)} sites that train")
        if self.training.shift >= self.image.size:
            raise ValueError(f"training.shift {self.training.shift} is not below image.size {self.image.size}")
        return self

    @property
    def site_names(self) -> tuple[str, ...]:
        """Sites in the order of the code: sorted by name."""
        return tuple(sorted(self.sites))

    @property
    def participants(self) -> tuple[str, ...]:
        """Sites that train, sorted by name: all but those held out."""
        return tuple(name for name in self.site_names if name not in self.held_out)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks of the federation, each once, sorted by their text."""
        return tuple(sorted({task for site in self.sites.values() for task in site.tasks}, key=str))

    @property
    def required_updates(self) -> int:
        """Least number of accepted updates of a round: ``quorum``, or more than half of the sites that train."""
        return self.quorum if self.quorum is not None else len(self.participants) // 2 + 1

    def data_folder(self, site: str) -> Path:
        """Folder of a site's data on this machine."""
        data = self.sites[site].data
        return self.data_root / (data if data is not None else site)

    def agreement(self) -> dict[str, Any]:
        """The resolved agreement without local keys, as plain JSON values.

        ``updates``, ``training.precision``, ``training.ema_decay`` and ``model.family`` are in it only where they are
        not the default: they came later than agreements whose hash must stay.
        """
        content = self.model_dump(mode="json", exclude=set(LOCAL_KEYS))
        if self.updates == UpdatesConfig():
            del content["updates"]
        for key in ("precision", "ema_decay"):
            if getattr(self.training, key) == TrainingConfig.model_fields[key].default:
                del content["training"][key]
        if self.model.family == ModelConfig().family:
            del content["model"]["family"]
        for site in content["sites"].values():
            for key in SITE_LOCAL_KEYS:
                del site[key]
        return content

    def agreement_sha256(self) -> str:
        """SHA-256 over the canonical JSON of :meth:`agreement`."""
        return sha256_of_json(self.agreement())

    def preparation(self, site: str) -> dict[str, Any]:
        """The settings that a site's prepared data depends on; ``train`` refuses data prepared with others."""
        content = self.agreement()
        sections = {key: content[key] for key in ("contrasts", "image", "slices", "split", "registration", "intensity")}
        return {"site": site, "brain_mask": self.sites[site].brain_mask, **sections}


def code_length(sites: Sequence[str], contrasts: Sequence[str]) -> int:
    """Length of the code: one-hot site ++ one-hot source ++ one-hot target."""
    return len(sites) + 2 * len(contrasts)
