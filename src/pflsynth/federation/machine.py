"""How networks are trained on this machine: precision, compiling, checkpointing, and what memory holds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pflsynth.config import FederationConfig
from pflsynth.errors import PflsynthError, UsageError
from pflsynth.federation.method import SiteNetworks
from pflsynth.networks.checkpointing import Checkpointable
from pflsynth.networks.compiling import compile_networks
from pflsynth.networks.precision import convolve_in_bfloat16


def check_machine(config: FederationConfig, device: torch.device) -> None:
    """Raise UsageError if the device cannot train as the configuration wants it."""
    if config.compile and config.checkpoint_activations:
        raise UsageError("compile and checkpoint_activations exclude each other: set one of them to false")
    if config.training.precision == "bfloat16" and device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return
        raise UsageError(
            f'training.precision = "bfloat16": {torch.cuda.get_device_name(device)} does not compute bfloat16; train '
            'on another device, or agree with all sites on training.precision = "float32"'
        )


def set_up(networks: SiteNetworks, config: FederationConfig, device: torch.device) -> None:
    """Make networks that are on the device train as the configuration wants it, in place."""
    if config.training.precision == "bfloat16":
        convolve_in_bfloat16(networks)
    for module in networks.modules():
        if isinstance(module, Checkpointable):
            module.checkpoint_activations = config.checkpoint_activations
    if config.compile:
        compile_networks([networks.generator, *networks.discriminators.values(), *networks.helpers.values()], device)


def out_of_memory(device: torch.device, batch_size: int, train_one: Callable[[], object]) -> PflsynthError:
    """What to say when a step did not fit into the memory of a GPU.

    Args:
        device: the GPU.
        batch_size: slices of that step.
        train_one: a step of one slice, of which memory is measured.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    fixed = torch.cuda.memory_allocated(device)
    available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        train_one()
    except torch.cuda.OutOfMemoryError:
        return PflsynthError(too_large(batch_size, 0))
    return PflsynthError(too_large(batch_size, fitting(available, fixed, torch.cuda.max_memory_allocated(device))))


def fitting(available: int, fixed: int, with_one: int) -> int:
    """Slices of a batch that fit, if each needs as much as the first.

    Args:
        available: bytes that this process can have.
        fixed: bytes of networks, optimizers and what else stays.
        with_one: most bytes in use in a step of one slice.
    """
    return (available - fixed) // max(1, with_one - fixed)


def too_large(batch_size: int, fits: int) -> str:
    """The sentence that tells which batch would fit, 0 for none."""
    if fits < 1:
        return (
            "The memory of the GPU does not hold a step of one slice: set checkpoint_activations = true, let nothing "
            "else use the GPU, or agree on a smaller model.width or image.size"
        )
    return (
        f"The memory of the GPU does not hold a step of {batch_size} slices; by the memory of one slice, "
        f"training.batch_size = {min(fits, batch_size - 1)} would fit (all sites agree on it), and more with "
        "checkpoint_activations = true, which each machine sets for itself"
    )
