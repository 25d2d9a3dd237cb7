"""The command line: one verb, one function.

Exit codes: 0 ok, 1 system, 2 usage, 3 data, 4 model, 5 network, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import click
import typer

from pflsynth import __version__
from pflsynth.comparison_verbs import compare, report
from pflsynth.config import SplitName
from pflsynth.data_verbs import check, prepare
from pflsynth.deployment_verbs import keys, unseal
from pflsynth.errors import PflsynthError, UsageError
from pflsynth.options import (
    AsJson,
    Device,
    Fid,
    FidSha256,
    Force,
    Lpips,
    LpipsHeads,
    LpipsHeadsSha256,
    LpipsSha256,
    Overrides,
    PreparedOrRuns,
    RunFolder,
    feature_files,
)
from pflsynth.serving_verbs import join, serve, status
from pflsynth.synthesis_verbs import export, synthesize

app = typer.Typer(
    name="pflsynth",
    help="Personalised federated synthesis of MRI contrasts: NIfTI in, NIfTI out, images stay at their hospital.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def pflsynth(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    """Personalised federated synthesis of MRI contrasts: NIfTI in, NIfTI out, images stay at their hospital."""
    if version:
        print(f"pflsynth {__version__}")
        raise typer.Exit


app.command()(check)
app.command()(prepare)
app.command()(synthesize)
app.command()(export)
app.command()(compare)
app.command()(report)
app.command()(keys)
app.command()(unseal)
app.command()(serve)
app.command()(join)
app.command()(status)


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="federation.toml; not with --resume")
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option("--prepared", help="default: prepared; with --resume, the run's")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="run folder; default: runs/<name>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last whole round of --run")] = False,
    force: Force = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the federation in one process, site after site.

    \b
    Examples:
      pflsynth train federation.toml --prepared prepared --run runs/first
      pflsynth train --resume --run runs/first
    """
    from pflsynth import training
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal, TrainingProgress
    from pflsynth.runs import RunDirectory

    terminal = Terminal(as_json)
    if resume and force:
        raise UsageError("--resume goes on with a run and --force starts it over; give one of them")
    if overrides and config is None:
        raise UsageError("--set changes a configuration; give the federation.toml too")
    wanted = load_config(config, overrides or ()).federation if config is not None else None
    if run is None and wanted is not None:
        run = Path("runs") / wanted.name
    if resume:
        if run is None:
            raise UsageError("--resume needs --run, the folder of the run to go on with")
        _, agreed = RunDirectory.open(run)
        if wanted is not None:
            training.check_same_agreement(run, agreed, wanted)
        start = partial(training.resume, run, prepared=prepared)
    else:
        if run is None or wanted is None:
            raise UsageError("give a federation.toml, or --resume with --run")
        agreed = wanted
        start = partial(training.train, wanted, prepared or Path("prepared"), run, force=force)
    try:
        with terminal.progress() as bar:
            state = start(observer=TrainingProgress(terminal, bar, agreed.rounds))
    except KeyboardInterrupt:
        if (run / "state.json").is_file():
            terminal.say(f"stopped; go on with: pflsynth train --resume --run {run}")
        raise
    terminal.say(f"trained {state.round} rounds; personalised models are in {run}/sites")
    terminal.document({"run": str(run), **asdict(state)})


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[SplitName, typer.Option("--split", help="subjects to score")] = "test",
    prepared: PreparedOrRuns = None,
    out: Annotated[Path | None, typer.Option("--out", help="default: RUN/evaluation/SPLIT/scores.csv")] = None,
    lpips: Lpips = None,
    lpips_sha256: LpipsSha256 = None,
    lpips_heads: LpipsHeads = None,
    lpips_heads_sha256: LpipsHeadsSha256 = None,
    fid: Fid = None,
    fid_sha256: FidSha256 = None,
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Score the personalised model of every site: PSNR and SSIM per subject, beside copying the source.

    LPIPS and FID are computed with weights that you provide: docs/compare.md says which, and from where.

    \b
    Examples:
      pflsynth evaluate --run runs/first --split test
      pflsynth evaluate --run runs/first --fid inception-2015-12-05.pt --fid-sha256 HEX
    """
    from pflsynth.console import Terminal, feature_table, score_table
    from pflsynth.evaluation.evaluate import evaluate_run, summarize, write_evaluation
    from pflsynth.evaluation.feature_files import FILES
    from pflsynth.runs import RunDirectory

    terminal = Terminal(as_json)
    files = feature_files((lpips, lpips_sha256), (lpips_heads, lpips_heads_sha256), (fid, fid_sha256))
    path = out or RunDirectory(run).evaluation_folder(split) / "scores.csv"
    for existing in (path, *(path.with_name(name) for name in FILES)):
        if existing.exists() and not force:
            raise UsageError(f"{existing}: exists already; choose another --out or overwrite with --force")
    with terminal.progress() as bar:
        task = bar.add_task("evaluate", total=None)
        evaluation = evaluate_run(
            run, split, prepared, device, lambda site: bar.update(task, description=f"evaluate {site}"), files
        )
    write_evaluation(path, evaluation)
    scores, fids = evaluation.scores, evaluation.fids
    summaries = summarize(scores)
    title = f"personalised model, round {scores[0].round}, {split} subjects: mean ± SD over subjects"
    terminal.table(score_table(summaries, title))
    if files.weights.by_metric():
        terminal.table(feature_table(summaries, fids))
    terminal.say(f"per subject: {path}")
    document: dict[str, object] = {
        "scores": [asdict(score) for score in scores],
        "summary": [asdict(row) for row in summaries],
    }
    if files.weights.by_metric():
        document |= {"fid": [asdict(row) for row in fids], "weights": evaluation.weights.model_dump()}
    terminal.document(document)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder to write")] = Path("demo"),
    subjects: Annotated[int, typer.Option("--subjects", min=4, help="subjects of each hospital")] = 8,
    force: Force = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a phantom of four hospitals and do with it all that one would do with own data.

    \b
    Example:
      pflsynth demo --out demo
    """
    from pflsynth.demo import run_demo

    run_demo(out, subjects=subjects, overrides=overrides or (), force=force, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; print errors as sentences, never as tracebacks, and exit with the documented code."""
    try:
        code = app(args=arguments, prog_name="pflsynth", standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except PflsynthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
