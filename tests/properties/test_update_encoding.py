"""Lossy updates: how far off they are, what is owed, and that bits depend on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pflsynth.config_sections import Encoding
from pflsynth.federation.aggregate import Aggregation, Update
from pflsynth.federation.update_encoding import SCALE, Tensors, decode, encode

LOSSY = st.sampled_from(["bfloat16", "int8"])
ULP = 2.0**-23
numbers = st.floats(-1000, 1000, width=32).map(lambda value: 0.0 if abs(value) < 1e-30 else value)


def matrices(rows: int = 3) -> st.SearchStrategy[torch.Tensor]:
    """Matrices of rows of nine numbers."""
    return arrays.arrays(np.float32, (rows, 9), elements=numbers).map(lambda array: torch.from_numpy(array.copy()))


@settings(max_examples=200)
@given(LOSSY, matrices(), matrices(), matrices())
def test_decoded_and_residual_are_what_was_wanted(
    encoding: Encoding, received: torch.Tensor, trained: torch.Tensor, owed: torch.Tensor
) -> None:
    sent, residual = encode(encoding, {"w": trained}, {"w": received}, {"w": owed})
    decoded = decode(encoding, sent, {"w": received})["w"].double()
    wanted = trained.double() + owed.double()
    left = (wanted - decoded - residual["w"].double()).abs()
    assert bool((left <= residual["w"].double().abs() * ULP).all())


@settings(max_examples=200)
@given(LOSSY, matrices(), matrices())
def test_the_error_has_a_bound(encoding: Encoding, received: torch.Tensor, trained: torch.Tensor) -> None:
    """Half a step of int8, 2**-8 of the change for bfloat16; and the rounding of a float32 sum."""
    sent, residual = encode(encoding, {"w": trained}, {"w": received}, {})
    change = (trained.double() - received.double()).abs()
    step = sent[f"w{SCALE}"].double()[:, None] if encoding == "int8" else change * 2**-7
    rounding = 2 * ULP * (received.abs() + trained.abs() + change)
    assert bool((residual["w"].abs() <= step / 2 + rounding).all())


@settings(max_examples=50)
@given(LOSSY, matrices(), matrices(), matrices())
def test_equal_updates_have_equal_bytes(
    encoding: Encoding, received: torch.Tensor, trained: torch.Tensor, owed: torch.Tensor
) -> None:
    """Whatever else is in them, and however they lie in memory."""
    others = {"a": torch.ones(2, 8), "b": torch.ones(())}
    alone, residual = encode(encoding, {"w": trained}, {"w": received}, {"w": owed})
    turned = {"w": trained.T.contiguous().T, **others}
    among, again = encode(encoding, turned, {"w": received, **others}, {"w": owed})
    assert all(torch.equal(among[name], tensor) for name, tensor in alone.items())
    assert torch.equal(again["w"], residual["w"])


@settings(max_examples=50)
@given(LOSSY, matrices(1), st.lists(matrices(1), min_size=2, max_size=12))
def test_the_sum_of_what_arrives_follows_the_sum_of_what_was_learnt(
    encoding: Encoding, start: torch.Tensor, changes: list[torch.Tensor]
) -> None:
    """Off by one round's residual, however many rounds there were."""
    received, residual = {"w": start}, Tensors()
    arrived = torch.zeros(1, 9, dtype=torch.float64)
    learnt = torch.zeros(1, 9, dtype=torch.float64)
    for change in changes:
        trained = received["w"] + change
        sent, residual = encode(encoding, {"w": trained}, received, residual)
        decoded = decode(encoding, sent, received)["w"]
        arrived += decoded.double() - received["w"].double()
        learnt += trained.double() - received["w"].double()
        received = {"w": decoded}
    off = (learnt - arrived - residual["w"].double()).abs()
    assert float(off.max()) <= len(changes) * ULP * 1000


@settings(max_examples=50)
@given(LOSSY, matrices(), st.lists(matrices(), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_no_bit(
    encoding: Encoding, received: torch.Tensor, trained: list[torch.Tensor], random
) -> None:
    shared = {"w": received}
    updates = [
        Update(f"site{index}", 1, decode(encoding, encode(encoding, {"w": own}, shared, {})[0], shared), 1 + index)
        for index, own in enumerate(trained)
    ]
    holders = {update.site: frozenset({"w"}) for update in updates}
    results = []
    for _ in range(2):
        aggregation = Aggregation(shared, holders)
        for update in updates:
            aggregation.add(update)
        results.append(aggregation.result()["w"].numpy().tobytes())
        random.shuffle(updates)
    assert results[0] == results[1]
