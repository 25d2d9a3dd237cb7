"""How updates are encoded: small ones worked by hand, what stays as it is, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from pflsynth.config_sections import Encoding
from pflsynth.federation.update_encoding import LEAST_ROW, SCALE, Tensors, decode, encode, sent_form

LOSSY: list[Encoding] = ["bfloat16", "int8"]


def row(*values: float) -> torch.Tensor:
    """Rows of eight numbers, filled with zeros."""
    return torch.tensor([[*values, *[0.0] * (LEAST_ROW - len(values))]])


def test_there_are_three_encodings() -> None:
    assert get_args(Encoding) == ("float32", *LOSSY)


def test_int8_by_hand() -> None:
    """Changes of 1.27, -0.634 and 0.005, the scale is 0.01: 127, -63 and (half to even) 0 or 1 steps."""
    received = {"w": row(10.0, 20.0, 30.0)}
    trained = {"w": received["w"] + row(1.27, -0.634, 0.0051)}
    sent, residual = encode("int8", trained, received, {})
    assert sent.keys() == {"w", f"w{SCALE}"}
    assert sent["w"].tolist() == row(127, -63, 1).tolist()
    assert sent[f"w{SCALE}"].tolist() == pytest.approx([0.01], rel=1e-5)
    decoded = decode("int8", sent, received)
    assert decoded["w"][0, :3].tolist() == pytest.approx([11.27, 19.37, 30.01])
    assert residual["w"][0, :3].tolist() == pytest.approx([0.0, -0.004, -0.0049], abs=3e-6)


def test_int8_rounds_half_to_even_and_each_row_by_its_own_scale() -> None:
    received = {"w": torch.zeros(3, LEAST_ROW)}
    trained = {"w": torch.cat([row(127.0, 0.5, 1.5, -2.5), row(-254.0, 1.0, 3.0, 2.0), row()])}
    sent, residual = encode("int8", trained, received, {})
    assert sent["w"][:, :4].tolist() == [[127, 0, 2, -2], [-127, 0, 2, 1], [0, 0, 0, 0]]
    assert sent[f"w{SCALE}"].tolist() == [1.0, 2.0, 0.0]
    assert residual["w"][:, :4].tolist() == [[0.0, 0.5, -0.5, -0.5], [0.0, 1.0, -1.0, 0.0], [0.0] * 4]


def test_bfloat16_by_hand() -> None:
    """A change of 1 + 2**-8 lies half way between 1 and 1 + 2**-7: it becomes 1, which is even."""
    received = {"w": row(1.0, 2.0)}
    trained = {"w": received["w"] + row(1 + 2**-8, -3 * 2**-20)}
    sent, residual = encode("bfloat16", trained, received, {})
    assert (sent.keys(), sent["w"].dtype) == ({"w"}, torch.bfloat16)
    assert sent["w"][0, :2].tolist() == [1.0, -3 * 2**-20]
    assert residual["w"].tolist() == row(2**-8).tolist()
    assert decode("bfloat16", sent, received)["w"].tolist() == row(2.0, 2 - 3 * 2**-20).tolist()


def test_what_an_update_lacked_is_in_the_next_one() -> None:
    received = {"w": row(0.0, 0.0)}
    trained = {"w": row(127.0, 0.4)}
    first, residual = encode("int8", trained, received, {})
    assert first["w"][0, :2].tolist() == [127, 0]
    second, residual = encode("int8", trained, received, residual)
    assert second["w"][0, :2].tolist() == [127, 1]  # 0.4 again, and 0.4 that are owed
    assert residual["w"][0, 1].item() == pytest.approx(-0.2)


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_is_small_is_sent_to_the_bit(encoding: Encoding) -> None:
    """Biases and batch norm (one dimension or none), and rows of fewer than eight numbers."""
    shapes = [(), (64,), (5, 7), (3, 1, 2, 2), (0, 9)]
    received = {f"t{index}": torch.full(shape, 1 / 3) for index, shape in enumerate(shapes)}
    trained = {name: tensor * 1.1 for name, tensor in received.items()}
    sent, residual = encode(encoding, trained, received, {})
    assert residual.keys() == {"t4"}  # no numbers, but long rows
    for name in ("t0", "t1", "t2", "t3"):
        assert torch.equal(sent[name], trained[name])
        assert torch.equal(decode(encoding, sent, received)[name], trained[name])


def test_float32_is_as_it_is() -> None:
    trained = {"w": row(1 / 3)}
    sent, residual = encode("float32", trained, {"w": row(1.0)}, {})
    assert (sent["w"] is trained["w"], residual) == (True, {})
    assert decode("float32", sent, {"w": row(1.0)})["w"] is trained["w"]


def test_the_form_is_that_of_an_update() -> None:
    shared = {"w": torch.ones(4, 3, 3, 3), "bias": torch.ones(4)}
    for encoding in get_args(Encoding):
        sent, form = encode(encoding, shared, shared, {})[0], sent_form(encoding, shared)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in sent.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in form.items()
        }
        assert all(tensor.device.type == "meta" for tensor in form.values())
    assert sum(tensor.nbytes for tensor in sent_form("int8", shared).values()) == 4 * 27 + 4 * 4 + 4 * 4
    assert sum(tensor.nbytes for tensor in sent_form("bfloat16", shared).values()) == 2 * 4 * 27 + 4 * 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"w": torch.zeros(2, 9)}, r"tensor w is float32 \(2, 9\), wanted int8 \(2, 9\)"),
        ({"w": torch.zeros(9, 2, dtype=torch.int8)}, r"tensor w is int8 \(9, 2\), wanted int8 \(2, 9\)"),
        ({f"w{SCALE}": None}, r"tensor w/scale is not there, wanted float32 \(2,\)"),
        ({f"w{SCALE}": torch.zeros(1)}, r"tensor w/scale is float32 \(1,\), wanted float32 \(2,\)"),
        ({"more": torch.zeros(1)}, r"tensor more is float32 \(1,\), wanted not there"),
    ],
)
def test_another_form_is_refused(change: dict[str, Any], sentence: str) -> None:
    received = {"w": torch.zeros(2, 9)}
    sent: Tensors = {**encode("int8", {"w": torch.ones(2, 9)}, received, {})[0], **change}
    with pytest.raises(ValueError, match=f"it is not encoded as int8: {sentence}"):
        decode("int8", {name: tensor for name, tensor in sent.items() if tensor is not None}, received)


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_is_no_number_stays_none(encoding: Encoding, bad: float) -> None:
    """So that the check on arrival finds it: a NaN, and changes that no float32 can hold."""
    received = {"w": row(-3e38, 1.0)}
    sent, _ = encode(encoding, {"w": row(bad, 2.0)}, received, {})
    assert not torch.isfinite(decode(encoding, sent, received)["w"][0, 0])
