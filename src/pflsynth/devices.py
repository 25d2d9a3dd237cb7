"""Where torch computes: the device and the number of CPU threads that a configuration asks for; memory in use."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from pflsynth.errors import UsageError


def use_device(name: str, threads: int) -> torch.device:
    """Return the torch device, checked to be there, and fix the number of CPU threads: results depend on it.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:1``.
        threads: CPU threads of torch.

    Raises:
        UsageError: if there is no such kind of device, or not on this machine.
    """
    torch.set_num_threads(threads)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f'device "{name}": there is no such kind; give cpu, cuda or cuda:1')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise UsageError(f'device "{name}": torch {torch.__version__} sees {seen} GPUs on this machine; give cpu')
    return device


def peak_memory_mb() -> float:
    """Peak resident memory of this process (2**20 bytes); on Linux getrusage begins with its parent's peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
