"""pFLSynth itself: the personalised generator and partial network aggregation, with the paper's ablations."""

from __future__ import annotations

from pflsynth.config import FederationConfig, code_length
from pflsynth.federation.method import Method, SiteNetworks, seeded, task_discriminators
from pflsynth.federation.sharing import Selector, Sharing
from pflsynth.federation.step import training_step
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.layers import silence
from pflsynth.networks.personalization import PersonalizationBlock

LSGAN_L1 = "LSGAN + 100 · L1"


def personalized_generator(config: FederationConfig, site: str) -> PersonalizedGenerator:
    """The personalised generator as every site first has it (arXiv:2207.06509, Sec. III)."""
    model = config.model

    def build() -> PersonalizedGenerator:
        generator = PersonalizedGenerator(
            code_length(config.site_names, config.contrasts),
            width=model.width,
            residual_layers=model.residual_layers,
            dropout=model.dropout,
            blocks=model.blocks,
            mapper_layers=model.mapper_layers,
            family=model.family,
        )
        if model.conditioning == "dead":
            silence(generator)
        return generator

    return seeded(config, "generator", build=build)


def personalized_networks(config: FederationConfig, site: str) -> SiteNetworks:
    """Personalised generator and one conditional PatchGAN discriminator per task (arXiv:2207.06509, Sec. III)."""
    return SiteNetworks(personalized_generator(config, site), task_discriminators(config, site))


def stages(config: FederationConfig, first: int, last: int) -> tuple[str, ...]:
    """Names of the generator's stages from ``first`` to ``last``, both included."""
    return tuple(f"generator.stages.{stage}" for stage in range(first, last + 1))


def partial_network_aggregation(config: FederationConfig) -> Sharing:
    """PNA: the mapper and the stages from the split point on are shared; personalization blocks stay private."""
    model = config.model
    parts: list[tuple[bool, tuple[Selector, ...]]] = [
        (True, stages(config, 1, model.first_shared_stage - 1)),
        (model.private_blocks, (PersonalizationBlock,)),
        (model.private_discriminators, ("discriminators",)),
        (False, ("generator.mapper", *stages(config, model.first_shared_stage, model.stages))),
    ]
    return Sharing(
        shared=tuple(selector for private, selectors in parts if not private for selector in selectors),
        private=tuple(selector for private, selectors in parts if private for selector in selectors),
    )


PFLSYNTH = Method(
    title="pFLSynth",
    citation="Dalmaz et al., One Model to Unite Them All, arXiv:2207.06509; Medical Image Analysis 2024",
    shared="mapper and the stages from the split point on",
    private="earlier stages, all personalization blocks, discriminators",
    loss=LSGAN_L1,
    generator=personalized_generator,
    networks=personalized_networks,
    sharing=partial_network_aggregation,
    step=training_step,
)
