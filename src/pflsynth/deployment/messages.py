"""What the coordinator and the sites send each other, and the checks on arrival; nothing here knows Flower.

A :class:`Packet` is a small header and flat arrays of bytes. Names, shapes and types of tensors are never sent: both
sides derive them from the agreement, and compare one hash of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pflsynth import __version__
from pflsynth.canonical import sha256_of_json
from pflsynth.config import FederationConfig
from pflsynth.deployment.headers import Headers, MessageRefused, Train, Trained, printable
from pflsynth.federation.aggregate import Update
from pflsynth.federation.coordinator import Assignment, Tensors
from pflsynth.federation.methods import method_of
from pflsynth.federation.update_encoding import sent_form

SHARED = "shared"
"""Name of the array of shared parameters, or of an update."""

PREVIOUS = "previous/"
"""Begins the names of arrays with other sites' last updates."""

MOST_METRICS = 1000

_METRIC = re.compile(r"^[a-z0-9_ -]{1,40}/(.{1,20})$")


@dataclass(frozen=True)
class Packet:
    """A message: its header, and flat arrays of bytes by name."""

    header: Headers
    arrays: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The header as JSON."""
        return self.header.model_dump_json()

    @property
    def size(self) -> int:
        """Bytes of the content, without what Flower adds."""
        return len(self.text.encode()) + sum(map(len, self.arrays.values()))


_CARRIERS = {
    torch.float32: ("<f4", torch.float32),
    torch.bfloat16: ("<i2", torch.int16),
    torch.int8: ("<i1", torch.int8),
}
"""By the type of a tensor that can be sent: NumPy's type of its bits, little-endian, and torch's for the same bits."""


class Part(NamedTuple):
    """One tensor of a flat array."""

    name: str
    shape: tuple[int, ...]
    kind: torch.dtype

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.kind.itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors, sorted by name, that one flat array holds one after another."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """The layout of these tensors."""
        return cls(tuple(Part(name, tuple(tensors[name].shape), tensors[name].dtype) for name in sorted(tensors)))

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and types."""
        return sha256_of_json([[name, list(shape), str(kind)] for name, shape, kind in self.parts])

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return sum(part.size for part in self.parts)

    def pack(self, tensors: Mapping[str, torch.Tensor]) -> bytes:
        """Lay tensors of this layout into one flat array: their bits, unchanged."""
        packed = []
        for name, _, kind in self.parts:
            carrier, same_bits = _CARRIERS[kind]
            array = tensors[name].detach().cpu().contiguous().view(same_bits).numpy()
            packed.append(array.astype(carrier, copy=False).tobytes())
        return b"".join(packed)

    def unpack(self, sha256: str, data: bytes | None) -> Tensors:
        """Take a flat array apart.

        Args:
            sha256: of the layout that its sender tells.
            data: the array.

        Raises:
            MessageRefused: another layout, no array, or another size; before anything is allocated.
        """
        if sha256 != self.sha256:
            raise MessageRefused(
                f"its tensors have other names, shapes or types (hash {sha256[:12]}, wanted {self.sha256[:12]})"
            )
        if data is None:
            raise MessageRefused("its array is missing")
        if len(data) != self.size:
            raise MessageRefused(f"its array has {len(data)} bytes, wanted {self.size}")
        tensors, start = Tensors(), 0
        for part in self.parts:
            carrier = np.dtype(_CARRIERS[part.kind][0])
            found = np.frombuffer(data, carrier, math.prod(part.shape), start).astype(carrier.newbyteorder("="))
            tensors[part.name] = torch.from_numpy(found).view(part.kind).reshape(part.shape)
            start += part.size
        return tensors


def layout_of(config: FederationConfig, site: str) -> Layout:
    """What a site receives, as it follows from the agreement."""
    return Layout.of(method_of(config).initial_shared(config, site))


def check_version(header: Headers) -> None:
    """Raise MessageRefused unless the sender runs this version of pflsynth."""
    if header.pflsynth != __version__:
        raise MessageRefused(
            f"it runs pflsynth {printable(header.pflsynth)}, this is {__version__}; install the same version",
            "version",
        )


def check_agreement(header: Headers, config: FederationConfig) -> None:
    """Raise MessageRefused unless the sender has this agreement."""
    own = config.agreement_sha256()
    if header.agreement != own:
        raise MessageRefused(
            f"it has another agreement (hash {header.agreement[:12] or 'unknown'}, wanted {own[:12]})", "agreement"
        )


def pack_assignment(assignment: Assignment, keep: tuple[int, ...], agreement: str) -> Packet:
    """What a site is sent for a round; see :class:`Train`."""
    layouts = {site: Layout.of(tensors) for site, tensors in assignment.previous.items()}
    arrays = {PREVIOUS + site: layout.pack(assignment.previous[site]) for site, layout in layouts.items()}
    own = Layout.of(assignment.shared)
    header = Train(
        agreement=agreement,
        round=assignment.round,
        base=assignment.base,
        keep=keep,
        layout=own.sha256,
        previous={site: layout.sha256 for site, layout in layouts.items()},
    )
    return Packet(header, {SHARED: own.pack(assignment.shared), **arrays})


def read_assignment(header: Train, arrays: Mapping[str, bytes], config: FederationConfig, site: str) -> Assignment:
    """What a site was given.

    Raises:
        MessageRefused: a round that the agreement does not have, an unknown site, or wrong arrays.
    """
    if not header.base < header.round <= config.rounds:
        raise MessageRefused(f"round {header.round} after base {header.base} is not one of {config.rounds} rounds")
    others = method_of(config).trainers(config)
    for other in header.previous:
        if other not in others:
            raise MessageRefused(f'it holds an update of "{printable(other)}", which does not train')
    shared = layout_of(config, site).unpack(header.layout, arrays.get(SHARED))
    previous = {
        other: layout_of(config, other).unpack(sha256, arrays.get(PREVIOUS + other))
        for other, sha256 in sorted(header.previous.items())
    }
    return Assignment(header.round, header.base, shared, previous)


def pack_update(update: Update, base: int, agreement: str) -> Packet:
    """What a site sends after a round; see :class:`Trained`."""
    layout = Layout.of(update.tensors)
    header = Trained(
        agreement=agreement,
        round=update.round,
        base=base,
        layout=layout.sha256,
        slices=update.slices,
        metrics=dict(update.metrics),
    )
    return Packet(header, {SHARED: layout.pack(update.tensors)})


def read_update(
    header: Trained, arrays: Mapping[str, bytes], given: Assignment, site: str, config: FederationConfig
) -> Update:
    """The update of a site, still encoded; the name is the one that its key is registered under, never what it says.

    Raises:
        MessageRefused: another round or base, wrong arrays, or metrics that the agreement does not name.
    """
    if header.round != given.round:
        raise MessageRefused(f"it is an update of round {header.round}, and this is round {given.round}")
    if header.base not in (given.base, 0):
        raise MessageRefused(f"it started from round {header.base}, and was told to from round {given.base}")
    tasks = {str(task) for task in config.sites[site].tasks}
    for name in header.metrics:
        match = _METRIC.match(name)
        if match is None or match[1] not in tasks or len(header.metrics) > MOST_METRICS:
            raise MessageRefused(f'it tells a metric "{printable(name, 40)}" that is not of one of its tasks')
    layout = Layout.of(sent_form(config.updates.encoding, given.shared))
    tensors = layout.unpack(header.layout, arrays.get(SHARED))
    return Update(site, header.round, tensors, header.slices, dict(header.metrics))
