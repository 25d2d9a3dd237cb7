"""Gradient checkpointing: a stage keeps its input alone, and is computed once more when its gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointable(nn.Module):
    """A generator whose stages can be checkpointed."""

    checkpoint_activations = False
    """Whether they are, in training."""

    def run(self, stage: nn.Module, then: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """Run a stage and what follows it within the segment."""
        if not (self.checkpoint_activations and self.training):
            return then(stage(features))
        return checkpointed(stage, lambda given: then(stage(given)), features)


def checkpointed(stage: nn.Module, run: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Run a stage; results, gradients and statistics are those without checkpointing, byte for byte.

    The second time it draws the same random numbers, so dropout drops the same, and batch norm, which has counted the
    features already, leaves its running statistics alone.

    Args:
        stage: whose batch norms these are.
        run: computes the stage, and what else belongs to the segment.
        features: input of the segment.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_unchanged(stage)

    result: Tensor = checkpoint(run, features, use_reentrant=False, context_fn=contexts)
    return result


@contextmanager
def _statistics_unchanged(stage: nn.Module) -> Iterator[None]:
    """Let batch norm count into copies of its statistics."""
    kept = [
        (module, name, buffer)
        for module in stage.modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
