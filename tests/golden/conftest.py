"""The filled weights, computed once."""

from __future__ import annotations

import pytest
import torch

from pflsynth.networks.discriminator import PatchDiscriminator

from .fill import fill


@pytest.fixture(scope="session")
def generator_weights() -> dict[str, torch.Tensor]:
    return fill("personalized_generator")


@pytest.fixture
def discriminator() -> PatchDiscriminator:
    network = PatchDiscriminator()
    network.load_state_dict({key.replace("model.", "layers."): w for key, w in fill("patch_discriminator").items()})
    return network
