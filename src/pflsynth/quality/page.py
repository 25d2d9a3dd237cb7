"""The page of ``check``: one self-contained HTML file with a strip of pictures and reasons for every subject."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pflsynth.files import write_atomic
from pflsynth.quality.findings import Finding, Level
from pflsynth.quality.thumbnails import EDGE_COLOUR, Thumbnail

LEVELS: tuple[Level, ...] = ("wrong", "suspicious", "ok")
"""From the worst to the best."""

_MARKS: dict[Level, str] = {"wrong": "✗", "suspicious": "!", "ok": "✓"}


@dataclass(frozen=True)
class Strip:
    """What the page shows of one subject.

    Attributes:
        subject: its name.
        split: "train", "validation" or "test", or None if it has none.
        findings: all of them, good and bad.
        images: one a contrast; none for a subject that cannot be drawn.
        facts: one short line, such as "142 x 180 x 50 voxels of 1 x 1 x 3 mm; 44 slices".
    """

    subject: str
    split: str | None
    findings: tuple[Finding, ...]
    images: tuple[Thumbnail, ...]
    facts: str

    @property
    def level(self) -> Level:
        """The worst level of its findings."""
        return worst_level(self.findings)


@dataclass(frozen=True)
class SitePage:
    """What the page shows of one site.

    Attributes:
        site: its name.
        findings: those about the site itself.
        strips: one a subject.
    """

    site: str
    findings: tuple[Finding, ...]
    strips: tuple[Strip, ...]

    @property
    def level(self) -> Level:
        """The worst level of the findings about the site itself and of its subjects."""
        return worst_level([*self.findings, *(finding for strip in self.strips for finding in strip.findings)])

    @property
    def ordered(self) -> list[Strip]:
        """The strips, the worst first, then by name."""
        return sorted(self.strips, key=lambda strip: (LEVELS.index(strip.level), strip.subject))

    @property
    def subject_counts(self) -> Counter[Level]:
        """How many subjects are of each level."""
        return Counter(strip.level for strip in self.strips)

    @property
    def finding_counts(self) -> Counter[tuple[str, Level]]:
        """How many findings of each check and level there are, about the site or its subjects."""
        own = [*self.findings, *(finding for strip in self.strips for finding in strip.findings)]
        return Counter((finding.check, finding.level) for finding in own)


def worst_level(findings: Iterable[Finding]) -> Level:
    """The worst level among findings; "ok" if there are none."""
    return min((finding.level for finding in findings), key=LEVELS.index, default="ok")


def write_page(path: Path, title: str, sites: Sequence[SitePage]) -> None:
    """Write the page: no request to anywhere, no script; same input, same bytes.

    Args:
        path: HTML file to write, atomically.
        title: its heading.
        sites: in the order in which they are shown.

    Raises:
        OSError: disk full, no permission, no such folder.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["png_size"] = _png_size
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    checks = sorted({check for site in sites for check, _ in site.finding_counts})
    totals: Counter[Level] = sum((site.subject_counts for site in sites), Counter())
    page = template.render(
        title=title, sites=sites, checks=checks, totals=totals, levels=LEVELS, marks=_MARKS, edge_colour=EDGE_COLOUR
    )
    # File names that are not UTF-8 reach findings as surrogates, which cannot be encoded.
    write_atomic(path, page.encode("utf-8", errors="replace"))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height, which every PNG holds in its first chunk."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
