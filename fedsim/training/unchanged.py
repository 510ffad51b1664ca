"""What a private step must leave alone.

An array that a model changes as it runs (a statistic, or weights that `max_norm` rescales) follows the data without clipping
and without noise. Where it is sent it tells of them; where it is not, it still shapes the gradients of everyone that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsim.types import FedsimError


@contextmanager
def unchanged(model: nn.Module, *, weights: bool = True, others: bool = True) -> Iterator[None]:
    """Refuse arrays that change inside, in place or by another in their stead; costs a copy of those that are watched.

    weights: watch what training changes. others: watch frozen parameters and buffers, saved or not. Raises FedsimError.
    """

    def watched() -> dict[str, Tensor]:
        return {name: a for name, a in arrays_of(model).items() if (weights if a.requires_grad else others)}

    before = {name: (array, array.detach().clone()) for name, array in watched().items()}
    yield
    now = watched()
    for name in [*before, *now]:
        if name not in before or name not in now or not _same(now[name], *before[name]):
            raise FedsimError(
                f"privacy=example cannot take this model, whose {name} follows the data without any noise, since running the model "
                "changes it; use a model=... that leaves its arrays alone: without running statistics and without max_norm"
            )


def arrays_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those that are not saved too."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def refuse_max_norm(model: nn.Module) -> None:
    """Refuse embeddings that rescale the rows that they read. By name: which rows are too long depends on the data."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise FedsimError(
                f"privacy=example cannot take max_norm of the model's {name or 'embedding'}, which rescales weights by the data "
                "without any noise; leave max_norm out, or use another model=..."
            )


def _same(now: Tensor, array: Tensor, value: Tensor) -> bool:
    """A weight must be the very object, since the step and the sender hold it; of a buffer the values are enough."""
    if array.requires_grad and now is not array:
        return False
    try:
        return torch.equal(now.detach(), value)
    except RuntimeError:  # another device or type, or what functorch left of a tensor of its own
        return False
