"""How a site writes its update: as it is, or as a rounded difference to what it received, whose loss is sent later.

Matrices and filters are encoded: of a tensor, the difference to the shared one that the round began with, as bfloat16,
or as int8 with one float32 scale for each index of its first dimension. Tensors with fewer than ``LEAST_ROW`` numbers
for an index (biases, batch norm) stay float32, as they are. Integer buffers are private, so they are never sent.

What rounding took is the **residual**: the site keeps it in its private state and adds it to its next update before
that is encoded (error feedback; Karimireddy et al., arXiv:1901.09847). It belongs to the round that it was saved in, as
all private state does, so a round that starts from a base owes what the accepted update of that base lacked.

Every operation is elementwise and rounded as IEEE 754 says, so site and coordinator decode to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pflsynth.config_sections import Encoding

Tensors = dict[str, torch.Tensor]

SCALE = "/scale"
"""Ends the names of the scales of int8 tensors."""

LEAST_ROW = 8
"""A tensor with fewer numbers for each index of its first dimension is sent as it is."""

LARGEST = 127


def encode(
    encoding: Encoding,
    trained: Mapping[str, torch.Tensor],
    received: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
) -> tuple[Tensors, Tensors]:
    """Write an update.

    Args:
        encoding: of the agreement.
        trained: shared tensors after the round, float32.
        received: those that the round began with.
        residual: what the site's last accepted update lacked; a tensor that is not named lacked nothing.

    Returns:
        The tensors to send, and what they lack of ``trained`` plus ``residual``: to 2**-24 of itself, the difference
        of that sum to what :func:`decode` gives.
    """
    sent, lacking = Tensors(), Tensors()
    for name, tensor in trained.items():
        if not _is_encoded(encoding, tensor):
            sent[name] = tensor
            continue
        wanted = tensor.double() + residual.get(name, 0.0)
        change = wanted - received[name].double()
        parts = {name: change.to(torch.bfloat16)} if encoding == "bfloat16" else _int8(name, change)
        lacking[name] = (wanted - _decoded(name, parts, received[name]).double()).float()
        sent |= parts
    return sent, lacking


def decode(encoding: Encoding, sent: Mapping[str, torch.Tensor], received: Mapping[str, torch.Tensor]) -> Tensors:
    """Read an update: the site's shared tensors, float32, as its encoding tells them.

    Args:
        encoding: of the agreement.
        sent: as :func:`encode` made them.
        received: the shared tensors that the site's round began with.

    Raises:
        ValueError: if ``sent`` has other names, shapes or types than such an update must have.
    """
    if encoding == "float32":
        return dict(sent)
    _check(encoding, sent, sent_form(encoding, received))
    return {
        name: _decoded(name, sent, tensor) if _is_encoded(encoding, tensor) else sent[name]
        for name, tensor in received.items()
    }


def sent_form(encoding: Encoding, shared: Mapping[str, torch.Tensor]) -> Tensors:
    """Names, shapes and types of an update of such shared tensors, as tensors without numbers (device ``meta``)."""
    blank = {name: tensor.to("meta") for name, tensor in shared.items()}
    return encode(encoding, blank, blank, {})[0]


def _is_encoded(encoding: Encoding, tensor: torch.Tensor) -> bool:
    return encoding != "float32" and math.prod(tensor.shape[1:]) >= LEAST_ROW


def _int8(name: str, change: torch.Tensor) -> Tensors:
    """Round to multiples of a scale, half to even; the largest number of each row becomes 127 of them."""
    rows = change.flatten(1)
    scale = (rows.abs().amax(1) / LARGEST).float()
    wide = scale.double()[:, None]
    steps = torch.where(wide > 0, rows / wide, 0.0).round().clamp(-LARGEST, LARGEST)
    return {name: steps.to(torch.int8).reshape(change.shape), name + SCALE: scale}


def _decoded(name: str, sent: Mapping[str, torch.Tensor], received: torch.Tensor) -> torch.Tensor:
    change = sent[name].float()
    if name + SCALE in sent:
        change = (change.flatten(1) * sent[name + SCALE][:, None]).reshape(change.shape)
    return received + change


def _check(encoding: Encoding, sent: Mapping[str, torch.Tensor], form: Mapping[str, torch.Tensor]) -> None:
    for name in sorted(form.keys() | sent.keys()):
        found, wanted = _described(sent.get(name)), _described(form.get(name))
        if found != wanted:
            raise ValueError(f"it is not encoded as {encoding}: tensor {name} is {found}, wanted {wanted}")


def _described(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
