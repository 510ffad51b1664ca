"""Dense layers one after the other, run forward and backward by hand: steps without autograd's graph.

What is computed is what autograd would compute; a third of the time of a small dense network's step was spent around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedsim.training.stack import Stack


class Weights(Protocol):
    """Who holds the clients' weights: a `Stack`, or what stands in its place. sizes: rows that count in each one's batch."""

    active: int
    sizes: list[int]

    def weight(self, name: str) -> Tensor:
        """(active, ...) of a parameter."""

    def weights(self) -> list[Tensor]:
        """(active, ...) of each parameter, in their order."""


class Link(NamedTuple):
    """A dense layer. weight, bias: names of its parameters; bias: None for none. rectified: whether a ReLU follows it."""

    weight: str
    bias: str | None
    outputs: int
    inputs: int
    rectified: bool = False


class Passed(NamedTuple):
    """What a layer took, (k, b, in), and the gradient of what it gave, (k, b, out)."""

    link: Link
    inputs: Tensor
    gradient: Tensor


class Chain:
    """A network whose every layer is dense; see `links_of`. flattens: whether it takes inputs of any shape."""

    def __init__(self, holder: Weights, links: list[Link], flattens: bool) -> None:
        self.holder, self.links, self.flattens = holder, links, flattens
        self._inputs: list[Tensor] = []

    def takes(self, x: Tensor) -> bool:
        """Whether an example of x is one row of the first layer."""
        return self.flattens or x.dim() == 2

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ...) -> the network's outputs, (k * b, out)."""
        k, weight = self.holder.active, self.holder.weight
        self._inputs.clear()
        h = x.view(k, len(x) // k, -1)
        for link in self.links:
            self._inputs.append(h)
            if link.bias is None:
                h = torch.bmm(h, weight(link.weight).mT)
            else:
                h = torch.baddbmm(weight(link.bias)[:, None], h, weight(link.weight).mT)
            if link.rectified:
                h.relu_()
        return h.view(len(x), -1)

    def backward(self, gradient: Tensor) -> Iterator[Passed]:
        """The last layer first. gradient: (k * b, out) of the outputs.

        A layer that was given is done with: its weights may be changed.
        """
        g, given = gradient.view(self.holder.active, -1, gradient.shape[-1]), None
        for place in range(len(self.links) - 1, -1, -1):
            link, inputs = self.links[place], self._inputs[place]
            if link.rectified and given is not None:
                g = torch.ops.aten.threshold_backward(g, given, 0)
            before = torch.bmm(g, self.holder.weight(link.weight)) if place else g
            yield Passed(link, inputs, g)
            g, given = before, inputs
        self._inputs.clear()


def chain_of(stack: Stack, model: nn.Module) -> Chain | None:
    """The stack of the model as a chain; None where it is more than `links_of` takes, or runs compiled."""
    found = None if stack.compiled or not stack.exact else links_of(model)
    return None if found is None else Chain(stack, *found)


def links_of(model: nn.Module) -> tuple[list[Link], bool] | None:
    """The model's layers, and whether it flattens what it takes; None where it is more than dense layers, ReLUs and a flattening.

    Every weight of it is trained, and is one layer's alone.
    """
    parts = _in_line(model)
    if not parts:
        return None
    names = {id(weight): name for name, weight in model.named_parameters()}
    flattens = type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1)
    links, used = list[Link](), list[str]()
    for part in parts[flattens:]:
        if type(part) is nn.Linear:
            keys = [names[id(weight)] for weight in (part.weight, part.bias) if weight is not None]
            links.append(Link(keys[0], keys[1] if len(keys) > 1 else None, *part.weight.shape))
            used += keys
        elif type(part) is nn.ReLU and links and not links[-1].rectified:
            links[-1] = links[-1]._replace(rectified=True)
        else:
            return None
    trained = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad]
    if not links or links[-1].rectified or sorted(used) != sorted(trained):
        return None
    return links, flattens


def _in_line(network: nn.Module) -> list[nn.Module] | None:
    """The layers of nn.Sequential, and of those in it, in their order; None where another forward runs, or a hook."""
    hooks = network._forward_hooks, network._forward_pre_hooks, network._backward_hooks, network._backward_pre_hooks
    if any(hooks) or "forward" in vars(network):
        return None
    if not isinstance(network, nn.Sequential):
        return [network]
    if type(network).forward is not nn.Sequential.forward:
        return None
    found: list[nn.Module] = []
    for child in network:
        parts = _in_line(child)
        if parts is None:
            return None
        found += parts
    return found
