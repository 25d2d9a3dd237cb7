"""The verbs ``compare`` and ``report``: methods side by side, and the report of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pflsynth.config import SplitName
from pflsynth.errors import DataError
from pflsynth.options import (
    AsJson,
    ConfigPath,
    DataRoot,
    Fid,
    FidSha256,
    Lpips,
    LpipsHeads,
    LpipsHeadsSha256,
    LpipsSha256,
    Overrides,
    feature_files,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from pflsynth.config import FederationConfig
    from pflsynth.console import Terminal
    from pflsynth.evaluation.comparison import Comparison
    from pflsynth.federation.rounds import RoundObserver


def compare(
    config: ConfigPath,
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B,..", help="names of methods; paper and all stand for several")
    ] = "paper",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="0,1,..", help="each method is trained once with each")
    ] = "0",
    out: Annotated[Path | None, typer.Option("--out", help="default: comparisons/<name>")] = None,
    prepared: Annotated[
        Path | None, typer.Option("--prepared", help="default: OUT/prepared, which is made if it is absent")
    ] = None,
    split: Annotated[SplitName, typer.Option("--split", help="subjects to score")] = "test",
    held_out_site: Annotated[
        str | None, typer.Option("--held-out-site", help="leave a site out of the training, and serve it afterwards")
    ] = None,
    fit_rounds: Annotated[
        int, typer.Option("--fit-rounds", min=1, help="rounds of its own training that a held-out site gets")
    ] = 5,
    lpips: Lpips = None,
    lpips_sha256: LpipsSha256 = None,
    lpips_heads: LpipsHeads = None,
    lpips_heads_sha256: LpipsHeadsSha256 = None,
    fid: Fid = None,
    fid_sha256: FidSha256 = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train methods on the same data with the same seeds and budget, then score, test and report them.

    What is there already is not done again: after any stop, or to add methods or seeds, give the command again.
    LPIPS and FID are computed with weights that you provide: docs/compare.md says which, and from where.

    \b
    Examples:
      pflsynth compare recipes/phantom-variable.toml --methods paper --seeds 0
      pflsynth compare federation.toml --methods pflsynth,fedavg,local --seeds 0,1,2 --prepared prepared
      pflsynth compare federation.toml --lpips lpips.safetensors --lpips-sha256 HEX --fid inception.pt --fid-sha256 HEX
    """
    from pflsynth import comparing
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal

    terminal = Terminal(as_json)
    base = load_config(config, overrides or (), data_root).federation
    names, numbers = comparing.chosen_methods(methods), comparing.chosen_seeds(seeds)
    features = feature_files((lpips, lpips_sha256), (lpips_heads, lpips_heads_sha256), (fid, fid_sha256))
    planned = comparing.plan(base, names, numbers, split, held_out_site, fit_rounds, features)
    folder = out or Path("comparisons") / base.name
    data = prepared if prepared is not None else _prepared(terminal, planned.base, folder / "prepared")
    epochs = base.training.local_epochs
    terminal.say(f"{len(names)} methods × {len(numbers)} seeds, each {base.rounds} rounds of {epochs} epoch(s)")
    try:
        with terminal.progress() as bar:
            observer = _Progress(terminal, bar) if base.workers == 1 else RunLines(as_json)
            comparison = comparing.compare(planned, data, folder, observer)
    except KeyboardInterrupt:
        terminal.say("stopped; give the same command again to go on")
        raise
    _show(terminal, comparison)


def report(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="folder of a finished comparison")],
    as_json: AsJson = False,
) -> None:
    """Write the tables and the report of a comparison anew.

    \b
    Example:
      pflsynth report comparisons/phantom-variable
    """
    from pflsynth import comparing
    from pflsynth.console import Terminal

    _show(Terminal(as_json), comparing.report(folder))


class _Progress:
    """A bar over runs, and the bars of the run that is trained."""

    def __init__(self, terminal: Terminal, bar: Progress):
        self._terminal, self._bar = terminal, bar
        self._runs = bar.add_task("runs", total=None)
        self._shown: list[Any] = []

    def on_run(self, method: str, seed: int, number: int, runs: int, rounds: int) -> RoundObserver:
        """Begin the bars of a run."""
        from pflsynth.console import TrainingProgress

        self._bar.update(self._runs, description=f"{method}, seed {seed}", completed=number - 1, total=runs)
        self._terminal.say(f"run {number}/{runs}: {method}, seed {seed}")
        for task in self._shown:
            self._bar.remove_task(task)
        before = set(self._bar.task_ids)
        progress = TrainingProgress(self._terminal, self._bar, rounds)
        self._shown = [task for task in self._bar.task_ids if task not in before]
        return progress


@dataclass(frozen=True)
class RunLines:
    """Lines that name their run, for runs side by side."""

    as_json: bool

    def on_run(self, method: str, seed: int, number: int, runs: int, rounds: int) -> RoundObserver:
        """Say which run begins."""
        from rich.progress import Progress

        from pflsynth.console import Terminal, TrainingProgress

        terminal = Terminal(self.as_json)
        terminal.say(f"run {number}/{runs}: {method}, seed {seed}")
        return TrainingProgress(terminal, Progress(disable=True), rounds, f"{method}, seed {seed}: ")


def _prepared(terminal: Terminal, config: FederationConfig, folder: Path) -> Path:
    """Prepare the sites that are not."""
    from pflsynth.data.manifest import MANIFEST_NAME
    from pflsynth.data_verbs import make_phantom, prepare_sites

    missing = [site for site in config.site_names if not (folder / site / MANIFEST_NAME).is_file()]
    if missing:
        make_phantom(terminal, config)
        _, errors = prepare_sites(terminal, config, missing, folder, force=False, skip_bad=False)
        if errors:
            raise DataError(
                "\n".join(
                    [*errors, "mend what is listed, or prepare with --skip-bad and give the folder as --prepared"]
                )
            )
    return folder


def _show(terminal: Terminal, comparison: Comparison) -> None:
    from pflsynth.evaluation.comparison import against, rows
    from pflsynth.evaluation.feature_tables import comparison_weights, feature_table, fid_rows
    from pflsynth.evaluation.held_out import held_out_rows, open_held_out
    from pflsynth.evaluation.tables import comparison_table, held_out_table

    terminal.table(comparison_table(comparison))
    features = feature_table(comparison)
    if features is not None:
        terminal.table(features)
    held_out = open_held_out(comparison)
    if held_out:
        terminal.table(held_out_table(held_out))
    terminal.say(f"report: {comparison.folder / 'report.html'}")
    terminal.say(f"tables: {comparison.folder / 'tables'}")
    metrics = ("psnr", "ssim", *(("lpips",) if rows(comparison, "lpips", "all") else ()))
    terminal.document(
        {
            "report": str(comparison.folder / "report.html"),
            "overall": [asdict(row) for metric in metrics for row in rows(comparison, metric, "all")],
            "tests": {
                metric: {name: asdict(test) for name, test in against(comparison, metric, comparison.reference)}
                for metric in metrics
            },
            "held_out": [asdict(row) for row in held_out_rows(held_out)],
            "fid": [asdict(row) for row in fid_rows(comparison)],
            "weights": comparison_weights(comparison).model_dump(),
        }
    )
