"""What the numbers of a comparison are of, what its methods had to work with, and what was not computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pflsynth.evaluation.comparison import Budget, Comparison, against, rows
from pflsynth.evaluation.comparison_files import base_agreement
from pflsynth.evaluation.feature_tables import comparison_weights, fid_rows
from pflsynth.evaluation.table_facts import MAIN_METRICS
from pflsynth.report.formats import counted, label, listed, task_text
from pflsynth.report.sections import Differences, count_text

Fact = tuple[str, str]
"""A name and what is told of it."""


def facts(comparison: Comparison) -> list[Fact]:
    """What all numbers of the page are of."""
    config = comparison.config
    people: dict[str, set[str]] = {}
    for score in comparison.entries[0].scores:
        people.setdefault(score.site, set()).add(score.subject)
    spacing = f" of {config.image.spacing_mm:g} mm" if config.image.spacing_mm is not None else ""
    rounds = sorted({entry.round for entry in comparison.entries if entry.run is not None})
    told = [
        ("split", comparison.split),
        ("subjects", listed([f"{site} {len(own)}" for site, own in sorted(people.items())])),
        ("model", f"each site's personalised model after round {listed(list(map(str, rounds)))}"),
        ("seeds", listed(list(map(str, comparison.seeds)))),
        (
            "slices",
            f"{config.image.size} × {config.image.size} pixels{spacing}, normalised by {config.intensity.normalizer}",
        ),
    ]
    told += [
        (f"weights of {metric}", f"SHA-256 {own}") for metric, own in comparison_weights(comparison).by_metric().items()
    ]
    return told + ([("held-out site", comparison.held_out)] if comparison.held_out is not None else [])


def agreement(comparison: Comparison) -> list[Fact]:
    """The agreement that all runs have in common: dotted keys and their values as text."""
    return _flat(base_agreement(comparison.config))


def budget_sentence(budgets: Mapping[str, Sequence[Budget]]) -> str:
    """Whether all methods had the same rounds and slices, and how many."""
    given = {(own[0].rounds, own[0].all_slices) for own in budgets.values()}
    if len(given) > 1:
        return "The methods did not have the same budget."
    (rounds, slices), *_ = given
    seen = "" if slices is None else f" and {count_text(slices)} training slices seen by all sites together"
    return f"Equal for every method: {counted(rounds, 'round')}{seen}, with the same data, order and seeds."


def not_computed(comparison: Comparison, differences: Mapping[str, Differences]) -> list[Fact]:
    """What the page has no number for, and why."""
    missing = []
    computed = {
        "FID": {row.method for row in fid_rows(comparison)},
        "LPIPS": {row.method for row in rows(comparison, "lpips", "all")},
    }
    for metric, found in computed.items():
        lacking = [method for method in comparison.methods if method not in found]
        if lacking:
            way = f"give pflsynth compare a file of weights with --{metric.lower()} and --{metric.lower()}-sha256"
            missing.append((metric, f"not computed for {listed(lacking)}; {way}"))
    if len(comparison.seeds) == 1:
        missing.append(("Spread between seeds", "there is one seed"))
    for metric in MAIN_METRICS:
        for method, test in against(comparison, metric, comparison.reference):
            if test.reason is not None:
                missing.append((f"p of {label(metric)}, {comparison.reference} against {method}", test.reason))
        own = differences[metric]
        for reason, count in own.untested.items():
            missing.append((f"p of {label(metric)} in {count} of {own.tests} tests at sites and tasks", reason))
    return missing


def _flat(table: Mapping[str, Any], above: str = "") -> list[Fact]:
    entries: list[Fact] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            entries += _flat(value, f"{above}{key}.")
        elif isinstance(value, list | tuple):
            entries.append((f"{above}{key}", ", ".join(task_text(str(own)) for own in value) or "none"))
        else:
            entries.append((f"{above}{key}", "not set" if value is None else str(value)))
    return entries
