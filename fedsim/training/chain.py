"""Dense layers one after the other, run forward and backward by hand: steps without autograd's graph.

What is computed is what autograd would compute; a third of the time of a small dense network's step was spent around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.training.stack import Stack, fusible
from fedsim.training.stand_ins import Dense


class Link(NamedTuple):
    """A dense layer. weight, bias: names of its parameters; bias: None for none. rectified: whether a ReLU follows it."""

    weight: str
    bias: str | None
    rectified: bool = False


class Passed(NamedTuple):
    """What a layer took, (k, b, in), and the gradient of what it gave, (k, b, out)."""

    link: Link
    inputs: Tensor
    gradient: Tensor


class Chain:
    """The network of a stack whose every layer is dense; see `chain_of`. flattens: whether it takes inputs of any shape."""

    def __init__(self, stack: Stack, links: list[Link], flattens: bool) -> None:
        self.stack, self.links, self.flattens = stack, links, flattens
        self._inputs: list[Tensor] = []

    def takes(self, x: Tensor) -> bool:
        """Whether an example of x is one row of the first layer."""
        return self.flattens or x.dim() == 2

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ...) -> the network's outputs, (k * b, out)."""
        k, weight = self.stack.active, self.stack.weight
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
        g, given = gradient.view(self.stack.active, -1, gradient.shape[-1]), None
        for place in range(len(self.links) - 1, -1, -1):
            link, inputs = self.links[place], self._inputs[place]
            if link.rectified and given is not None:
                g = torch.ops.aten.threshold_backward(g, given, 0)
            before = torch.bmm(g, self.stack.weight(link.weight)) if place else g
            yield Passed(link, inputs, g)
            g, given = before, inputs
        self._inputs.clear()


def chain_of(stack: Stack) -> Chain | None:
    """The stack's network as a chain; None where it is more than dense layers, ReLUs and a flattening, or runs compiled.

    Every weight of it is trained, and is one layer's alone.
    """
    parts = _in_line(stack.network)
    if stack.compiled or not stack.exact or not parts:
        return None
    flattens = type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1)
    names, links = fusible(stack), list[Link]()
    for part in parts[flattens:]:
        if isinstance(part, Dense) and part.name in names:
            keys = [f"{part.dot}{key}" for key in ("weight", "bias")]
            links.append(Link(keys[0], keys[1] if keys[1] in names[part.name] else None))
        elif type(part) is nn.ReLU and links and not links[-1].rectified:
            links[-1] = links[-1]._replace(rectified=True)
        else:
            return None
    used = {name for link in links for name in (link.weight, link.bias) if name is not None}
    once = len({link.weight for link in links}) == len(links)
    if not links or links[-1].rectified or not once or used != set(stack.trained):
        return None
    return Chain(stack, links, flattens)


def _in_line(network: nn.Module) -> list[nn.Module] | None:
    """The layers of nn.Sequential, and of those in it, in their order; None where another forward runs, or a hook."""
    if any((network._forward_hooks, network._forward_pre_hooks, network._backward_hooks, network._backward_pre_hooks)):
        return None
    if not isinstance(network, nn.Sequential):
        return [network]
    if type(network).forward is not nn.Sequential.forward or "forward" in vars(network):
        return None
    found: list[nn.Module] = []
    for child in network:
        parts = _in_line(child)
        if parts is None:
            return None
        found += parts
    return found
