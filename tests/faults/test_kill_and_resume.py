"""A training that is stopped anywhere and resumed gives the same bytes as one that is not stopped."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pflsynth import files
from pflsynth.files import load_tensors, save_tensors
from pflsynth.runs import RunDirectory

from ..data_builders import tree
from ..tiny import Ended, Tiny, ended, pflsynth, results, start_pflsynth
from .struck import POINTS

ROOT = Path(__file__).parents[2]
KILLED = [f"kill:{point}" for point in POINTS]
WHOLE_ROUNDS = {
    "sites-built": 0,
    "first-step": 0,
    "state-written": 2,
    "last-state-written": 3,
    "one-of-two-models-written": 3,
    "all-models-written": 3,
}
"""Rounds that were whole when the training was killed; 1 at the other points."""
INTERRUPTED = [
    f"interrupt:{point}" for point in ("first-step", "private-half-written", "metrics-written", "sites-built")
]
FILLED = [f"fill:{point}" for point in ("step-of-a-later-round", "shared-written", "metrics-written")]


@pytest.fixture(scope="module")
def struck(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended]]:
    """The run folder of every training that was struck, and how it ended."""
    folder = tmp_path_factory.mktemp("struck")
    wanted = [*KILLED, *INTERRUPTED, *FILLED]
    words = [sys.executable, "-m", "tests.faults.struck", folder, tiny.path, tiny.prepared, *wanted]
    subprocess.run(words, cwd=ROOT, check=True, timeout=300)
    found = {}
    for pair in wanted:
        run = folder / pair.replace(":", "-")
        code = json.loads(run.with_suffix(".json").read_text())["code"]
        out, err = (run.with_suffix(ending).read_text() for ending in (".out", ".err"))
        found[pair] = (run, Ended(code, out, err))
    return found


def whole_rounds(run: Path) -> int:
    return RunDirectory(run).state().round


# --------------------------------------------------------------------------------------- killed, at every kind of point


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_equals_uninterrupted(
    struck: dict[str, tuple[Path, Ended]], trained: Path, point: str
) -> None:
    """What is lost is the round it was in, and no more."""
    run, end = struck[f"kill:{point}"]
    assert end.code == -signal.SIGKILL
    done = WHOLE_ROUNDS.get(point, 1)
    assert whole_rounds(run) == done
    assert (results(run) == results(trained)) == (point == "all-models-written")
    resumed = pflsynth("train", "--resume", "--run", run)
    assert resumed.code == 0, resumed
    assert [int(number) for number in re.findall(r"round +(\d)/3", resumed.out)] == list(range(done + 1, 4))
    assert results(run) == results(trained)
    assert [json.loads(line)["round"] for line in (run / "timings.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
def test_two_kills_in_one_training(
    struck: dict[str, tuple[Path, Ended]], trained: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """Resumed in a process of its own, and killed from outside as soon as the second round is whole."""
    run = tmp_path / "run"
    config = tmp_path / "federation.toml"
    config.write_text(f'extends = "{tiny.path}"\ndata_root = "{tiny.folder}/data"\n')
    process = start_pflsynth("train", config, "--prepared", tiny.prepared, "--run", run)
    wait_for(lambda: (run / "sites" / "north" / "private-0001.safetensors").exists(), process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    process = start_pflsynth("train", "--resume", "--run", run)
    wait_for(lambda: whole_rounds(run) >= 2, process)
    process.kill()
    process.communicate()
    assert pflsynth("train", "--resume", "--run", run).code == 0
    assert results(run) == results(trained)


@pytest.mark.slow
def test_a_kill_in_a_training_with_lossy_updates(tiny: Tiny, tmp_path: Path) -> None:
    """Killed from outside when a site has written what its update of the second round lacked."""
    words = ("train", tiny.path, "--prepared", tiny.prepared, "--set", 'updates.encoding="int8"')
    assert pflsynth(*words, "--run", tmp_path / "uninterrupted").code == 0
    run = tmp_path / "run"
    process = start_pflsynth(*words, "--run", run)
    wait_for(lambda: (run / "sites" / "north" / "private-0002.safetensors").exists(), process)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    assert pflsynth("train", "--resume", "--run", run).code == 0
    assert results(run) == results(tmp_path / "uninterrupted")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a process has come so far; fail if it ended before that."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


# ---------------------------------------------------------------------------------------------- Ctrl-C, and full disks


@pytest.mark.slow
@pytest.mark.parametrize("pair", INTERRUPTED)
def test_ctrl_c_leaves_a_run_that_can_be_resumed(
    struck: dict[str, tuple[Path, Ended]], trained: Path, pair: str
) -> None:
    run, end = struck[pair]
    assert end.code == 130
    assert end.out.splitlines()[-1] == f"stopped; go on with: pflsynth train --resume --run {run}"
    assert end.err.split() == ["interrupted"]
    assert pflsynth("train", "--resume", "--run", run).code == 0
    assert results(run) == results(trained)


@pytest.mark.slow
def test_ctrl_c_from_outside(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_pflsynth("train", tiny.path, "--prepared", tiny.prepared, "--run", run, "--set", "rounds=1000")
    wait_for(lambda: (run / "state.json").exists() and whole_rounds(run) >= 1, process)
    process.send_signal(signal.SIGINT)
    end = ended(process)
    assert end.code == 130
    assert end.out.splitlines()[-1] == f"stopped; go on with: pflsynth train --resume --run {run}"
    assert end.err.split() == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("pair", FILLED)
def test_a_full_disk_leaves_a_run_that_can_be_resumed(
    struck: dict[str, tuple[Path, Ended]], trained: Path, pair: str
) -> None:
    run, end = struck[pair]
    assert end.code == 1
    assert re.fullmatch(rf"error: {run}/\S+: File too large.*\n", end.err), end
    assert not list(run.rglob("*.tmp")), "no half-written file is left to fill the disk further"
    assert pflsynth("train", "--resume", "--run", run).code == 0
    assert results(run) == results(trained)


# ----------------------------------------------------------------------------------------------- what can be resumed


def stopped(trained: Path, folder: Path) -> Path:
    """A copy of a finished run, turned back to the end of its second round."""
    run = folder / "run"
    shutil.copytree(trained, run)
    state = json.loads((run / "state.json").read_text())
    state.update(round=2, bases={"north": 2, "south": 2})
    (run / "state.json").write_text(json.dumps(state))
    for path in list(run.rglob("*-0003.safetensors")):
        path.unlink()
    return run


def test_a_finished_run_is_resumed_without_a_change(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = tree(run)
    end = pflsynth("train", "--resume", "--run", run)
    assert end.code == 0
    assert "trained 3 rounds" in end.out
    assert tree(run) == before


def test_a_run_may_be_moved_and_told_where_its_data_is(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = stopped(trained, tmp_path)
    shutil.copytree(tiny.prepared, tmp_path / "moved")
    local = json.loads((run / "local.json").read_text())
    (run / "local.json").write_text(json.dumps({**local, "prepared": "/nowhere"}))
    end = pflsynth("train", "--resume", "--run", run)
    assert end.code == 3
    assert "error: /nowhere/north: holds no prepared data" in end.err
    assert pflsynth("train", "--resume", "--run", run, "--prepared", tmp_path / "moved").code == 0
    assert results(run) == results(trained)


def test_another_agreement_is_refused_key_by_key(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = stopped(trained, tmp_path)
    before = tree(run)
    words = ("--set", "training.batch_size=2", "--set", "rounds=9")
    end = pflsynth("train", tiny.path, "--resume", "--run", run, *words)
    assert end.code == 4
    assert "rounds is 3 in the run, 9 now" in end.err
    assert "training.batch_size is 4 in the run, 2 now" in end.err
    assert end.err.count(" in the run, ") == 2
    assert tree(run) == before
    assert pflsynth("train", tiny.path, "--resume", "--run", run, "--set", "threads=1").code == 0


def test_prepared_data_that_changed_is_refused(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = stopped(trained, tmp_path)
    before = tree(run)
    shutil.copytree(tiny.prepared, tmp_path / "prepared")
    manifest = tmp_path / "prepared" / "south" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["subjects"] = content["subjects"][1:]
    manifest.write_text(json.dumps(content))
    end = pflsynth("train", "--resume", "--run", run, "--prepared", tmp_path / "prepared")
    assert end.code == 3
    assert f"{tmp_path}/prepared/south: the prepared data changed since {run} began" in end.err
    assert tree(run) == before


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newer(path: Path) -> None:
    kind = "shared" if "round" in path.name else "private"
    tensors, metadata = load_tensors(path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORMAT_VERSION", 2)
        save_tensors(path, tensors, metadata, kind)


def of_another_round(path: Path) -> None:
    kind = "shared" if "round" in path.name else "private"
    tensors, metadata = load_tensors(path, kind)
    save_tensors(path, tensors, {**metadata, "round": 1}, kind)


@pytest.mark.parametrize("file", ["shared/round-0002.safetensors", "sites/south/private-0002.safetensors"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "there is no such file"),
        (cut_short, "is cut short or is not a safetensors file"),
        (half, "is cut short or is not a safetensors file"),
        (newer, "has format 2, this pflsynth reads 1: it was written by a newer pflsynth; update pflsynth"),
        (of_another_round, "belongs to another training: round is 1, wanted 2"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    trained: Path, tmp_path: Path, file: str, spoil: Callable[[Path], None], message: str
) -> None:
    run = stopped(trained, tmp_path)
    spoil(run / file)
    state = (run / "state.json").read_bytes()
    end = pflsynth("train", "--resume", "--run", run)
    assert end.code == 4, end
    assert f"error: {run / file}: {message}" in end.err
    assert "Traceback" not in end.err
    assert (run / "state.json").read_bytes() == state
    shutil.copy(trained / file, run / file)
    assert pflsynth("train", "--resume", "--run", run).code == 0
    assert results(run) == results(trained)


# ---------------------------------------------------------------------------------------------- two processes, one run


@contextmanager
def training(tiny: Tiny, run: Path) -> Iterator[None]:
    """A training that goes on in another process."""
    process = start_pflsynth("train", tiny.path, "--prepared", tiny.prepared, "--run", run, "--set", "rounds=1000")
    try:
        wait_for(lambda: (run / "state.json").exists() and whole_rounds(run) >= 1, process)
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = ("train", tiny.path, "--prepared", tiny.prepared, "--run", run)
    with training(tiny, run):
        for words in (("train", "--resume", "--run", run), (*again, "--force"), again):
            end = pflsynth(*words)
            assert end.code == 2, end
            taken = "another process is training in this run; wait for it"
            assert (taken if words is not again else "exists already") in end.err
        done = whole_rounds(run)
        assert done >= 1
    assert whole_rounds(run) >= done, "its files are still there"
    assert pflsynth(*again, "--force", "--set", "rounds=1").code == 0, "the lock ends with its process"


# ---------------------------------------------------------------------------------------------------------------- soak


@pytest.mark.soak
def test_kills_at_many_random_moments(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """Trainings that are killed again and again, after random times, until they are done."""
    begun = time.monotonic()
    words = ("train", tiny.path, "--prepared", tiny.prepared)
    assert ended(start_pflsynth(*words, "--run", tmp_path / "uninterrupted")).code == 0
    duration = time.monotonic() - begun
    moments = random.Random(0)
    kills = 0
    for number in range(20):
        run, patience = tmp_path / f"run-{number}", duration / 2
        while not (run / "state.json").exists() or results(run) != results(trained):
            process = start_pflsynth(*(words if not run.exists() else ("train", "--resume")), "--run", run)
            wait_for_state(run, process)
            time.sleep(moments.uniform(0, patience))
            process.kill()
            code = ended(process).code
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            patience *= 1.1  # so that it ends on a slow machine, too
        shutil.rmtree(run)
    assert kills >= 10


def wait_for_state(run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the run is made: a kill within those milliseconds leaves a folder to delete by hand."""
    wait_for(lambda: (run / "state.json").exists(), process)
