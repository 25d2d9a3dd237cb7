"""Statistics over subjects: description with bootstrap interval, paired Wilcoxon tests, Holm's correction.

The values are one per subject (or per person), never per slice: slices of a subject are not independent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata, wilcoxon

FEWEST_PAIRS = 6
"""Fewest differing pairs that are tested: with five, no two-sided signed-rank test gets below p = 0.0625."""

RESAMPLES = 10_000
"""Bootstrap samples of an interval."""

_EQUAL = 12  # decimals kept of differences over the largest score: what is less is rounding, and would break ties


@dataclass(frozen=True)
class Description:
    """Mean of ``n`` values, their standard deviation (n - 1) and a 95 % interval of the mean, in the values' unit.

    ``deviation``, ``low`` and ``high`` are ``None`` for a single value and where a value is infinite or not a number.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedTest:
    """A two-sided Wilcoxon signed-rank test of ``n`` pairs.

    ``difference`` is the mean of one minus other, in the scores' unit. ``effect`` is the matched-pairs rank-biserial
    correlation (Kerby 2014, doi 10.2466/11.IT.3.1): the share of the rank sum that favours the one, minus the share
    that favours the other, in [-1, 1]. ``p`` is ``None`` where there is no test, and ``reason`` then says why.
    ``p_holm`` is set by :func:`with_holm`.
    """

    n: int
    difference: float
    p: float | None
    p_holm: float | None
    effect: float | None
    reason: str | None


def describe(values: Sequence[float], seed: int = 0) -> Description:
    """Describe the values of subjects: mean, standard deviation, percentile bootstrap interval of the mean.

    Args:
        values: one per subject, at least one.
        seed: of the bootstrap samples; equal values and seeds give equal bytes.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no values to describe")
    mean = _mean(values)
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return Description(len(values), mean, None, None, None)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values, dtype=np.float64)[drawn].mean(axis=1), (2.5, 97.5))
    return Description(len(values), mean, statistics.stdev(values), float(low), float(high))


def paired_test(one: Sequence[float], other: Sequence[float]) -> PairedTest:
    """Test whether the differences of pairs are symmetric about 0 (Wilcoxon signed-rank, two-sided).

    Equal pairs are left out, as Wilcoxon did. The p-value is exact up to 50 differing pairs without ties and up to 13
    with ties, and by the normal approximation above (scipy's ``method="auto"``).

    Args:
        one: scores of one method, one per subject.
        other: scores of another method, of the same subjects in the same order.

    Raises:
        ValueError: different numbers of scores.
    """
    differences = [float(left) - float(right) for left, right in zip(one, other, strict=True)]
    untested = PairedTest(len(differences), _mean(differences), None, None, None, None)
    if not all(map(math.isfinite, (*one, *other))):
        return replace(untested, reason="a score is infinite or not a number")
    if not differences:
        return replace(untested, reason="there are no pairs")
    largest = max(abs(score) for score in (*one, *other)) or 1.0
    rounded = np.round(np.asarray(differences) / largest, _EQUAL)
    differing = rounded[rounded != 0]
    if not len(differing):
        return replace(untested, reason="all pairs are equal")
    ranks = rankdata(np.abs(differing))
    test = replace(untested, effect=float(np.sum(np.sign(differing) * ranks) / np.sum(ranks)))
    if len(differing) < FEWEST_PAIRS:
        kind = "" if len(differing) == len(differences) else "unequal "
        found = f"{len(differing)} {kind}{'pair' if len(differing) == 1 else 'pairs'}"
        return replace(test, reason=f"{found}; the test needs at least {FEWEST_PAIRS}")
    return replace(test, p=float(wilcoxon(differing).pvalue))


def with_holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return the tests, in their order, with p-values corrected for their number (Holm 1979, step-down).

    The family are the tests that have a p-value; the others keep ``None``.
    """
    family = sorted((test.p, i) for i, test in enumerate(tests) if test.p is not None)
    corrected = list(tests)
    largest = 0.0
    for rank, (p, i) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - rank) * p))
        corrected[i] = replace(tests[i], p_holm=largest)
    return corrected


def _mean(values: Sequence[float]) -> float:
    """Mean; infinite or not a number where the values are."""
    if all(map(math.isfinite, values)):
        return statistics.fmean(values) if values else math.nan
    return sum(values) / len(values)
