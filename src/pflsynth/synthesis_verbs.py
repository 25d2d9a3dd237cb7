"""The verbs ``synthesize`` and ``export``: what a finished model of a site is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.options import AsJson, Device, Force, RunFolder

OwnTask = Annotated[str, typer.Option("--task", help='such as "T1w->T2w" or T1w:T2w')]
ModelSite = Annotated[str, typer.Option("--site", help="site whose personalised model is used")]


def synthesize(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="NIfTI volume of the source contrast, or a folder of them")
    ],
    task: OwnTask,
    site: ModelSite,
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="NIfTI file, or a folder if IN is one")],
    mask: Annotated[
        Path | None, typer.Option("--mask", help="brain mask of IN, if the site's data was prepared with masks")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FILE", help="let onnxruntime run this export of the model")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="threads that read and write a folder; default: the run's")
    ] = None,
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Synthesise the missing contrast of a volume, on its own grid; a folder in gives a folder out.

    \b
    Examples:
      pflsynth synthesize sub-01_T1w.nii.gz --task "T1w->T2w" --site ixi --run runs/first --out sub-01_T2w.nii.gz
      pflsynth synthesize scans --task "T1w->T2w" --site ixi --run runs/first --out synthetic --workers 2
    """
    from pflsynth.console import Terminal
    from pflsynth.federation.personalised import open_personalised
    from pflsynth.synthesis.export import open_onnx
    from pflsynth.synthesis.synthesize import synthesize_file, synthesize_folder

    terminal = Terminal(as_json)
    if not source.exists():
        raise UsageError(f"{source}: there is no such file or folder")
    model = open_personalised(run, site, device)
    wanted = model.own_task(task)
    if onnx is not None:
        model = model.with_network(wanted, open_onnx(onnx, model, wanted))
    errors: Sequence[PflsynthError] = ()
    with terminal.progress() as bar:
        shown = bar.add_task("synthesise", total=None)
        if source.is_dir():
            if mask is not None:
                raise UsageError("--mask is for one file; in a folder, each mask is looked for beside its image")
            written, errors = synthesize_folder(
                source,
                out,
                model,
                wanted,
                workers=workers or model.config.workers,
                force=force,
                on_file=lambda i, n, _: bar.update(shown, completed=i, total=n),
            )
        else:
            written = [synthesize_file(source, out, model, wanted, mask=mask, force=force)]
    for item in written:
        terminal.say(f"{item.path}: {wanted} by the model of {site}, {item.provenance['notice']}")
    terminal.document([{"path": str(item.path), **item.provenance} for item in written])
    if errors:
        raise DataError("\n".join(map(str, errors)))


def export(
    task: OwnTask,
    site: ModelSite,
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a site's personalised model for one task as ONNX: slices in, slices out, in batches of any size.

    Its metadata say site, task, agreement, intensities and grid. docs/performance.md tells how to use it.

    \b
    Examples:
      pflsynth export --task "T1w->T2w" --site ixi --run runs/first --out ixi_T1w-T2w.onnx
      pflsynth synthesize IN --task "T1w->T2w" --site ixi --run runs/first --out OUT --onnx ixi_T1w-T2w.onnx
    """
    from pflsynth.console import Terminal
    from pflsynth.federation.personalised import open_personalised
    from pflsynth.synthesis.export import export_onnx

    terminal = Terminal(as_json)
    model = open_personalised(run, site, "cpu")
    metadata = export_onnx(model, model.own_task(task), out, force=force)
    terminal.say(f"{out}: {metadata['task']} by the model of {site}, {metadata['notice']}")
    terminal.document({"path": str(out), **metadata})
