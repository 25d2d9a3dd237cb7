"""Statistics over subjects, on examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pflsynth.evaluation.statistics import PairedTest, describe, paired_test, with_holm


def test_mean_and_deviation_of_three() -> None:
    found = describe([1.0, 2.0, 6.0])
    assert (found.n, found.mean) == (3, 3.0)
    assert found.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_the_interval_of_two_values_is_the_two_values() -> None:
    """Means of samples of {a, b} are a (1 in 4), the middle (1 in 2) and b (1 in 4)."""
    found = describe([10.0, 20.0])
    assert (found.low, found.high) == (10.0, 20.0)


def test_the_interval_of_a_large_sample_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(30, 2, 400)
    found = describe(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.02)
    assert found.high == pytest.approx(found.mean + half, abs=0.02)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for repeat in range(100):
        found = describe(random.normal(0, 1, 30).tolist(), seed=repeat)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert 86 <= covered <= 99


def test_same_values_and_seed_same_bytes_and_another_seed_another_interval() -> None:
    values = [20.1, 22.4, 19.7, 25.0, 21.3]
    assert describe(values) == describe(values, seed=0)
    other = describe(values, seed=1)
    assert other != describe(values)
    assert other.mean == describe(values).mean


def test_one_value_has_no_spread() -> None:
    found = describe([7.0])
    assert (found.n, found.mean, found.deviation, found.low, found.high) == (1, 7.0, None, None, None)


def test_equal_values_have_no_width() -> None:
    found = describe([0.25] * 5)
    assert (found.mean, found.deviation, found.low, found.high) == (0.25, 0.0, 0.25, 0.25)


def test_infinite_values_have_no_spread() -> None:
    """Equal images have an infinite PSNR."""
    found = describe([30.0, math.inf, 31.0])
    assert (found.mean, found.deviation, found.low, found.high) == (math.inf, None, None, None)
    assert math.isnan(describe([math.inf, -math.inf]).mean)
    missing = describe([30.0, math.nan])
    assert math.isnan(missing.mean)
    assert (missing.deviation, missing.low, missing.high) == (None, None, None)


def test_nothing_cannot_be_described() -> None:
    with pytest.raises(ValueError, match="no values"):
        describe([])


# ------------------------------------------------------------------------------------------------------- paired tests


def test_six_pairs_in_favour_of_one() -> None:
    """The most extreme of 2⁶ sign patterns, and its mirror image: p = 2 / 64."""
    other = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]
    one = [value + gain for value, gain in zip(other, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True)]
    found = paired_test(one, other)
    assert found.n == 6
    assert found.difference == pytest.approx(0.35)
    assert found.p == pytest.approx(2 / 64)
    assert (found.effect, found.p_holm, found.reason) == (1.0, None, None)


def test_seven_pairs_with_one_against() -> None:
    """Ranks 1 to 7, rank 2 against: rank sums 26 and 2. Sums of at most 2: {}, {1}, {2}; p = 2 · 3 / 2⁷."""
    differences = [1.0, -2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    found = paired_test(differences, [0.0] * 7)
    assert found.p == pytest.approx(6 / 128)
    assert found.effect == pytest.approx((26 - 2) / 28)


def test_ties_share_their_ranks_and_equal_pairs_are_left_out() -> None:
    """Six differing pairs, |d| = 1 1 2 3 4 5, ranks 1.5 1.5 3 4 5 6, one 1.5 against. Of 64 patterns 3 have a sum of at
    most 1.5 ({}, and either of the tied)."""
    found = paired_test([1.0, -1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0], [0.0] * 8)
    assert found.n == 8
    assert found.difference == pytest.approx(14 / 8)
    assert found.p == pytest.approx(2 * 3 / 64)
    assert found.effect == pytest.approx((19.5 - 1.5) / 21)


def test_rounding_breaks_no_ties() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 differ in their last bit, 0.1 + 0.2 and 0.3 too."""
    one, other = [0.3, 0.2, 0.1 + 0.2, 1.0, 0.8, 0.7, 0.6], [0.2, 0.1, 0.3, 0.7, 0.6, 0.4, 0.3]
    assert one[0] - other[0] != one[1] - other[1]
    found = paired_test(one, other)
    assert found.p == pytest.approx(2 / 64)  # six differing pairs
    scaled = paired_test([100 * value for value in one], [100 * value for value in other])
    assert scaled.p == found.p


def test_many_pairs() -> None:
    random = np.random.default_rng(0)
    other = random.normal(25, 2, 80)
    found = paired_test((other + random.normal(0.5, 1, 80)).tolist(), other.tolist())
    assert found.p is not None
    assert found.p < 0.001
    assert found.effect is not None
    assert 0.2 < found.effect < 0.8
    unrelated = paired_test((other + random.normal(0, 1, 80)).tolist(), other.tolist())
    assert unrelated.p is not None
    assert unrelated.p > 0.01


def test_equal_scores_are_no_test() -> None:
    found = paired_test([20.0] * 8, [20.0] * 8)
    assert found == PairedTest(8, 0.0, None, None, None, "all pairs are equal")
    assert paired_test([0.0] * 8, [0.0] * 8).reason == "all pairs are equal"


def test_too_few_pairs_are_no_test() -> None:
    found = paired_test([2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert (found.n, found.p, found.effect) == (5, None, 1.0)
    assert found.difference == pytest.approx(3.0)
    assert found.reason == "5 pairs; the test needs at least 6"
    some = paired_test([2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 7)
    assert (some.p, some.reason) == (None, "3 unequal pairs; the test needs at least 6")
    assert paired_test([1.0], [2.0]).reason == "1 pair; the test needs at least 6"
    assert paired_test([1.0, 3.0], [2.0, 3.0]).reason == "1 unequal pair; the test needs at least 6"
    none = paired_test([], [])
    assert (none.n, none.p, none.reason) == (0, None, "there are no pairs")
    assert math.isnan(none.difference)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_scores_that_are_no_numbers_are_no_test(value: float) -> None:
    found = paired_test([value, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 1, 1])
    assert (found.p, found.effect, found.reason) == (None, None, "a score is infinite or not a number")
    assert not math.isfinite(found.difference)


def test_pairs_need_partners() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_test([1.0, 2.0], [1.0])


# --------------------------------------------------------------------------------------------------------------- Holm


def with_p(p: float | None) -> PairedTest:
    return PairedTest(10, 0.5, p, None, 0.3, None if p is not None else "all pairs are equal")


def test_holm_of_four() -> None:
    """Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 and 0.04, which may not fall below 0.06."""
    corrected = with_holm([with_p(0.01), with_p(0.04), with_p(0.03), with_p(0.005)])
    assert [test.p_holm for test in corrected] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [test.p for test in corrected] == [0.01, 0.04, 0.03, 0.005]


def test_holm_counts_only_what_was_tested() -> None:
    corrected = with_holm([with_p(0.02), with_p(None), with_p(0.7)])
    assert [test.p_holm for test in corrected] == [pytest.approx(0.04), None, pytest.approx(0.7)]
    assert [test.p_holm for test in with_holm([with_p(0.6), with_p(0.7)])] == [1.0, 1.0]
    assert with_holm([]) == []
