"""DP-SGD for many clients at once: every example's gradient clipped, every client's own noise, one pass for all of them.

The mathematics is that of `dpsgd.py`; a row of a layer's input is one example of one client, and sums are by client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fedsim.training.chain import Chain, Weights
from fedsim.training.dpsgd import PrivateClient
from fedsim.training.layer_gradients import RULES, Gradients, NoRule, Outer, Stacked
from fedsim.training.objectives import IGNORED_TARGET, Objective, next_token, row_gradients, row_losses
from fedsim.training.stack import Stack


class PerExample:
    """Gradients of every row of a batch, a parameter at a time in the order of the weights. chain: the stack's, if it is one."""

    def __init__(self, stack: Stack, objective: Objective, chain: Chain | None) -> None:
        self.stack, self.objective, self.chain = stack, objective, chain

    def __call__(self, x: Tensor, y: Tensor) -> list[Gradients]:
        """x, y: (k * b, ...)."""
        trained, arrays = self.stack.trained, self.stack.arrays
        if self.chain is not None and self.chain.takes(x):
            return chain_gradients(self.chain, self.objective, x, y, trained)
        found = self._of_layers(x, y)
        return [found.get(n) or Stacked(arrays[n].new_zeros(len(x), *arrays[n].shape[1:])) for n in trained]

    def _of_layers(self, x: Tensor, y: Tensor) -> dict[str, Gradients]:
        """By the rules of its layers."""
        losses = row_losses(self.objective, self.stack(x), y)
        if self.objective is next_token:  # an example is a batch of one line: the mean over its targets
            losses = losses.sum(1) / (y != IGNORED_TARGET).sum(1).clamp(min=1)
        calls = list(self.stack.calls)
        self.stack.calls.clear()
        outputs = torch.autograd.grad(losses.sum(), [call.edge for call in calls], allow_unused=True)
        found: dict[str, Gradients] = {}
        for call, output in zip(calls, outputs, strict=True):
            if output is not None:
                dot = f"{call.name}." if call.name else ""
                for key, gradients in RULES[type(call.layer)](call.layer, call.inputs, output).items():
                    if f"{dot}{key}" in found:
                        raise NoRule(f"{call.layer} is called twice")
                    found[f"{dot}{key}"] = gradients
        return found


@torch.no_grad()
def chain_gradients(
    chain: Chain, objective: Objective, x: Tensor, y: Tensor, trained: Sequence[str]
) -> list[Gradients]:
    """Of every row, in the order of the chain's weights `trained`. x, y: (k * b, ...)."""
    _, gradient = row_gradients(objective, chain.forward(x), y)
    found: dict[str, Gradients] = {}
    for link, inputs, g in chain.backward(gradient):
        outputs = g.reshape(len(x), -1)
        found[link.weight] = Outer(outputs, inputs.reshape(len(x), -1))
        if link.bias is not None:
            found[link.bias] = Stacked(outputs)
    return [found[name] for name in trained]


def private_gradients(
    stack: Stack,
    per_example: PerExample,
    clients: Sequence[PrivateClient],
    x: Tensor,
    y: Tensor,
    step: int,
    bad: Tensor,
) -> list[Tensor]:
    """(k, ...) each client's noisy sum of clipped gradients over its expected batch, in the order of the weights.

    x, y: (k * b, ...), of which `stack.sizes` count. bad: (k,) set where an example's gradient is not finite: nothing of that
    client may be sent.
    """
    k, weights = stack.active, stack.weights()
    total = torch.stack([client.noise(step) for client in clients]).to(weights[0])  # (k, numbers)
    sizes = [weight[0].numel() for weight in weights]
    pieces = [piece.reshape(weight.shape) for piece, weight in zip(total.split(sizes, dim=1), weights, strict=True)]
    unclipped = torch.zeros(k, device=total.device)
    xs, ys = (array.unflatten(0, (k, len(x) // k)) for array in (x, y))
    most, drawn = clients[0].most_rows, stack.sizes
    empty = [row for row, size in enumerate(drawn) if size == 0]
    untouched = total[empty]
    for start in range(0, xs.shape[1], most):  # in the parts that a client takes alone, so that dropout draws alike
        stack.sizes = [min(max(size - start, 0), most) for size in drawn]
        x, y = (array[:, start : start + most].flatten(0, 1) for array in (xs, ys))
        unclipped += _add_clipped(stack, per_example, clients, x, y, pieces, bad)
    total[empty] = untouched  # what fills up an empty batch may be NaN, which times 0 is NaN
    stack.sizes = drawn
    _adapt(stack, clients, unclipped, step)
    expected = torch.tensor([float(client.expected_batch) for client in clients], device=total.device)
    for piece in pieces:
        piece /= expected.view(-1, *[1] * (piece.dim() - 1))
    return pieces


def private_step(
    holder: Weights,
    given: list[Gradients],
    clients: Sequence[PrivateClient],
    noises: Iterable[Tensor],
    rows: int,
    step: int,
    bad: Tensor,
    rates: Sequence[float],
    decay: float,
) -> None:
    """The same gradients as one plain step of SGD, added to the weights as they come: their sum is nowhere written out.

    For batches that are taken whole, of which none is empty (`whole_batches`) or what fills them up is finite.

    given: of all `rows`. noises: each client's, flat. rates: each client's learning rate. decay: what weights are multiplied by.
    """
    weights = holder.weights()
    factors, unclipped = _factors(holder, clients, given, rows, bad)
    scales = [-lr / client.expected_batch for lr, client in zip(rates, clients, strict=True)]
    factors = factors.view(len(given), len(clients), -1) * factors.new_tensor(scales)[:, None]
    with torch.no_grad():
        if decay != 1:
            torch._foreach_mul_(weights, decay)
        sizes = [weight[0].numel() for weight in weights]
        for row, (noise, scale) in enumerate(zip(noises, scales, strict=True)):
            for weight, piece in zip(weights, noise.to(weights[0]).split(sizes), strict=True):
                weight[row].add_(piece.view_as(weight[row]), alpha=scale)
        for gradients, weight, factor in zip(given, weights, factors, strict=True):
            gradients.add_each_to(weight, factor)
    _adapt(holder, clients, unclipped, step)


def whole_batches(stack: Stack, clients: Sequence[PrivateClient]) -> bool:
    """Whether every client's batch is taken in one part, and none is empty."""
    return min(stack.sizes) > 0 and max(stack.sizes) <= clients[0].most_rows


def _add_clipped(
    stack: Stack,
    per_example: PerExample,
    clients: Sequence[PrivateClient],
    x: Tensor,
    y: Tensor,
    pieces: list[Tensor],
    bad: Tensor,
) -> Tensor:
    """Add each client's clipped gradients to its `pieces`; gives (k,) how many examples were not clipped."""
    given = per_example(x, y)
    factors, unclipped = _factors(stack, clients, given, len(x), bad)
    for gradients, piece, factor in zip(given, pieces, factors, strict=True):
        gradients.add_each_to(piece, factor.view(len(clients), -1))
    return unclipped


def _factors(
    holder: Weights, clients: Sequence[PrivateClient], given: list[Gradients], rows: int, bad: Tensor
) -> tuple[Tensor, Tensor]:
    """(parameters, rows) by how much to multiply each row's gradients, 0 where it fills up; and (k,) how many are not clipped."""
    k, device = len(clients), bad.device
    places = torch.arange(rows // k, device=device)
    counted = (places < torch.tensor(holder.sizes, device=device)[:, None]).flatten()  # (k * b,)
    limits = holder.weights()[0].new_tensor([client.clip_norm for client in clients]).repeat_interleave(rows // k)
    factors = _clip_factors(given, limits, clients[0].rule.clipping)
    bad |= (~torch.isfinite(factors).all(0) & counted).view(k, -1).any(1)
    unclipped = ((factors[0] == 1) & counted).view(k, -1).sum(1)
    return torch.where(counted & torch.isfinite(factors), factors, 0), unclipped


def _adapt(holder: Weights, clients: Sequence[PrivateClient], unclipped: Tensor, step: int) -> None:
    if clients[0].rule.clipping == "adaptive":
        for client, count, size in zip(clients, unclipped.tolist(), holder.sizes, strict=True):
            client.adapt(count - size / 2, step)


def _clip_factors(given: list[Gradients], limits: Tensor, clipping: str) -> Tensor:
    """(parameters, rows) by how much to multiply, as `dpsgd.clip_factors`; NaN where a gradient is not finite."""
    squares = torch.stack([gradients.square_norms() for gradients in given])
    if clipping == "per_layer":
        norms, limits = squares.sqrt(), limits / len(given) ** 0.5
    else:
        norms = squares.sum(0).sqrt()
    factors = (limits / (norms + 1e-6)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.nan).expand_as(squares)
