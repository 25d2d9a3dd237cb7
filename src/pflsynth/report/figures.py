"""Figures of the report: matplotlib drawings as SVG data URIs, small enough to be read on a phone one by one.

A method has one colour and one line style in all figures; the colours are Paul Tol's "muted" set, which the
colour-blind can tell apart (https://personal.sron.nl/~pault/). The same numbers give the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pflsynth.report.formats import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PIXELS = 372
"""Width of a figure in CSS pixels: that of a phone less its margins."""

_MUTED = ("#CC6677", "#332288", "#117733", "#88CCEE", "#882255", "#44AA99", "#AA4499", "#999933", "#DDCC77")
_DASHES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_REFERENCE_COLOUR = "#000000"
_FLOOR_COLOUR = "#7d7d7d"
_DRAWN_FONT = "DejaVu Sans"  # comes with matplotlib, and is wider than those of the readers' machines
_SHOWN_FONTS = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
_MOST_MARKERS = 4000  # of one figure as vectors; above, the markers are drawn as pixels

Dashes = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        uri: its ``data:`` address.
        width: in CSS pixels.
        height: in CSS pixels.
        text: what it shows, for those who cannot see it.
    """

    uri: str
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class Style:
    """How a method is drawn in every figure."""

    colour: str
    dashes: Dashes = "solid"
    width: float = 1.2
    order: int = 2

    @property
    def stroke_dasharray(self) -> str:
        """The dashes of a legend of line width 2, as SVG writes them; "none" for a solid line."""
        return "none" if isinstance(self.dashes, str) else " ".join(f"{2 * part:g}" for part in self.dashes[1])


@dataclass(frozen=True)
class Mark:
    """A mean with what is known of its spread, to be drawn in one line; ``None`` is not drawn.

    Attributes:
        name: the method.
        mean: over subjects.
        low: end of the 95 % interval.
        high: end of the 95 % interval.
        seed_deviation: standard deviation between seeds.
    """

    name: str
    mean: float
    low: float | None
    high: float | None
    seed_deviation: float | None


@dataclass(frozen=True)
class Curve:
    """A value after each round: mean over seeds, and the lowest and highest of a seed.

    Attributes:
        rounds: rising.
        mean: one a round.
        low: one a round.
        high: one a round.
    """

    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def method_styles(methods: Sequence[str], reference: str, floor: str) -> dict[str, Style]:
    """One style a method: the reference black and thick, the floor grey and dotted, the others by their place.

    Args:
        methods: in the comparison's order, so that a method's colour does not follow its rank.
        reference: the method that the others are compared with.
        floor: name of the floor, among ``methods`` or not.
    """
    others = [name for name in methods if name not in (reference, floor)]
    styles = {
        name: Style(_MUTED[place % len(_MUTED)], _DASHES[place // len(_MUTED) % len(_DASHES)])
        for place, name in enumerate(others)
    }
    styles[reference] = Style(_REFERENCE_COLOUR, width=2.0, order=4)
    styles[floor] = Style(_FLOOR_COLOUR, (0, (1.2, 1.2)))
    return styles


@contextmanager
def new_figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of the common width and a height in inches, with one pair of axes, in the report's style."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {
            "font.family": _DRAWN_FONT,
            "font.size": 8,
            "axes.titlesize": 8.5,
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#8a8a8a",
            "axes.linewidth": 0.7,
            "axes.axisbelow": True,
            "xtick.color": "#8a8a8a",
            "ytick.color": "#8a8a8a",
            "xtick.labelcolor": "black",
            "ytick.labelcolor": "black",
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "svg.fonttype": "none",
            "svg.hashsalt": "pflsynth",
            "path.simplify": True,
            "text.parse_math": False,
        }
    ):
        figure = Figure(figsize=(WIDTH_PIXELS / 96, height), layout="constrained")
        yield figure, figure.subplots()


def picture(figure: Figure, text: str) -> Picture:
    """Save a figure as SVG; ``text`` says what it shows."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().replace(f"'{_DRAWN_FONT}'", _SHOWN_FONTS).encode()
    uri = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    width, height = (round(96 * float(inches)) for inches in figure.get_size_inches())
    return Picture(uri, width, height, text)


def draw_scores(marks: Sequence[Mark], styles: Mapping[str, Style], floor: str, label: str, digits: int) -> Picture:
    """Means of all methods with their intervals, one below the other; the floor is a line from top to bottom.

    Args:
        marks: from the top down; at least one.
        styles: one a mark.
        floor: name of the mark that is the floor.
        label: the score and its unit.
        digits: decimals of the means beside the marks.
    """
    with new_figure(0.25 * len(marks) + 0.55) as (figure, axes):
        for place, mark in enumerate(marks):
            style = styles[mark.name]
            if mark.name == floor and math.isfinite(mark.mean):
                axes.axvline(mark.mean, color=style.colour, linestyle=style.dashes, linewidth=1, zorder=1)
            if mark.seed_deviation is not None:
                ends = (mark.mean - mark.seed_deviation, mark.mean + mark.seed_deviation)
                axes.plot(ends, (place, place), color=style.colour, alpha=0.3, linewidth=6, solid_capstyle="butt")
            if mark.low is not None and mark.high is not None:
                axes.plot((mark.low, mark.high), (place, place), color=style.colour, linewidth=1.5)
            axes.plot(mark.mean, place, "o", color=style.colour, markersize=5, zorder=5)
            axes.annotate(
                number(mark.mean, digits),
                (1.01, place),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                annotation_clip=False,
            )
        name_rows(axes, [mark.name for mark in marks])
        axes.set_xlabel(label)
        means = ", ".join(f"{mark.name} {number(mark.mean, digits)}" for mark in marks)
        return picture(figure, f"{label}, mean and 95 % interval: {means}")


def draw_differences(
    values: Mapping[str, Sequence[float]], styles: Mapping[str, Style], reference: str, label: str, digits: int
) -> Picture:
    """How much better the reference is than each method, one dot a subject; the mean is an upright stroke.

    Args:
        values: reference minus method for each subject, such that more is better; from the top down, at least one.
        styles: one a method.
        reference: its name.
        label: the score and its unit.
        digits: decimals of the means in words.
    """
    with new_figure(0.25 * len(values) + 0.55) as (figure, axes):
        axes.axvline(0, color="#555555", linewidth=0.8, zorder=1)
        many = sum(map(len, values.values())) > _MOST_MARKERS
        for place, (name, own) in enumerate(values.items()):
            spread = _spread(len(own))
            axes.plot(
                *(own, place + spread, "o"),
                color=styles[name].colour,
                markersize=3.2,
                markeredgewidth=0,
                alpha=0.6,
                rasterized=many,
            )
            mean = float(np.mean(own))
            axes.plot((mean, mean), (place - 0.36, place + 0.36), color="black", linewidth=1.6, zorder=5)
        name_rows(axes, list(values))
        axes.set_xlabel(f"← method better    {label}    {reference} better →")
        means = ", ".join(f"{name} {number(float(np.mean(own)), digits)}" for name, own in values.items())
        return picture(figure, f"{reference} minus each method, subject by subject, {label}; means: {means}")


def draw_curves(
    curves: Mapping[str, Curve],
    styles: Mapping[str, Style],
    title: str,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> Picture:
    """Values by round, one line a method, with a band between the lowest and highest seed where there are several.

    Args:
        curves: one a method.
        styles: one a method.
        title: above the axes.
        label: of the values.
        limits: ends of the axis of values; default: by the values.
        logarithmic: whether that axis is, which needs values above 0.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    with new_figure(2.15) as (figure, axes):
        for name, curve in curves.items():
            style = styles[name]
            if curve.low != curve.high:
                axes.fill_between(curve.rounds, curve.low, curve.high, color=style.colour, alpha=0.15, linewidth=0)
            (line,) = axes.plot(curve.rounds, curve.mean, color=style.colour, linewidth=style.width)
            line.set(linestyle=style.dashes, zorder=style.order, marker="o" if len(curve.rounds) == 1 else "none")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if limits is not None:
            axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_title(title, loc="left")
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        last = ", ".join(f"{name} {curve.mean[-1]:.3g}" for name, curve in curves.items() if curve.mean)
        return picture(figure, f"{title}: {label} by round; last: {last}")


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """One row a name, from the top down, with pale lines from the names to the marks."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", color="#efefef", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _spread(count: int) -> np.ndarray:
    """Offsets (count,) within ±0.28 that keep neighbouring dots apart, the same each time."""
    golden = (math.sqrt(5) - 1) / 2
    offsets: np.ndarray = 0.56 * ((np.arange(count) * golden) % 1) - 0.28
    return offsets
