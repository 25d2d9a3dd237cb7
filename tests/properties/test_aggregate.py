from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pflsynth.federation.aggregate import Aggregation, Update

values = st.floats(min_value=-(2.0**14), max_value=2.0**14, exclude_min=True, exclude_max=True, width=32)
updates = st.lists(st.tuples(values, st.integers(1, 2**20)), min_size=1, max_size=8)


def aggregate(sites: list[tuple[str, float, int]]) -> torch.Tensor:
    holders = {name: frozenset({"w"}) for name, _, _ in sites}
    aggregation = Aggregation({"w": torch.zeros(())}, holders)
    for name, value, slices in sites:
        aggregation.add(Update(name, 1, {"w": torch.tensor(value)}, slices))
    return aggregation.result()["w"]


@settings(max_examples=200, deadline=None)
@given(updates, st.randoms(use_true_random=False))
def test_order_changes_no_bit(content: list[tuple[float, int]], random) -> None:
    sites = [(f"site{i}", value, slices) for i, (value, slices) in enumerate(content)]
    first = aggregate(sites)
    random.shuffle(sites)
    assert aggregate(sites).numpy().tobytes() == first.numpy().tobytes()


@settings(max_examples=200, deadline=None)
@given(updates)
def test_error_is_at_most_the_stated_one(content: list[tuple[float, int]]) -> None:
    sites = [(f"site{i}", value, slices) for i, (value, slices) in enumerate(content)]
    result = float(aggregate(sites))
    total = sum(slices for _, slices in content)
    exact = sum((Fraction(value) * slices for value, slices in content), Fraction(0)) / total
    float32_rounding = abs(float(exact)) * 2.0**-24 + 2.0**-149
    assert abs(Fraction(result) - exact) <= Fraction(2) ** -25 + Fraction(float32_rounding) * 2


@settings(max_examples=100, deadline=None)
@given(values, st.integers(1, 2**24 - 1))
def test_one_site_alone_keeps_its_value(value: float, slices: int) -> None:
    assert abs(float(aggregate([("only", value, slices)])) - value) <= 2.0**-25 + abs(value) * 2.0**-24
