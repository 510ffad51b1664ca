"""What a layer took, and the gradients of what it gave, make the gradients of its weights for each example: the rules.

An example is a row of what the layer takes. Layers that are not in RULES leave a model to the other ways of `per_example.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as conv_gradient


class NoRule(Exception):
    """`fast` does not take this model."""


class Gradients(Protocol):
    """One parameter's gradients of b examples, one each."""

    def square_norms(self) -> Tensor:
        """(b,)"""

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        """Add the sum over examples, weighted by (b,) `weights`, to `total`, which has the parameter's shape."""

    def add_each_to(self, totals: Tensor, weights: Tensor) -> None:
        """As `add_to` for the rows of k clients, one after the other. totals: (k, *shape). weights: (k, b)."""


@dataclass(frozen=True)
class Stacked:
    """Gradients written out. rows: (b, *shape)."""

    rows: Tensor

    def square_norms(self) -> Tensor:
        """See Gradients."""
        return torch.linalg.vector_norm(self.rows.flatten(1), dim=1).square()

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        """See Gradients."""
        total.view(-1).addmv_(self.rows.flatten(1).t(), weights)

    def add_each_to(self, totals: Tensor, weights: Tensor) -> None:
        """See Gradients."""
        rows = self.rows.reshape(*weights.shape, -1)  # (k, b, numbers)
        totals += torch.bmm(weights[:, None], rows).view_as(totals)


@dataclass(frozen=True)
class Outer:
    """A dense layer's: example i's is g_i a_i^T, and is never written out (Goodfellow 2015, arXiv 1510.01799).

    outputs: (b, out) gradients of what the layer gave. inputs: (b, in) what it took.
    """

    outputs: Tensor
    inputs: Tensor

    def square_norms(self) -> Tensor:
        """See Gradients."""
        return self.outputs.square().sum(1) * self.inputs.square().sum(1)

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        """See Gradients."""
        total.addmm_((self.outputs * weights[:, None]).t(), self.inputs)

    def add_each_to(self, totals: Tensor, weights: Tensor) -> None:
        """See Gradients."""
        outputs = (self.outputs * weights.reshape(-1, 1)).view(*weights.shape, -1)  # (k, b, out)
        totals.baddbmm_(outputs.mT, self.inputs.reshape(*weights.shape, -1))


Rule = Callable[..., dict[str, Gradients]]
"""(layer, what it took, gradients of what it gave) -> gradients by parameter; rows are examples."""


def _dense(layer: nn.Linear, a: Tensor, g: Tensor) -> dict[str, Gradients]:
    if a.dim() == 2:
        return {"weight": Outer(g, a), "bias": Stacked(g)}
    a, g = a.flatten(1, -2), g.flatten(1, -2)  # (b, positions, in), (b, positions, out)
    return {"weight": Stacked(g.transpose(1, 2) @ a), "bias": Stacked(g.sum(1))}


def _convolution(layer: nn.Conv1d | nn.Conv2d, a: Tensor, g: Tensor) -> dict[str, Gradients]:
    """The weight's by one convolution in which every example is a group of its own (Rochette et al. 2019, arXiv 1912.06015)."""
    weight_of = conv_gradient.conv1d_weight if isinstance(layer, nn.Conv1d) else conv_gradient.conv2d_weight
    b, (units, *shape) = len(a), layer.weight.shape
    rows = weight_of(
        a.flatten(0, 1)[None],  # (1, b * in, ...)
        (b * units, *shape),
        g.flatten(0, 1)[None],  # (1, b * out, ...)
        layer.stride,
        layer.padding,
        layer.dilation,
        b * layer.groups,
    )
    return {"weight": Stacked(rows.unflatten(0, (b, units))), "bias": Stacked(g.flatten(2).sum(2))}


def _group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor) -> dict[str, Gradients]:
    scaled = g * F.group_norm(a, layer.num_groups, eps=layer.eps)
    b, channels = a.shape[:2]
    return {
        "weight": Stacked(scaled.reshape(b, channels, -1).sum(2)),
        "bias": Stacked(g.reshape(b, channels, -1).sum(2)),
    }


def _layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor) -> dict[str, Gradients]:
    shape = layer.normalized_shape
    scaled = g * F.layer_norm(a, shape, eps=layer.eps)
    return {
        "weight": Stacked(scaled.reshape(len(a), -1, *shape).sum(1)),
        "bias": Stacked(g.reshape(len(a), -1, *shape).sum(1)),
    }


def _embedding(layer: nn.Embedding, a: Tensor, g: Tensor) -> dict[str, Gradients]:
    symbols, width = layer.weight.shape
    a, g = a.reshape(len(a), -1), g.reshape(len(a), -1, width)  # (b, positions), (b, positions, width)
    if layer.padding_idx is not None:
        g = g * (a != layer.padding_idx)[..., None]
    rows = g.new_zeros(len(a), symbols, width)
    return {"weight": Stacked(rows.scatter_add_(1, a[..., None].expand_as(g), g))}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _dense,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}


def own_layers(model: nn.Module) -> list[nn.Module]:
    """Layers with weights of their own. Raises NoRule where `fast` cannot take one."""
    layers: list[nn.Module] = []
    seen: set[int] = set()
    for name, layer in model.named_modules():
        own = {key: p for key, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        plain = getattr(layer, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(layer, "padding", 0), str)
        if isinstance(layer, nn.Embedding):
            plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        if type(layer) not in RULES or not own.keys() <= {"weight", "bias"} or not plain:
            raise NoRule(f"no rule for {name or 'the model itself'} ({type(layer).__name__})")
        if seen & {id(p) for p in own.values()}:
            raise NoRule(f"the weights of {name} are another layer's too")
        seen |= {id(p) for p in own.values()}
        layers.append(layer)
    return layers
