"""What an evaluation tells of feature networks: ``weights.json`` and ``fid.csv`` beside its ``scores.csv``.

``weights.json`` has the SHA-256 of the files that LPIPS and FID were computed with. An evaluation without either metric
has neither file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError

from pflsynth.errors import ModelError
from pflsynth.files import read_json, write_atomic, write_json

FILES = ("weights.json", "fid.csv")
"""Names of the files."""

_EVALUATE = "restore it, or evaluate the run again"

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FeatureWeights(BaseModel):
    """SHA-256 of the files of feature networks; ``None`` for a metric that is not computed.

    ``lpips_heads`` is ``None`` too where the file of LPIPS holds its linear heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lpips: _Sha256 | None = None
    lpips_heads: _Sha256 | None = None
    fid: _Sha256 | None = None

    def by_metric(self) -> dict[str, str]:
        """The SHA-256 of each metric that is computed, as text."""
        lpips = " and ".join(sha256 for sha256 in (self.lpips, self.lpips_heads) if sha256 is not None)
        return {metric: sha256 for metric, sha256 in (("LPIPS", lpips), ("FID", self.fid)) if sha256}

    def cover(self, wanted: FeatureWeights) -> bool:
        """Whether every metric that is wanted is computed, with the wanted weights."""
        return wanted.by_metric().items() <= self.by_metric().items()


@dataclass(frozen=True)
class FidScore:
    """FID of a model at a site and task, over the slices that show the mask of all its subjects in a split.

    ``images`` is the number of slices of each kind, ``features`` that of the network; ``note`` says what to know of the
    number, or why there is none.
    """

    site: str
    task: str
    split: str
    model: str
    round: int
    images: NonNegativeInt
    features: NonNegativeInt
    fid: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    note: str | None
    fid_sha256: str


def common_weights(folders: Iterable[Path], known: Mapping[Path, FeatureWeights] | None = None) -> FeatureWeights:
    """The weights of several evaluations, each of which has a metric by the same weights as the others, or not at all.

    Args:
        folders: of the evaluations.
        known: more weights that must be the same, by the folder that messages name.

    Raises:
        ModelError: naming two with different weights, and both SHA-256; or a file that is damaged.
    """
    common: dict[str, object] = {}
    first: dict[str, tuple[Path, str]] = {}
    found = {**(known or {}), **{folder: read_weights(folder) for folder in folders}}
    for path, weights in found.items():
        for metric, sha256 in weights.by_metric().items():
            place, before = first.setdefault(metric, (path, sha256))
            if before != sha256:
                option = f"--{metric.lower()}"
                raise ModelError(
                    f"{path}: its {metric} is by weights with SHA-256 {sha256}, but that of {place} by {before}; "
                    f"compare again with {option} and {option}-sha256, which evaluates all runs by the same weights"
                )
        common |= weights.model_dump(exclude_none=True)
    return FeatureWeights.model_validate(common)


def read_weights(folder: Path) -> FeatureWeights:
    """The weights of the evaluation in a folder: none of them if it has no ``weights.json``.

    Raises:
        ModelError: if the file is damaged.
    """
    path = folder / "weights.json"
    if not path.is_file():
        return FeatureWeights()
    try:
        return FeatureWeights.model_validate(read_json(path))
    except ValidationError as failure:
        first = failure.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: is damaged at {key} ({first['msg']}); {_EVALUATE}") from None


def read_fids(folder: Path) -> list[FidScore]:
    """Read ``fid.csv`` of the evaluation in a folder.

    Raises:
        ModelError: if the file is missing, or damaged.
    """
    path = folder / "fid.csv"
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        values = [{key: value or None for key, value in line.items()} for line in lines]
        return TypeAdapter(list[FidScore]).validate_python(values)
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file; {_EVALUATE}") from None
    except ValidationError as failure:
        first = failure.errors()[0]
        number, key = (*first["loc"], "")[:2]
        raise ModelError(f"{path}, line {int(number) + 2}: is damaged at {key} ({first['msg']}); {_EVALUATE}") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise ModelError(f"{path}: is damaged ({failure}); {_EVALUATE}") from None


def write_features(folder: Path, weights: FeatureWeights, fids: Sequence[FidScore]) -> None:
    """Write the files of an evaluation in a folder, and remove those that it does not have.

    Args:
        folder: made.
        weights: of LPIPS and FID.
        fids: one line each.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    if weights.fid is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [entry.name for entry in fields(FidScore)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(fid) for fid in fids)
        write_atomic(folder / "fid.csv", text.getvalue().encode())
    if weights.by_metric():
        write_json(folder / "weights.json", weights.model_dump(mode="json"))
