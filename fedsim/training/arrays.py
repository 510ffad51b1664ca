"""A module's arrays: read, loaded, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedsim.types import FedsimError, Params


def trained_weights(model: nn.Module) -> list[Tensor]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def model_arrays(model: nn.Module) -> Params:
    """The module's own parameters and buffers by name (no copy), in the order of its state dict."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


@torch.no_grad()
def load_arrays(model: nn.Module, arrays: Params) -> None:
    """Copy `arrays` into the module in place; the names must be the module's."""
    own = model_arrays(model)
    if own.keys() != arrays.keys():
        wrong = sorted(own.keys() ^ arrays.keys())
        raise FedsimError(
            f"the arrays do not fit the model: {', '.join(wrong[:5])} are on one side only; check model=..."
        )
    for name, tensor in own.items():
        tensor.copy_(arrays[name])


def all_finite(arrays: Iterable[Tensor]) -> bool:
    """Whether no element is NaN or Inf."""
    return all(bool(torch.isfinite(array).all()) for array in arrays)


def distinct(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each element in memory of its own, since steps write in place.

    Autograd gives one tensor for both weights of a + b, and one number, expanded, for all the elements of a sum.
    """
    if len({gradient.data_ptr() for gradient in gradients}) < len(gradients):
        return [gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients]
    return [gradient.contiguous() for gradient in gradients]
