"""Import and export of generator weights under the names of the authors' public code (icon-lab/pFLSynth, 2024-01).

That code names the second convolution and batch norm of a residual layer ``conv_block.5`` and ``.6``, or ``.6`` and
``.7`` if the network was built with dropout, as its training scripts do. Both namings are read. Files are not: load
a ``.pth`` with ``torch.load(path, weights_only=True)`` and pass the state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pflsynth.errors import ModelError
from pflsynth.networks.generators import PersonalizedGenerator

_LISTED = 10  # names of a kind in an error message


def load_generator(state_dict: Mapping[str, Tensor]) -> PersonalizedGenerator:
    """Build a generator from a state dict of the authors' public code.

    Code length, width and number of residual layers are read off the tensors. A leading ``module.`` of the names, as
    data-parallel training leaves it, is ignored. Values are copied and become float32 on the CPU.

    Args:
        state_dict: tensors by official name, batch-norm statistics included.

    Returns:
        The generator in evaluation mode, with dropout 0.5 if the names are those of a network with dropout, else 0.

    Raises:
        ModelError: if names are missing or unexpected, or tensors have wrong shapes; the message lists them.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    code_length = _size(given, "mapper.map.dense0.weight", dimensions=2, axis=1)
    width = _size(given, "model_1.1.weight", dimensions=4, axis=0)
    residual_layers = len({name.partition(".")[0] for name in given if ".conv_block." in name})
    dropout = 0.5 if any(name.endswith("conv_block.7.weight") for name in given) else 0.0
    try:
        with torch.device("meta"):  # shapes only: draws no random numbers
            generator = PersonalizedGenerator(
                code_length, width=width, residual_layers=max(1, residual_layers), dropout=dropout
            )
    except ValueError as error:
        raise ModelError(f"These are not weights of an official pFLSynth generator: {error}.") from error

    expected = to_official(generator)
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("wrong shape", misshapen)]
    if any(problems):
        raise ModelError(
            "These are not weights of an official pFLSynth generator: " + "; ".join(filter(None, problems))
        )

    names = dict(_module_names(generator))
    generator.to_empty(device="cpu")
    generator.load_state_dict({_renamed(name, names): tensor for name, tensor in given.items()})
    return generator.eval()


def to_official(generator: PersonalizedGenerator) -> dict[str, Tensor]:
    """Return the generator's tensors under the names of the authors' public code.

    Args:
        generator: of the family "full"; with dropout above 0 its names are those of a network with dropout.

    Returns:
        Tensors by official name, on the same storage as the generator's, detached from the graph.

    Raises:
        ModelError: if the generator is of another family, which that code does not have.
    """
    if generator.family != "full":
        raise ModelError(
            f"A generator of the family {generator.family} has no names in the authors' public code; "
            'only model.family = "full" does.'
        )
    names = {ours: official for official, ours in _module_names(generator)}
    return {_renamed(name, names): tensor for name, tensor in generator.state_dict().items()}


def _module_names(generator: PersonalizedGenerator) -> list[tuple[str, str]]:
    """Return the (official, our) names of all modules that hold tensors."""
    last = len(generator.stages)
    shift = 1 if generator.dropout > 0 else 0  # a dropout module sits before the second convolution
    names = [(f"mapper.map.dense{i}", f"mapper.layers.{i}") for i in range(len(generator.mapper.layers))]
    names += [("model_1.1", "stages.1.0"), ("model_1.2", "stages.1.1"), (f"model_{last}.1", f"stages.{last}.0")]
    for i in (2, 3, last - 2, last - 1):
        names += [(f"model_{i}.{j}", f"stages.{i}.{j}") for j in (0, 1)]
    for i in range(4, last - 2):
        names += [
            (f"model_{i}.conv_block.1", f"stages.{i}.conv1"),
            (f"model_{i}.conv_block.2", f"stages.{i}.norm1"),
            (f"model_{i}.conv_block.{5 + shift}", f"stages.{i}.conv2"),
            (f"model_{i}.conv_block.{6 + shift}", f"stages.{i}.norm2"),
        ]
    for i in range(1, last):
        official, ours = f"personalization_blocks.{i - 1}", f"personalization.{i}"
        names += [
            (f"{official}.adain.style_mod.lin", f"{ours}.adain.affine"),
            (f"{official}.adacw.fc.0", f"{ours}.adacw.reduce"),
            (f"{official}.adacw.fc.2", f"{ours}.adacw.expand"),
        ]
    return names


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """Return the tensor's name with the name of its module replaced."""
    module, _, tensor = name.rpartition(".")
    return f"{modules[module]}.{tensor}"


def _size(state_dict: Mapping[str, Tensor], name: str, dimensions: int, axis: int) -> int:
    """Return one size of a tensor that tells how the generator was built."""
    if name not in state_dict:
        raise ModelError(f"These are not weights of an official pFLSynth generator: missing {name}.")
    shape = tuple(state_dict[name].shape)
    if len(shape) != dimensions:
        raise ModelError(f"{name} must have {dimensions} dimensions, but its shape is {shape}.")
    return shape[axis]


def _listed(kind: str, names: Sequence[str]) -> str:
    """Return "kind a, b, c and 3 more", or nothing if there are no names."""
    if not names:
        return ""
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{kind} {', '.join(names[:_LISTED])}{rest}"
