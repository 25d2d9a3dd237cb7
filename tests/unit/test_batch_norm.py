"""Re-estimation of batch-norm statistics: a cumulative mean over the given batches, worked by hand."""

from __future__ import annotations

import torch
from torch import nn

from pflsynth.federation.batch_norm import batch_norms, reestimate_batch_norm

CODE = torch.zeros(1, 3)


class Tiny(nn.Module):
    """Batch norm of the image itself, dropout, and batch norm of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(1)
        self.second.momentum = 0.3
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(self.first(image))
        self.seen.append(hidden.detach().clone())
        return self.second(2 * hidden)


def images(*rows: list[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.tensor(row).reshape(1, 1, 1, -1), CODE) for row in rows]


def settled(*rows: list[float]) -> Tiny:
    network = Tiny()
    with torch.no_grad():
        network.first.running_mean.fill_(50.0)
        network.first.running_var.fill_(9.0)
        network.first.num_batches_tracked.fill_(7)
    reestimate_batch_norm(network, images(*rows))
    return network


def test_statistics_are_the_cumulative_mean_over_batches() -> None:
    network = settled([1.0, 3.0], [2.0, 8.0], [0.0, 4.0])
    # means 2, 5, 2; unbiased variances 2, 18, 8
    torch.testing.assert_close(network.first.running_mean, torch.tensor([3.0]))
    torch.testing.assert_close(network.first.running_var, torch.tensor([28 / 3]))
    # each batch, normalised by itself, is -1 and 1: twice that has mean 0 and unbiased variance 8
    torch.testing.assert_close(network.second.running_mean, torch.tensor([0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(network.second.running_var, torch.tensor([8.0]), atol=1e-3, rtol=0)
    assert network.first.num_batches_tracked.item() == 3


def test_dropout_is_off_during_the_pass() -> None:
    for hidden in settled([1.0, 3.0], [2.0, 8.0]).seen:
        torch.testing.assert_close(hidden.flatten(), torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0)


def test_the_order_of_batches_changes_nothing_but_rounding() -> None:
    one, other = settled([1.0, 3.0], [2.0, 8.0]), settled([2.0, 8.0], [1.0, 3.0])
    torch.testing.assert_close(one.first.running_var, other.first.running_var)


def test_the_pass_is_deterministic_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    one, again = (settled([1.0, 3.0], [2.0, 8.5]).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert torch.equal(before, torch.get_rng_state())


def test_momentum_is_restored_and_evaluation_mode_left() -> None:
    network = settled([1.0, 3.0])
    assert [norm.momentum for norm in batch_norms(network)] == [0.1, 0.3]
    assert not any(module.training for module in network.modules())
    before = network.first.running_mean.clone()
    network(*images([7.0, 9.0])[0])
    assert torch.equal(network.first.running_mean, before)


def test_weights_stay_and_need_no_gradient() -> None:
    network = Tiny()
    network.first.weight.data.fill_(3.0)
    reestimate_batch_norm(network, images([1.0, 3.0]))
    assert network.first.weight.item() == 3.0
    assert all(parameter.grad is None for parameter in network.parameters())
