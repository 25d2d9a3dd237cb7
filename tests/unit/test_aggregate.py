import pytest
import torch

from pflsynth.federation.aggregate import Aggregation, Update, UpdateRefused

CURRENT = {"a": torch.zeros(2), "b": torch.full((1,), 7.0)}
HOLDERS = {"x": frozenset({"a", "b"}), "y": frozenset({"a"}), "z": frozenset({"a", "b"})}


def update(site: str, slices: int, **tensors: list[float]) -> Update:
    return Update(site, 1, {name: torch.tensor(values) for name, values in tensors.items()}, slices)


def test_mean_worked_by_hand() -> None:
    aggregation = Aggregation(CURRENT, HOLDERS)
    aggregation.add(update("x", 3, a=[1.0, -2.0], b=[4.0]))
    aggregation.add(update("y", 1, a=[5.0, 2.0]))
    result = aggregation.result()
    assert result["a"].tolist() == [2.0, -1.0]  # (3*1 + 1*5) / 4, (3*-2 + 1*2) / 4
    assert result["b"].tolist() == [4.0]  # site y does not hold b
    assert result["a"].dtype == torch.float32


def test_a_tensor_without_holders_keeps_its_value() -> None:
    aggregation = Aggregation(CURRENT, HOLDERS)
    aggregation.add(update("y", 1, a=[1.0, 1.0]))
    assert aggregation.result()["b"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (update("w", 1, a=[0.0, 0.0]), "not in the agreement"),
        (update("z", 0, a=[0.0, 0.0], b=[0.0]), "0 slices"),
        (update("z", 2**24, a=[0.0, 0.0], b=[0.0]), "16777216 slices"),
        (update("z", 1, a=[0.0, 0.0]), r"missing tensors \['b'\]"),
        (update("y", 1, a=[0.0, 0.0], b=[0.0]), r"unknown tensors \['b'\]"),
        (update("y", 1, a=[0.0]), r"tensor a: shape \(1,\), wanted \(2,\)"),
        (update("y", 1, a=[0.0, float("nan")]), "tensor a: holds NaN"),
        (update("y", 1, a=[float("-inf"), 0.0]), "tensor a: holds NaN, Inf"),
        (update("y", 1, a=[0.0, -(2.0**14)]), "tensor a: value 16384 is not below"),
        (Update("y", 1, {"a": torch.zeros(2, dtype=torch.int64)}, 1), "no floating-point"),
    ],
)
def test_bad_updates_are_refused_whole(bad: Update, message: str) -> None:
    aggregation = Aggregation(CURRENT, HOLDERS)
    aggregation.add(update("x", 2, a=[1.0, 1.0], b=[1.0]))
    with pytest.raises(UpdateRefused, match=message) as refusal:
        aggregation.add(bad)
    assert f"site {bad.site}" in str(refusal.value)
    assert aggregation.accepted == {"x": 2}
    assert aggregation.result()["a"].tolist() == [1.0, 1.0]


def test_a_site_counts_once() -> None:
    aggregation = Aggregation(CURRENT, HOLDERS)
    aggregation.add(update("y", 1, a=[1.0, 1.0]))
    with pytest.raises(UpdateRefused, match="already accepted"):
        aggregation.add(update("y", 1, a=[2.0, 2.0]))
