"""The demonstration: a phantom of four hospitals, and the same commands that a user would run on own data."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from pflsynth.cli import app
from pflsynth.config_files import load_config
from pflsynth.console import Terminal
from pflsynth.data.phantom import write_phantom
from pflsynth.data.slices import SliceStore
from pflsynth.errors import UsageError
from pflsynth.federation.personalised import open_personalised
from pflsynth.files import write_atomic
from pflsynth.report.sheet import draw_sheet, sheet_rows

MARKER = ".pflsynth-demo"


def run_demo(
    folder: Path,
    *,
    subjects: int = 8,
    overrides: Sequence[str] = (),
    force: bool = False,
    as_json: bool = False,
) -> None:
    """Write the phantom as NIfTI, then prepare, train, synthesise and evaluate; end with a table and a picture sheet.

    Args:
        folder: made anew.
        subjects: subjects of each hospital, at least 4.
        overrides: ``key=value`` texts for the demonstration's configuration.
        force: delete the folder of an earlier demonstration first.
        as_json: print where everything is as JSON on stdout, and all texts on stderr.

    Raises:
        UsageError: if the folder exists (without ``force``), or holds something else than a demonstration.
    """
    terminal = Terminal(as_json)
    _make_folder(folder, force)
    config, prepared, run = folder / "federation.toml", folder / "prepared", folder / "run"
    sheet, scores = folder / "sheet.png", run / "evaluation" / "test" / "scores.csv"
    write_atomic(config, resources.files("pflsynth").joinpath("demo.toml").read_bytes())
    with terminal.progress() as bar:
        task = bar.add_task("phantom", total=None)
        write_phantom(folder / "data", subjects=subjects, progress=lambda text: bar.update(task, description=text))
    terminal.say(f"wrote a phantom of four hospitals with {subjects} subjects each: {folder / 'data'}")
    settings = [word for override in overrides for word in ("--set", override)]
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        _verb(terminal, "check", config, *settings)
        _verb(terminal, "prepare", config, "--out", prepared, *settings)
        _verb(terminal, "train", config, "--prepared", prepared, "--run", run, *settings)
        _synthesize_test_subjects(terminal, folder, config, prepared, run)
        _verb(terminal, "evaluate", "--run", run, "--split", "test")
    sites = load_config(config).federation.site_names
    rows = [
        row for site in sites for row in sheet_rows(open_personalised(run, site), SliceStore(prepared / site), "test")
    ]
    draw_sheet(
        rows, sheet, "First test subject of every phantom site and task: personalised models after the last round"
    )
    terminal.say(f"\nsynthesised volumes: {folder / 'synthesised'}")
    terminal.say(f"picture sheet:       {sheet}")
    terminal.document({"scores": str(scores), "sheet": str(sheet), "synthesised": str(folder / "synthesised")})


def _make_folder(folder: Path, force: bool) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise UsageError(f"{folder}: exists already and is no demonstration; choose another --out")
        if not force:
            raise UsageError(f"{folder}: exists already; choose another --out, or replace it with --force")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _synthesize_test_subjects(terminal: Terminal, folder: Path, config: Path, prepared: Path, run: Path) -> None:
    """Synthesise each task's target for the first test subject of every site."""
    federation = load_config(config).federation
    for site in federation.site_names:
        subject = SliceStore(prepared / site).subjects("test")[0].name
        for task in federation.sites[site].tasks:
            source = folder / "data" / site / subject / "anat" / f"{subject}_{task.source}.nii.gz"
            out = folder / "synthesised" / site / f"{subject}_from-{task.source}_{task.target}.nii.gz"
            _verb(terminal, "synthesize", source, "--task", task, "--site", site, "--run", run, "--out", out)


def _verb(terminal: Terminal, *arguments: object) -> None:
    """Show a command and run it."""
    words = [str(argument) for argument in arguments]
    terminal.say(f"\n$ pflsynth {shlex.join(words)}")
    app(args=words, prog_name="pflsynth", standalone_mode=False)
