"""The examples of a deployment: one machine as many, systemd units, a container."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pflsynth.runs import RunDirectory

from ..tiny import Tiny, pflsynth, results
from .network import nginx_or_skip

EXAMPLES = Path(__file__).parents[2] / "examples" / "deployment"


@pytest.mark.slow
def test_a_coordinator_and_its_sites_on_one_machine_give_the_bytes_of_one_process(
    tiny: Tiny, trained: Path, tmp_path: Path
) -> None:
    nginx_or_skip()
    out = tmp_path / "out"
    script = [sys.executable, EXAMPLES / "one_machine.py", tiny.path, "--data-root", tiny.folder / "data", "--out", out]
    ended = subprocess.run(script, capture_output=True, text=True, check=False, timeout=900)
    joined = "\n".join(path.read_text() for path in out.glob("*/join.txt"))
    assert ended.returncode == 0, ended.stdout + ended.stderr + joined
    shown = [shlex.split(line)[2] for line in ended.stdout.splitlines() if line.startswith("$ pflsynth ")]
    assert shown == ["keys", *["unseal", "prepare"] * 2, "serve", "join", "join", "synthesize", "synthesize"]
    name = "shared/round-0003.safetensors"
    assert (out / "run" / name).read_bytes() == (trained / name).read_bytes()
    for site, target in (("north", "T2w"), ("south", "T2w")):
        run = out / site / "run"
        personalised = f"sites/{site}/personalised-0003.safetensors"
        assert results(run)[personalised] == results(trained)[personalised]
        assert len(list((out / site).glob(f"sub-*_{target}.nii.gz"))) == 1
        assert pflsynth("evaluate", "--run", run, "--out", tmp_path / f"{site}.csv").code == 0
    status = pflsynth("status", out / "run", "--json").document
    assert (status["phase"], status["round"], status["waiting_for"], status["running"]) == ("finished", 3, [], False)
    assert all(told["finished"] and told["received"] > 0 for told in status["sites"].values())
    assert [record["round"] for record in RunDirectory(out / "run").records("metrics.jsonl")] == [1, 2, 3]
    held = {path.name for path in (out / "run").iterdir()}
    files = {"federation.toml", "agreement.sha256", "state.json", "metrics.jsonl", "timings.jsonl", "status.json"}
    assert held == {*files, "shared", "sites", ".lock"}
    assert not any((out / "run" / "sites").iterdir()), "nothing private is at the coordinator"
    assert list(out.rglob("superlink.db*")) == []


@pytest.mark.parametrize("unit", ["pflsynth-coordinator.service", "pflsynth-site.service"])
def test_units_give_commands_that_exist_and_stop_as_the_verbs_do(unit: str) -> None:
    text = (EXAMPLES / unit).read_text()
    start = re.search(r"^ExecStart=\S+/pflsynth (\S+) (.*)$", text, re.MULTILINE)
    assert start is not None
    usage = pflsynth(start[1], "--help").out
    assert all(word in usage for word in shlex.split(start[2]) if word.startswith("--"))
    for line in ("KillMode=mixed", "SuccessExitStatus=130", "RestartPreventExitStatus=2 3 4", "NoNewPrivileges=true"):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize("unit", ["pflsynth-coordinator.service", "pflsynth-site.service"])
def test_units_are_accepted_by_systemd(unit: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    program = tmp_path / "pflsynth"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit
    copy.write_text((EXAMPLES / unit).read_text().replace("/opt/pflsynth/bin/pflsynth", str(program)))
    ended = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert unit not in ended.stderr, ended.stderr


def test_the_container_installs_what_a_coordinator_needs() -> None:
    text = (EXAMPLES / "Containerfile").read_text()
    assert re.search(r"apt-get install .* nginx", text)
    assert "[flower,imaging]" in text
    assert 'ENTRYPOINT ["pflsynth"]' in text
