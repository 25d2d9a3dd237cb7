"""The picture sheet: source, synthesised, real and error for every site and task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pflsynth.config import SplitName
from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.metrics import psnr, to_unit
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import write_atomic

ERROR_SCALE = 0.25
COLUMNS = ("source", "synthesised", "real", f"|error| (0 to {ERROR_SCALE})")


@dataclass(frozen=True)
class SheetRow:
    """One slice of one subject and task; images (H, W) in [0, 1]."""

    site: str
    task: str
    subject: str
    source: np.ndarray
    synthesised: np.ndarray
    real: np.ndarray


def sheet_rows(model: PersonalisedModel, store: SliceStore, split: SplitName) -> list[SheetRow]:
    """For each task of the site: the first subject of the split that has both contrasts, the slice with most head."""
    rows = []
    for task in model.config.sites[model.site].tasks:
        subject = next((subject for subject in store.subjects(split) if subject.serves(task)), None)
        if subject is None:
            continue
        index = int(store.mask(subject.name).sum(axis=(1, 2)).argmax())
        source = store.slices(subject.name, task.source)[index]
        real = store.slices(subject.name, task.target)[index]
        output = model.synthesize(source[None], task)[0]
        rows.append(SheetRow(model.site, str(task), subject.name, to_unit(source), to_unit(output), to_unit(real)))
    return rows


def draw_sheet(rows: Sequence[SheetRow], path: Path, title: str) -> None:
    """Draw the rows in two blocks side by side and write a PNG.

    Args:
        rows: at least one.
        path: PNG to write.
        title: one line above the pictures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-len(rows) // 2) if len(rows) > 3 else len(rows)
    blocks = -(-len(rows) // lines)
    figure = Figure(figsize=(6 * blocks, 1.7 * lines + 0.6))
    axes = figure.subplots(
        lines,
        4 * blocks,
        squeeze=False,
        gridspec_kw={"left": 0.01, "right": 0.99, "bottom": 0.03, "top": 0.92, "wspace": 0.03, "hspace": 0.17},
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, row in enumerate(rows):
        block, line = divmod(number, lines)
        error = np.abs(row.synthesised - row.real)
        for column, image in enumerate((row.source, row.synthesised, row.real, error)):
            axis = axes[line, 4 * block + column]
            limit, colours = (ERROR_SCALE, "magma") if column == 3 else (1.0, "gray")
            axis.imshow(image, vmin=0, vmax=limit, cmap=colours, interpolation="nearest")
            if line == 0:
                axis.set_title(COLUMNS[column], fontsize=8)
        caption = f"{row.site}   {row.task}   {row.subject}   PSNR {psnr(row.real, row.synthesised):.1f} dB"
        first = axes[line, 4 * block]
        first.text(0, -0.03, caption, fontsize=7.5, va="top", transform=first.transAxes)
    figure.suptitle(title, fontsize=9, y=0.985)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())
