"""States of a training on disk: shared parameters of a round, and the private state of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pflsynth.errors import ModelError
from pflsynth.federation.methods import SiteNetworks
from pflsynth.federation.sharing import Partition
from pflsynth.files import load_tensors, save_tensors

OPTIMIZER = "optimizer/"
"""Begins the names of optimizer moments in a private state."""

RESIDUAL = "residual/"
"""Begins the names of what the site's update of that round lacked; see :mod:`pflsynth.federation.update_encoding`."""

AVERAGE = "average/"
"""Begins the names of the generator's moving average; see :mod:`pflsynth.federation.moving_average`."""


@dataclass(frozen=True)
class Carried:
    """What a site carries from round to round beside its networks and optimizers: nothing at first."""

    residual: Mapping[str, torch.Tensor] = field(default_factory=dict)
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Which agreement and round a state belongs to; written into it and checked when it is read."""

    agreement_sha256: str
    round: int
    site: str | None = None

    def metadata(self) -> dict[str, Any]:
        """As JSON values for the file's header."""
        return {"agreement_sha256": self.agreement_sha256, "round": self.round, "site": self.site}

    def check(self, metadata: Mapping[str, Any], path: Path) -> None:
        """Raise ModelError unless ``metadata`` tells the same provenance."""
        for key, wanted in self.metadata().items():
            if metadata.get(key) != wanted:
                raise ModelError(
                    f"{path}: belongs to another training: {key} is {metadata.get(key)}, wanted {wanted}; "
                    "use the run folder that this agreement made"
                )


def save_shared(path: Path, tensors: Mapping[str, torch.Tensor], provenance: Provenance) -> None:
    """Write the shared parameters after a round, atomically."""
    save_tensors(path, tensors, provenance.metadata(), kind="shared")


def load_shared(path: Path, provenance: Provenance) -> dict[str, torch.Tensor]:
    """Read shared parameters.

    Raises:
        ModelError: missing, damaged, of a newer format, or of another agreement or round.
    """
    tensors, metadata = load_tensors(path, kind="shared")
    provenance.check(metadata, path)
    return tensors


def save_private(
    path: Path,
    networks: SiteNetworks,
    partition: Partition,
    optimizers: Mapping[str, torch.optim.Adam],
    carried: Carried,
    provenance: Provenance,
) -> None:
    """Write a site's private parameters and buffers, all of its optimizer moments, and what it carries, atomically."""
    state = networks.state_dict()
    tensors = {key: state[key].detach().cpu() for key in partition.private}
    tensors |= {RESIDUAL + name: tensor for name, tensor in carried.residual.items()}
    tensors |= {AVERAGE + name: tensor.detach().cpu() for name, tensor in carried.average.items()}
    for name, parameter in networks.named_parameters():
        for optimizer in optimizers.values():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{name}/{key}"] = value.detach().cpu()
    save_tensors(path, tensors, provenance.metadata(), kind="private")


def load_private(
    path: Path,
    networks: SiteNetworks,
    partition: Partition,
    optimizers: Mapping[str, torch.optim.Adam],
    provenance: Provenance,
) -> Carried:
    """Put a private state into freshly built networks and optimizers; returns what is carried.

    Raises:
        ModelError: missing, damaged, of a newer format, of another agreement, site or round, or of other networks.
    """
    tensors, metadata = load_tensors(path, kind="private")
    provenance.check(metadata, path)
    moments, residual, average = (_taken(tensors, beginning) for beginning in (OPTIMIZER, RESIDUAL, AVERAGE))
    load_part(networks, partition.private, tensors, path)
    owners = {
        parameter: optimizer
        for optimizer in optimizers.values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(networks.named_parameters())
    for key, value in moments.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        like = value.new_empty(()).to(parameter.device) if entry == "step" else torch.empty_like(parameter)
        owners[parameter].state[parameter][entry] = like.copy_(value)  # in the parameter's memory format
    return Carried(residual, average)


def _taken(tensors: dict[str, torch.Tensor], beginning: str) -> dict[str, torch.Tensor]:
    """Take out the tensors whose names begin so; they are returned by the rest of their names."""
    return {key.removeprefix(beginning): tensors.pop(key) for key in list(tensors) if key.startswith(beginning)}


def load_part(
    module: torch.nn.Module, keys: tuple[str, ...], tensors: Mapping[str, torch.Tensor], source: Path | str
) -> None:
    """Copy ``tensors`` into those entries of the module's state dict that ``keys`` names.

    Raises:
        ModelError: if names or shapes differ; ``source`` is named.
    """
    state = module.state_dict()
    if set(keys) != tensors.keys():
        missing, unknown = sorted(set(keys) - tensors.keys()), sorted(tensors.keys() - set(keys))
        raise ModelError(f"{source}: is of other networks: missing {missing[:5]}, unknown {unknown[:5]}")
    for key in keys:
        if state[key].shape != tensors[key].shape:
            raise ModelError(
                f"{source}: tensor {key} has shape {tuple(tensors[key].shape)}, wanted {tuple(state[key].shape)}"
            )
        state[key].copy_(tensors[key])
