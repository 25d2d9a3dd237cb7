"""The bound on memory: what needs more fails, it ends with its block, and what failed is freed."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from pflsynth.deployment.memory import bounded_memory, free_after_failure

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


class Reply:
    """Something large that is still held by the error that ended its making, and by a thread."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        threading.Thread(target=self.take_long).start()
        try:
            raise MemoryError
        except MemoryError as error:
            self.error = error

    def take_long(self) -> None:
        time.sleep(0.2)


def test_what_failed_is_freed_when_its_threads_have_ended() -> None:
    before = threading.enumerate()
    gc.disable()
    try:
        held = weakref.ref(Reply())
        assert held() is not None
        free_after_failure(before)
        assert held() is None
    finally:
        gc.enable()
    assert threading.enumerate() == before
