"""A bound on the memory of the process that runs the rounds, so that a huge reply fails there and nothing else does.

Flower 1.41 puts a whole reply together before anyone can look at it, and a few bytes can claim gigabytes: an array is
a list of pieces, in which a piece may be named again and again.
"""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections.abc import Collection, Iterator
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


def free_after_failure(before: Collection[threading.Thread], seconds: float = 60.0) -> None:
    """Wait for the threads that something which failed has left running, and free what it held.

    Flower fetches the pieces of a reply in threads that it does not wait for when one of them fails; they and the
    errors, whose frames hold the pieces, would take the memory that the next reply needs. To be called when the error
    is no longer handled.

    Args:
        before: the threads that there were before.
        seconds: to wait at most.
    """
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(max(0.0, until - time.monotonic()))
    gc.collect()


def _taken() -> int:
    """What counts as data of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmData:"))
    return 1024 * int(kilobytes)
