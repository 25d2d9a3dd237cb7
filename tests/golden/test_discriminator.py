"""The discriminator computes the same function as the authors' public code."""

from __future__ import annotations

import torch

from pflsynth.networks.discriminator import PatchDiscriminator

from .fill import check_digests, fill, max_difference, read_arrays, read_digests


def test_the_fill_reproduces_its_digests():
    check_digests(fill("patch_discriminator"), read_digests("patch_discriminator"))


def test_output_matches(discriminator):
    golden = read_arrays("patch_discriminator")
    source, image = golden["x"].split(1, dim=1)
    with torch.no_grad():
        scores = discriminator.train()(source, image)
    assert max_difference(scores, golden["y_train"]) < 1e-3


def test_parameter_count():
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_764_609
