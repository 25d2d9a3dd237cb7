"""The headers of the messages between coordinator and sites, one class for each kind, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pflsynth import __version__
from pflsynth.errors import ModelError

LONGEST = 2**20
"""Most characters of a header."""

Reason = Literal[
    "version",
    "agreement",
    "name",
    "message",
    "busy",
    "data",
    "state",
    "lost",
    "diverged",
    "settings",
    "disk",
    "unexpected",
]

REASONS: Mapping[Reason, str] = {
    "version": "it runs another version of pflsynth",
    "agreement": "it has another agreement",
    "name": "its settings are those of another site than its key",
    "message": "it refused what it was sent",
    "busy": "it is still busy with an earlier round",
    "data": "its prepared data cannot be used",
    "state": "its run folder cannot be used",
    "lost": "it does not have its private state of that round any more",
    "diverged": "its training diverged (NaN or Inf)",
    "settings": "its own configuration cannot be used",
    "disk": "its disk is full, cannot be written, or cannot be read",
    "unexpected": "it had an unexpected error",
}
"""Why a site declines, in words. Only the word leaves a site: sentences of errors can hold paths and subjects."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, Field(ge=0, le=10**6)]


class MessageRefused(ModelError):  # noqa: N818
    """A message that must not be used; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, text: str, reason: Reason = "message"):
        super().__init__(text)
        self.reason: Reason = reason


class Header(BaseModel):
    """What every message tells: the sender's version of pflsynth, and the hash of its agreement (empty: unknown)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    pflsynth: str = Field(__version__, max_length=40)
    agreement: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Join(Header):
    """Coordinator: do we agree? ``content`` is the whole agreement, ``site`` whose key the receiver has."""

    kind: Literal["join"] = "join"
    site: str
    content: dict[str, Any]


class Joined(Header):
    """Site: its agreement, whole only if it is another one."""

    kind: Literal["joined"] = "joined"
    content: dict[str, Any] | None = None


class Train(Header):
    """Coordinator: train a round. Arrays: ``SHARED``, and ``PREVIOUS`` + site for each site in ``previous``."""

    kind: Literal["train"] = "train"
    round: Number
    base: Number
    keep: tuple[Number, ...] = Field(description="rounds whose private states are kept")
    layout: Sha256
    previous: dict[str, Sha256]


class Trained(Header):
    """Site: its update. Array: ``SHARED``."""

    kind: Literal["trained"] = "trained"
    round: Number
    base: Number = Field(description="the base that it started from: 0 if it had lost its private state")
    layout: Sha256
    slices: int
    metrics: dict[str, float]


class Validate(Header):
    """Coordinator: score the personalised model of a round. Array: ``SHARED``, after that round."""

    kind: Literal["validate"] = "validate"
    round: Number
    base: Number
    layout: Sha256


class Scored(Header):
    """Site: the score; ``None`` without validation subjects."""

    kind: Literal["scored"] = "scored"
    round: Number
    score: float | None


class Finish(Header):
    """Coordinator: training is done; make the personalised model. Array: ``SHARED``, of the result's round."""

    kind: Literal["finish"] = "finish"
    round: Number = Field(description="the last one")
    base: Number
    selected: Number
    selected_score: float | None
    selected_base: Number
    keep: tuple[Number, ...]
    layout: Sha256


class Finished(Header):
    """Site: its personalised model is saved."""

    kind: Literal["finished"] = "finished"
    round: Number


class Declined(Header):
    """Site: why it could not do what it was asked."""

    kind: Literal["declined"] = "declined"
    reason: Reason


Headers = Join | Joined | Train | Trained | Validate | Scored | Finish | Finished | Declined
_HEADERS: TypeAdapter[Headers] = TypeAdapter(Annotated[Headers, Field(discriminator="kind")])


def read_header(text: str) -> Headers:
    """Read a header.

    Raises:
        MessageRefused: if it is too long or no header of a known kind.
    """
    if len(text) > LONGEST:
        raise MessageRefused(f"its header has {len(text)} characters; {LONGEST} are possible")
    try:
        return _HEADERS.validate_json(text)
    except ValidationError as failure:
        first = failure.errors(include_input=False, include_url=False)[0]
        place = printable(".".join(map(str, first["loc"])), 80) or "its start"
        raise MessageRefused(f"its header is not one of ours, at {place}: {printable(first['msg'])}") from None


def printable(text: str, longest: int = 200) -> str:
    """Text of another machine as it may be shown: one line, printable, not long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])
