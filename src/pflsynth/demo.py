"""The demonstration: a phantom of four hospitals, and the same commands that a user would run on own data."""

from __future__ import annotations

import shlex
import shutil
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

SUBJECTS = 8
MARKER = "federation.toml"


def run_demo(folder: Path, *, force: bool = False) -> None:
    """Write the phantom as NIfTI, then prepare, train, evaluate and synthesise; end with a table and a picture sheet.

    Args:
        folder: made anew.
        force: delete the folder of an earlier demonstration first.

    Raises:
        UsageError: if the folder exists (without ``force``), or holds something else than a demonstration.
    """
    terminal = Terminal()
    if folder.exists() and any(folder.iterdir()):
        if not force or not (folder / MARKER).is_file():
            raise UsageError(f"{folder}: exists already; choose another --out, or replace an earlier demo with --force")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / MARKER
    write_atomic(config, resources.files("pflsynth").joinpath("demo.toml").read_bytes())
    with terminal.progress() as bar:
        task = bar.add_task("phantom", total=None)
        write_phantom(folder / "data", subjects=SUBJECTS, progress=lambda text: bar.update(task, description=text))
    terminal.say(f"phantom of four hospitals, {SUBJECTS} subjects each: {folder / 'data'}")

    prepared, run = folder / "prepared", folder / "run"
    _verb(terminal, "check", config)
    _verb(terminal, "prepare", config, "--out", prepared)
    _verb(terminal, "train", config, "--prepared", prepared, "--run", run)
    _verb(terminal, "evaluate", "--run", run, "--split", "test")
    federation = load_config(config).federation
    rows = []
    for site in federation.site_names:
        store = SliceStore(prepared / site)
        rows += sheet_rows(open_personalised(run, site), store, "test")
        subject = store.subjects("test")[0].name
        synthetic = folder / "synthesised" / site
        for path in federation.sites[site].tasks:
            source = folder / "data" / site / subject / "anat" / f"{subject}_{path.source}.nii.gz"
            out = synthetic / f"{subject}_desc-from{path.source}_{path.target}.nii.gz"
            _verb(terminal, "synthesize", source, "--task", str(path), "--site", site, "--run", run, "--out", out)
    sheet = folder / "sheet.png"
    draw_sheet(rows, sheet, "Test subjects of four phantom sites: personalised models after the last round")
    terminal.say(f"\nscores per subject  {run / 'evaluation' / 'test' / 'scores.csv'}")
    terminal.say(f"synthesised volumes {folder / 'synthesised'}")
    terminal.say(f"picture sheet       {sheet}")


def _verb(terminal: Terminal, *arguments: object) -> None:
    """Show a command and run it."""
    words = [str(argument) for argument in arguments]
    terminal.say(f"\n$ pflsynth {shlex.join(words)}")
    app(args=words, prog_name="pflsynth", standalone_mode=False)
