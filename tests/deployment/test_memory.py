"""The bound on memory: what needs more fails, and it ends with its block."""

from __future__ import annotations

import pytest

from pflsynth.deployment.memory import bounded_memory

MEGABYTE = 2**20


def test_what_needs_more_than_the_bound_fails() -> None:
    with bounded_memory(100 * MEGABYTE):
        assert len(bytearray(10 * MEGABYTE)) == 10 * MEGABYTE
        with pytest.raises(MemoryError):
            bytearray(400 * MEGABYTE)
    assert len(bytearray(400 * MEGABYTE)) == 400 * MEGABYTE


def test_a_bound_within_a_bound_widens_nothing() -> None:
    with bounded_memory(100 * MEGABYTE), bounded_memory(1000 * MEGABYTE), pytest.raises(MemoryError):
        bytearray(400 * MEGABYTE)
