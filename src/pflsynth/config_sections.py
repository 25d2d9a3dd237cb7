"""The sections of the agreement (``[image]``, ``[model]``, ``[training]``, ...): their keys, defaults and ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator

Spacing = Annotated[
    Annotated[float, Field(gt=0, le=20)] | None, BeforeValidator(lambda value: None if value == "" else value)
]


Encoding = Literal["float32", "bfloat16", "int8"]
"""How an update is written: see :mod:`pflsynth.federation.update_encoding`."""


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


class ModelConfig(Strict):
    """The personalised generator and the discriminators (arXiv:2207.06509, Sec. III)."""

    family: Literal["full", "lite"] = Field(
        "full", description="stages of the personalised generator: the paper's, or some with a fraction of its GFLOP"
    )
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
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the convolutions; norms, losses and optimizers are float32 always"
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="finished models are a moving average of the weights; 0: the last weights",
    )
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


class UpdatesConfig(Strict):
    """How sites write the updates that they send."""

    encoding: Encoding = Field(
        "float32", description="bfloat16, int8: rounded differences; what rounding took is kept and sent later"
    )
