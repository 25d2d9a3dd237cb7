"""The rule table: which contrast a series is, told by its protocol tags; the first rule that fits decides."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pflsynth.config import CONTRASTS
from pflsynth.dicom.header import AGENT_TAG, NUMBER_TAGS, TEXT_TAGS
from pflsynth.dicom.series import Series
from pflsynth.errors import UsageError

SKIP = "skip"
"""The "contrast" of series that are not wanted."""

SHIPPED = "rules.toml"

_TEXTS = (*TEXT_TAGS, "plane")
_NUMBERS = (*NUMBER_TAGS, "images")
_CONDITIONS = (*_TEXTS, *_NUMBERS, AGENT_TAG)


@dataclass(frozen=True)
class Rule:
    """One rule; a series fits it if every condition holds.

    Attributes:
        name: what reports call it.
        contrast: T1w, T1ce, T2w, PDw, FLAIR, or "skip".
        patterns: regular expressions, each searched in a text tag without regard to case. A missing tag is "".
        ranges: lowest and highest value (inclusive) of a number tag. A missing tag is in no range.
        agent: whether a contrast agent must (or must not) be named; None: either.
        own: whether it is from the user's file.
    """

    name: str
    contrast: str
    patterns: Mapping[str, re.Pattern[str]]
    ranges: Mapping[str, tuple[float, float]]
    agent: bool | None
    own: bool

    def fits(self, series: Series) -> bool:
        """Whether every condition holds for a series."""
        texts, numbers = series.texts, series.numbers
        return (
            (self.agent is None or self.agent == series.agent)
            and all(low <= numbers.get(tag, math.nan) <= high for tag, (low, high) in self.ranges.items())
            and all(_is_in(pattern, texts[tag]) for tag, pattern in self.patterns.items())
        )


@dataclass(frozen=True)
class RuleTable:
    """Rules in the order in which they are tried."""

    rules: tuple[Rule, ...]

    def find(self, series: Series) -> Rule | None:
        """The first rule that fits a series, or None."""
        return next((rule for rule in self.rules if rule.fits(series)), None)


def load_rules(path: Path | None = None) -> RuleTable:
    """Read a rule file; the shipped rules follow its own unless it says ``shipped = false``.

    Args:
        path: a TOML file of ``[[rule]]`` tables, or None for the shipped rules alone.

    Raises:
        UsageError: no such file, not TOML, or wrong rules (all of them are told).
    """
    shipped = tomllib.loads(resources.files("pflsynth.dicom").joinpath(SHIPPED).read_text(encoding="utf-8"))
    if path is None:
        return RuleTable(_rules(shipped, SHIPPED, own=False))
    content = _read(path)
    own = _rules(content, str(path), own=True)
    follows = content.get("shipped", True)
    return RuleTable((*own, *_rules(shipped, SHIPPED, own=False)) if follows else own)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give the path of a rule file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = "; write regular expressions in single quotes" if "escape" in str(error) else ""
        raise UsageError(f"{path}: is not TOML: {error}{hint}") from None


def _rules(content: Mapping[str, Any], place: str, own: bool) -> tuple[Rule, ...]:
    problems = [
        f'unknown key "{key}"; {_hint(key, ("rule", "shipped"))}' for key in content if key not in ("rule", "shipped")
    ]
    if not isinstance(content.get("shipped", True), bool):
        problems.append(f"shipped = {content['shipped']!r}: true or false is wanted")
    tables = content.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        problems.append("rule: write each rule under a line [[rule]]")
        tables = []
    elif not tables:
        problems.append("it has no rules; write each under a line [[rule]]")
    for number, table in enumerate(tables, start=1):
        problems += [f"rule {number} ({table.get('name', 'no name')}): {problem}" for problem in _problems(table)]
    if problems:
        raise UsageError(f"{place}: " + "; ".join(problems))
    return tuple(_rule(table, own) for table in tables)


def _rule(table: Mapping[str, Any], own: bool) -> Rule:
    return Rule(
        name=table["name"],
        contrast=table["contrast"],
        patterns={tag: re.compile(table[tag], re.IGNORECASE) for tag in _TEXTS if tag in table},
        ranges={
            tag: (table[tag].get("min", -math.inf), table[tag].get("max", math.inf)) for tag in _NUMBERS if tag in table
        },
        agent=table.get(AGENT_TAG),
        own=own,
    )


def _problems(table: Mapping[str, Any]) -> list[str]:
    allowed = ("name", "contrast", *_CONDITIONS)
    problems = [f'unknown key "{key}"; {_hint(key, allowed)}' for key in table if key not in allowed]
    if not isinstance(table.get("name"), str) or not table["name"].strip():
        problems.append('name = "..." is missing, which reports call the rule by')
    contrast = table.get("contrast")
    if contrast not in (*CONTRASTS, SKIP):
        found = "is missing" if contrast is None else f"= {contrast!r}"
        problems.append(f"contrast {found}; {_hint(str(contrast), (*CONTRASTS, SKIP))}")
    if not any(tag in table for tag in _CONDITIONS):
        problems.append(f"it has no condition; give at least one of {', '.join(_CONDITIONS)}")
    problems += [problem for tag in _TEXTS if tag in table for problem in _pattern_problems(tag, table[tag])]
    problems += [problem for tag in _NUMBERS if tag in table for problem in _range_problems(tag, table[tag])]
    if not isinstance(table.get(AGENT_TAG, True), bool):
        problems.append(f"{AGENT_TAG} = {table[AGENT_TAG]!r}: true (an agent is named) or false is wanted")
    return problems


def _pattern_problems(tag: str, value: object) -> list[str]:
    if not isinstance(value, str) or not value:
        return [f"{tag} = {value!r}: a regular expression is wanted, in single quotes"]
    if not value.isprintable():
        return [
            f"{tag} = {value!r}: in double quotes, TOML reads \\b and the like by itself; write it in single quotes"
        ]
    try:
        re.compile(value)
    except re.error as error:
        return [f"{tag} = '{value}': is not a regular expression ({error})"]
    return []


def _range_problems(tag: str, value: object) -> list[str]:
    wanted = f"{tag} = {value!r}: a range is wanted, such as {{ min = 10, max = 500 }}, or one of the two"
    if not isinstance(value, dict) or not value:
        return [wanted]
    unknown = [
        f'{tag}: unknown key "{key}"; {_hint(key, ("min", "max"))}' for key in value if key not in ("min", "max")
    ]
    limits = [limit for key, limit in value.items() if key in ("min", "max")]
    if any(isinstance(limit, bool) or not isinstance(limit, (int, float)) or math.isnan(limit) for limit in limits):
        return [*unknown, wanted]
    if value.get("min", -math.inf) > value.get("max", math.inf):
        return [*unknown, f"{tag}: min = {value['min']} is above max = {value['max']}"]
    return unknown


def _hint(found: str, allowed: Sequence[str]) -> str:
    by_case = {word.lower(): word for word in allowed}
    close = difflib.get_close_matches(found.lower(), by_case, n=1)
    return f'did you mean "{by_case[close[0]]}"?' if close else f"allowed here: {', '.join(allowed)}"


def _is_in(pattern: re.Pattern[str], text: str) -> bool:
    """Search as it stands, and with blanks for underscores, so that ``\\b`` finds the words of "t1_post_gd"."""
    return pattern.search(text) is not None or pattern.search(text.replace("_", " ")) is not None
