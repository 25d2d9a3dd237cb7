"""A bound on the memory of the process that runs the rounds, so that a huge reply fails there and nothing else does.

Flower 1.41 puts a whole reply together before anyone can look at it, and a few bytes can claim gigabytes: an array is
a list of pieces, in which a piece may be named again and again.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has now; what needs more than that raises MemoryError.

    Args:
        more: bytes of private, writable memory.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _taken() + more
    resource.setrlimit(resource.RLIMIT_DATA, (bound if soft == resource.RLIM_INFINITY else min(bound, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _taken() -> int:
    """What counts as data of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmData:"))
    return 1024 * int(kilobytes)
