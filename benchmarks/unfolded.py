"""Models as they are while they train, for benchmarks that measure what that costs."""

from __future__ import annotations

from functools import partial

import torch

from pflsynth.federation.methods import task_code
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.networks.inference_layers import ConstantCode


def slice_by_slice(model: PersonalisedModel) -> PersonalisedModel:
    """The model with its generator as it is, dropout and batch statistics too, which sees one slice at a time."""
    for task in model.config.sites[model.site].tasks:
        code = task_code(model.config, model.site, task).to(model.device)
        model = model.with_network(task, partial(_one_by_one, ConstantCode(model.generator, code[None])))
    return model


def _one_by_one(network: ConstantCode, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([network(image) for image in images[:, None]])
