"""Do one thing for many items in several processes; a bad item gives its reason, and the others go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Generic, TypeVar

from pflsynth.errors import DataError, PflsynthError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Mapping[str, Item], workers: int
) -> Iterator[tuple[str, Result | DataError]]:
    """Call a function for every item.

    Args:
        function: importable by name, because other processes import it.
        items: by name; they are sent to the processes, so they can be pickled.
        workers: processes; with 1 everything is done in this one.

    Yields:
        Name and result, or the :class:`DataError` that was raised, in any order.

    Raises:
        PflsynthError: a process was ended from outside.
        OSError: whatever else the function raises ends the work.
    """
    job = _Caught(function)
    if workers == 1 or len(items) < 2:
        for name, item in items.items():
            yield name, job(item)
        return
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=get_context("spawn"), initializer=begin_worker)
    try:
        running: dict[Future[Result | DataError], str] = {pool.submit(job, item): name for name, item in items.items()}
        for future in as_completed(running):
            yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise PflsynthError(
            f"a worker process was ended, most likely for want of memory; set workers below {workers}"
        ) from None
    except BaseException:  # Ctrl-C too: what runs may take hours, and whatever is cut short is done again
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Caught(Generic[Item, Result]):
    """The function with its :class:`DataError` as a result."""

    def __init__(self, function: Callable[[Item], Result]):
        self._function = function

    def __call__(self, item: Item) -> Result | DataError:
        try:
            return self._function(item)
        except DataError as error:
            return error


def begin_worker() -> None:
    """Begin a worker process: leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
