"""Random streams depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import torch

from pflsynth.seeding import derive_seed, numpy_generator, torch_generator


def test_a_seed_is_the_top_63_bits_of_a_hash() -> None:
    digest = hashlib.sha256(b"int:3\x1fstr:ixi\x1fint:12\x1fstr:dropout").hexdigest()
    assert derive_seed(3, "ixi", 12, "dropout") == int(digest[:16], 16) // 2


def test_every_part_and_its_type_and_place_count() -> None:
    parts = [
        (0, "ixi", 1, "epoch"),
        (1, "ixi", 1, "epoch"),
        (0, "brats", 1, "epoch"),
        (0, "ixi", 2, "epoch"),
        (0, "ixi", 1, "dropout"),
        (0, "ixi", "1", "epoch"),
        (0, "ixi", 1),
        ("ixi", 0, 1, "epoch"),
        (0, "ixi1", "epoch"),
    ]
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [derive_seed(*part) for part in parts]


def test_generators_repeat_themselves_and_leave_the_global_ones_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "a").random(5))
    first, again = (torch.rand(5, generator=torch_generator(1, "a")) for _ in range(2))
    assert torch.equal(first, again)
    others = [torch.rand(5, generator=torch_generator(1, name)) for name in ("a", "b", "c")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(others, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
