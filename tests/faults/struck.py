"""Trainings that are struck at exact points: each in a child process that kills, interrupts or starves itself.

``python -m tests.faults.struck FOLDER CONFIG PREPARED BLOW:POINT ...`` trains once for each ``BLOW:POINT``, in
``FOLDER/BLOW-POINT``, and writes how it ended to ``FOLDER/BLOW-POINT.json``. The program is imported once; each
training is a fork, so that every file and lock is its own.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pflsynth import cli, console, files, training  # noqa: F401
from pflsynth.federation import coordinator, rounds, site
from pflsynth.federation.methods import LocalRound
from pflsynth.runs import RunDirectory

Blow = Callable[[], None]

BLOWS: dict[str, Blow] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "fill": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY)),
}
"""Fill stands for a full disk: files cannot grow beyond 300 bytes, by the system's own limit."""


def before(owner: Any, name: str, call: int) -> Callable[[Blow], None]:
    """Strike just before the ``call``-th call of ``owner.name``."""
    return _at(owner, name, call, first=True)


def after(owner: Any, name: str, call: int) -> Callable[[Blow], None]:
    """Strike just after the ``call``-th call of ``owner.name``."""
    return _at(owner, name, call, first=False)


def _at(owner: Any, name: str, call: int, first: bool) -> Callable[[Blow], None]:
    def arm(blow: Blow) -> None:
        original, calls = getattr(owner, name), 0

        def struck(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and first:
                blow()
            result = original(*arguments, **named)
            if calls == call and not first:
                blow()
            return result

        setattr(owner, name, struck)

    return arm


def while_written(file: str) -> Callable[[Blow], None]:
    """Strike when the temporary file is whole, and not yet in the place of ``file``."""

    def arm(blow: Blow) -> None:
        original = files.Path.replace

        def struck(self: Path, target: Path) -> Path:
            if target.name == file:
                blow()
            return original(self, target)

        files.Path.replace = struck  # type: ignore[method-assign]

    return arm


def half_a_line(call: int) -> Callable[[Blow], None]:
    """Write half of the ``call``-th line of ``metrics.jsonl`` or ``timings.jsonl``, and strike."""

    def arm(blow: Blow) -> None:
        original, calls = RunDirectory.append, 0

        def struck(self: RunDirectory, name: str, record: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                with (self.folder / name).open("a") as file:
                    file.write(json.dumps(record)[:50])
                blow()
            original(self, name, record)

        RunDirectory.append = struck  # type: ignore[method-assign]

    return arm


# The tiny federation takes 2 steps a round at each site, north first: steps 5 to 8 are of round 2.
POINTS: dict[str, Callable[[Blow], None]] = {
    "first-step": before(LocalRound, "rows", 1),
    "step-of-a-later-round": after(LocalRound, "rows", 5),
    "step-of-the-second-site": before(LocalRound, "rows", 8),
    "private-half-written": while_written("private-0002.safetensors"),
    "private-written": after(site, "save_private", 3),
    "shared-half-written": while_written("round-0002.safetensors"),
    "shared-written": after(coordinator, "save_shared", 2),
    "half-a-line-written": half_a_line(3),
    "metrics-written": after(RunDirectory, "append", 3),
    "state-half-written": before(RunDirectory, "save_state", 3),  # the first is of the creation
    "state-written": after(RunDirectory, "save_state", 3),
    "last-state-written": after(RunDirectory, "save_state", 4),
    "one-of-two-models-written": after(rounds, "save_personalised", 1),
    "all-models-written": after(rounds, "save_personalised", 2),
    "sites-built": after(training, "Federation", 1),
}


def main(folder: Path, config: str, prepared: str, wanted: list[str]) -> None:
    """Train once for each ``BLOW:POINT``, in a child process."""
    _import_all()
    for pair in wanted:
        blow, point = pair.split(":")
        place = folder / f"{blow}-{point}"
        child = os.fork()
        if child == 0:
            _train(blow, point, config, prepared, place)
        _, status = os.waitpid(child, 0)
        place.with_suffix(".json").write_text(json.dumps({"code": os.waitstatus_to_exitcode(status)}))


def _import_all() -> None:
    """Import what the first step of an optimizer does, so that it need not be done in every child."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()


def _train(blow: str, point: str, config: str, prepared: str, place: Path) -> None:
    code: Any = None
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT), stream)
        POINTS[point](BLOWS[blow])
        cli.main(["train", config, "--prepared", prepared, "--run", str(place)])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 99)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
