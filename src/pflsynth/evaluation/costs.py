"""What methods cost: by round, as it is recorded, and over a whole training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, model_validator


class Cost(BaseModel):
    """What a method costs by trainer (a site, or the one place of a centralised method), and its seconds by seed.

    ``megabytes`` (10**6 bytes) are sent after a round, ``received`` before one, from the second on (``None`` in files
    of earlier versions); ``shared`` are those of the shared parameters that a trainer holds (``None`` in files of
    earlier versions: as many as are sent); ``steps`` are optimisation steps of a round; ``slices`` are the trainer's
    training slices, each of which is seen once in a local epoch.
    """

    model_config = ConfigDict(frozen=True)

    megabytes: dict[str, NonNegativeFloat]
    received: dict[str, NonNegativeFloat] | None = None
    shared: dict[str, NonNegativeFloat] | None = None
    steps: dict[str, NonNegativeInt]
    slices: dict[str, NonNegativeInt]
    seconds: dict[int, NonNegativeFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_the_same_trainers(self) -> Cost:
        trainers = {frozenset(self.megabytes), frozenset(self.steps), frozenset(self.slices)}
        trainers |= {frozenset(told) for told in (self.received, self.shared) if told is not None}
        if len(trainers) > 1:
            raise ValueError("megabytes, received, shared, steps and slices are not of the same trainers")
        return self


@dataclass(frozen=True)
class Budget:
    """What one training was given and what it cost; all but ``rounds`` is ``None`` where it was not recorded.

    Attributes:
        rounds: of the whole training.
        steps: optimisation steps of the whole training, by trainer (a site, or the place of a centralised method).
        slices: slices seen in the whole training, by trainer.
        megabytes: 10**6 bytes sent after a round, by trainer.
        received: 10**6 bytes received before a round, from the second on, by trainer.
        shared: 10**6 bytes of the shared parameters, by trainer.
        seconds: of the whole training.
    """

    rounds: int
    steps: Mapping[str, int] | None
    slices: Mapping[str, int] | None
    megabytes: Mapping[str, float] | None
    received: Mapping[str, float] | None
    shared: Mapping[str, float] | None
    seconds: float | None

    @property
    def all_steps(self) -> int | None:
        """Sum of ``steps`` over trainers."""
        return None if self.steps is None else sum(self.steps.values())

    @property
    def all_slices(self) -> int | None:
        """Sum of ``slices`` over trainers."""
        return None if self.slices is None else sum(self.slices.values())

    def traffic(self, trainer: str | None = None) -> Traffic | None:
        """What a trainer, or all of them together, sends and receives; ``None`` where it was not recorded."""
        if self.megabytes is None:
            return None
        names = self.megabytes if trainer is None else (trainer,)
        sent = math.fsum(self.megabytes[name] for name in names)
        if self.received is None:
            return Traffic(sent, None, None)
        received = math.fsum(self.received[name] for name in names)
        last = math.fsum((self.shared or self.megabytes)[name] for name in names)
        return Traffic(sent, received, self.rounds * sent + (self.rounds - 1) * received + last)


@dataclass(frozen=True)
class Traffic:
    """10**6 bytes over the network; ``None`` where what is received was not recorded.

    Every round ends with the new shared parameters, which are as large as an update that is sent as it is. What is
    received beyond them are other sites' updates, passed on before every round but the first.

    Attributes:
        sent: in a round.
        received: in a round, from the second on.
        in_all: both ways, in the whole training.
    """

    sent: float
    received: float | None
    in_all: float | None
