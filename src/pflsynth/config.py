"""The agreement of a federation, ``federation.toml``.

It is strict: an unknown key, a wrong type or a value out of range is refused in one sentence that names file,
key and value. The agreement's hash leaves out the local keys, which say where things are on one machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PositiveFloat, model_validator

from pflsynth.canonical import sha256_of_json

CONTRASTS = ("T1w", "T1ce", "T2w", "PDw", "FLAIR")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
LOCAL_KEYS = ("data_root", "device", "workers", "threads", "perceptual_weights", "phantom")
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
Spacing = Annotated[
    Annotated[float, Field(gt=0, le=20)] | None, BeforeValidator(lambda value: None if value == "" else value)
]


class Strict(BaseModel):
    """Base of all configuration sections: frozen, no unknown keys, and no types but the wanted ones.

    TOML has neither tuples nor paths: such fields say ``strict=False``, so that they take arrays and strings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ImageConfig(Strict):
    """The grid of the slices that the networks see."""

    spacing_mm: Spacing = Field(None, description="in-plane spacing in mm; empty keeps each volume's own")
    size: int = Field(256, ge=24, le=1024, multiple_of=4, description="rows and columns of a slice")


class SlicesConfig(Strict):
    """Which axial slices of a subject are kept."""

    min_area: float = Field(0.3, ge=0, le=1, description="least mask area, as a fraction of the largest slice's")
    maximum: int = Field(0, ge=0, description="most slices of a subject, evenly spaced; 0 keeps all")


class SplitConfig(Strict):
    """How subjects are split; a ``splits.json`` beside a site's data overrides the fractions."""

    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, so that subjects are left for training")
        return self


class RegistrationConfig(Strict):
    """How the contrasts of a subject come to lie on one grid."""

    transform: Literal["rigid", "affine", "none"] = Field("rigid", description="none: they must lie on one grid")
    reference: str | None = Field(None, description="contrast to register to; default: T1w, or the first there is")
    voxel_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        None, strict=False, description="voxel size (X, Y, Z) to resample to; default: that of the reference"
    )


class IntensityConfig(Strict):
    """How intensities become the [-1, 1] that the networks see."""

    normalizer: Literal["percentile", "mean", "zscore", "nyul"] = "percentile"
    bias_correction: bool = Field(False, description="N4 bias field correction before anything else is measured")


class SiteConfig(Strict):
    """One hospital of the federation."""

    tasks: tuple[TaskText, ...] = Field(min_length=1, strict=False)
    brain_mask: bool = Field(False, description="every subject comes with a brain mask, which is applied")
    data: Path | None = Field(None, strict=False, description="folder of images (local); default: data_root/<site>")
    layout: str = Field("bids", description="bids, ixi, brats, oasis3, a file name pattern, or a .csv list (local)")
    contrast_names: dict[str, str] = Field(
        default_factory=dict, description="the site's own names of contrasts, such as {MPRAGE = T1w} (local)"
    )


class ModelConfig(Strict):
    """The personalised generator and the discriminators (arXiv:2207.06509, Sec. III)."""

    width: int = Field(64, ge=8, le=512, multiple_of=8, description="channels of the first stage")
    residual_layers: int = Field(9, ge=1, le=32)
    split_stage: int | None = Field(
        None, ge=1, description="first shared stage of partial network aggregation; default: the middle (9 of 15)"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="within residual layers")
    code: tuple[Literal["site", "task"], ...] = Field(
        ("site", "task"), strict=False, description="live parts of the code; the others are held at zero"
    )
    blocks: tuple[Literal["adain", "adacw"], ...] = Field(
        ("adain", "adacw"), min_length=1, strict=False, description="parts of the personalization blocks"
    )
    mapper_layers: int = Field(6, ge=1, le=16)
    conditioning: Literal["live", "dead"] = Field(
        "live", description="dead: every linear layer starts at N(0, 0.02), as in the public code, to measure its cost"
    )
    private_blocks: bool = Field(True, description="personalization blocks stay private, also after shared stages")
    private_discriminators: bool = Field(True, description="discriminators stay private")

    @property
    def stages(self) -> int:
        """Number of stages: three down, the residual layers, two up, one out."""
        return self.residual_layers + 6

    @property
    def first_shared_stage(self) -> int:
        """First shared stage: ``split_stage``, or 9 for nine residual layers and in proportion for others."""
        return self.split_stage if self.split_stage is not None else 4 + (self.residual_layers + 1) // 2

    @model_validator(mode="after")
    def _split_within(self) -> ModelConfig:
        if self.split_stage is not None and self.split_stage > self.stages + 1:
            raise ValueError(
                f"split_stage {self.split_stage} is beyond stage {self.stages}, the last one with "
                f"{self.residual_layers} residual layers ({self.stages + 1} shares the mapper alone)"
            )
        return self


class TrainingConfig(Strict):
    """Local training of a round (arXiv:2207.06509, Sec. IV)."""

    batch_size: int = Field(1, ge=1)
    local_epochs: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.5, 0.999), strict=False
    )
    l1_weight: float = Field(100.0, ge=0)
    adversarial_weight: float = Field(1.0, ge=0)
    perceptual_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="SHA-256 of VGG-16's weights, for the perceptual loss of pgan"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    shift: int = Field(4, ge=0, description="largest shift in pixels, along each axis")
    validate_every: int = Field(0, ge=0, description="rounds between validations; 0 never")
    select: Literal["last", "validation"] = "last"
    keep_every: int = Field(0, ge=0, description="keep the states of every Nth round; 0 keeps the last two")

    @model_validator(mode="after")
    def _can_select(self) -> TrainingConfig:
        if self.select == "validation" and self.validate_every == 0:
            raise ValueError('select = "validation" needs validate_every to be 1 or more')
        return self


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
    sites: dict[Annotated[str, Field(pattern=_NAME)], SiteConfig] = Field(min_length=1)

    data_root: Path = Field(Path(), strict=False, description="folder of the sites' data (local)")
    device: str = Field("cpu", pattern=DEVICE, description="torch device: cpu, cuda or cuda:1 (local)")
    workers: int = Field(1, ge=1, description="processes of check, prepare and compare (local)")
    threads: int = Field(2, ge=1, description="CPU threads of torch, of each process (local)")
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
        """The resolved agreement without local keys, as plain JSON values."""
        content = self.model_dump(mode="json", exclude=set(LOCAL_KEYS))
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
