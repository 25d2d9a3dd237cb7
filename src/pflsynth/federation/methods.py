"""The methods that a federation can train with: which networks a site has, and what of them is shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from pflsynth.config import FederationConfig, Task, code_length
from pflsynth.federation.sharing import Sharing
from pflsynth.networks.discriminator import PatchDiscriminator
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.personalization import PersonalizationBlock, make_code
from pflsynth.seeding import derive_seed


class SiteNetworks(nn.Module):
    """The networks of one site: a generator, and a discriminator for each of its tasks."""

    def __init__(self, generator: PersonalizedGenerator, discriminators: Mapping[str, PatchDiscriminator]):
        super().__init__()
        self.generator = generator
        self.discriminators = nn.ModuleDict(discriminators)


@dataclass(frozen=True)
class Method:
    """A way to train a federation; an entry of :data:`METHODS`."""

    citation: str
    networks: Callable[[FederationConfig, str], SiteNetworks]
    sharing: Callable[[FederationConfig], Sharing]


def build_generator(config: FederationConfig) -> PersonalizedGenerator:
    """The personalised generator as every site first has it: built from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initial", "generator"))
        return PersonalizedGenerator(
            code_length(config.site_names, config.contrasts),
            width=config.model.width,
            residual_layers=config.model.residual_layers,
            dropout=config.model.dropout,
        )


def pflsynth_networks(config: FederationConfig, site: str) -> SiteNetworks:
    """Personalised generator and one conditional PatchGAN discriminator per task (arXiv:2207.06509, Sec. III)."""
    discriminators = {}
    for task in map(str, config.sites[site].tasks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "initial", "discriminator", task))
            discriminators[task] = PatchDiscriminator(width=config.model.width)
    return SiteNetworks(build_generator(config), discriminators)


def partial_network_aggregation(config: FederationConfig) -> Sharing:
    """PNA: the mapper and the stages from the split point on are shared; all personalization blocks stay private."""
    first, stages = config.model.first_shared_stage, config.model.stages
    return Sharing(
        shared=("generator.mapper", *(f"generator.stages.{stage}" for stage in range(first, stages + 1))),
        private=(
            *(f"generator.stages.{stage}" for stage in range(1, first)),
            PersonalizationBlock,
            "discriminators",
        ),
    )


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "pflsynth": Method(
            citation="Dalmaz et al., One Model to Unite Them All, arXiv:2207.06509",
            networks=pflsynth_networks,
            sharing=partial_network_aggregation,
        ),
    }
)


def task_code(config: FederationConfig, site: str, task: Task) -> torch.Tensor:
    """The code of a task at a site: (K + 2C,) float32, one-hot site ++ source ++ target."""
    return make_code(
        config.site_names.index(site),
        config.contrasts.index(task.source),
        config.contrasts.index(task.target),
        sites=len(config.sites),
        contrasts=len(config.contrasts),
        live=config.model.code,
    )
