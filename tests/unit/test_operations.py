"""Operations of a slice, counted without computing anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pflsynth.config import code_length
from pflsynth.federation.methods import METHODS
from pflsynth.federation.operations import count_operations

from ..data_builders import federation

TASKS = {"here": ["T1w->T2w", "T2w->FLAIR"], "there": ["T1w->T2w"]}
UNCOUNTED = {"fedmm", "fedmm-rerun", "fedcycle", "fedcycle-rerun"}
"""Methods whose networks look at the numbers of a code."""


@pytest.mark.parametrize("name", METHODS)
def test_operations_of_every_method(name: str, tmp_path: Path) -> None:
    model = {"width": 8, "residual_layers": 1, "mapper_layers": 1}
    config = federation(tmp_path, TASKS, method=name, model=model, image={"size": 32})
    before = torch.get_rng_state()
    found = count_operations(METHODS[name], config)
    assert torch.equal(torch.get_rng_state(), before)
    assert (found is None) == (name in UNCOUNTED)
    if found is not None:
        assert 0 < 2 * found.forward < found.step  # forward, backward, and the discriminators


@pytest.mark.parametrize(("family", "kernel"), [("full", 49), ("lite", 9)])
def test_a_step_of_pflsynth_is_the_sum_of_its_passes(tmp_path: Path, family: str, kernel: int) -> None:
    """Generator forward and backward; discriminator twice forward and backward, and once for the generator's turn."""
    model = {"width": 8, "residual_layers": 1, "mapper_layers": 1, "family": family}
    config = federation(tmp_path, model=model, image={"size": 32})
    found = count_operations(METHODS["pflsynth"], config)
    assert found is not None
    # (out channels, in channels, kernel, out pixels) of the discriminator's convolutions
    layers = ((8, 2, 16, 256), (16, 8, 16, 64), (32, 16, 16, 16), (64, 32, 16, 9), (1, 64, 16, 4))
    first, *rest = [2 * out * into * kernel * pixels for out, into, kernel, pixels in layers]
    judge = first + sum(rest)
    own_turn = 2 * (3 * judge - first)  # no gradient for the images
    generators_turn = 2 * judge  # no gradient for its weights
    image_layer = 2 * 8 * 1 * kernel * 32 * 32
    code_layer = 2 * 512 * code_length(config.site_names, config.contrasts)
    generator = 3 * found.forward * 1e9 - image_layer - code_layer  # no gradient for the source, nor for the code
    assert found.step * 1e9 == pytest.approx(generator + own_turn + generators_turn, rel=1e-9)
