"""Dense networks trained by SGD without writing out any client's weights: what clients share is multiplied once for all of them.

A gradient of a dense layer is g^T a: the gradient g (b, out) of what it gave times what it took, a (b, in). SGD is linear in the
weights it began at and in the gradients it met, so before step t a client's weights are

    W_t = beta_t W_0 - sum over s < t of c_ts g_s^T a_s

and whatever is multiplied by W_t is multiplied by W_0, which all clients that were sent one model have in common, and by the thin
factors. Where a round has fewer rows than a layer is wide this is less work, on far less memory; and the sum over clients is one
product of all their factors. A bias is a weight whose input is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from fedsim.training.arrays import all_finite
from fedsim.training.chain import Chain, Link
from fedsim.training.settings import LocalTraining
from fedsim.types import Params

MOST_ROWS = 1.0
"""Numbers that factors may have for each number of the weights. From there on, on a CPU, going through weights is as quick."""

FEWEST_PER_BASE = 2
"""Clients that have to share a model on average, or nothing is multiplied once for many."""


class Coefficients:
    """beta_t and c_ts by the recurrence of torch.optim.SGD, which is that of numbers: v <- momentum v + g + decay W; W <- W - lr v.

    table: [t] is beta_t and [c_t0, c_t1 ...]. The first v is the first gradient.
    """

    def __init__(self, settings: LocalTraining, lr: float, steps: int) -> None:
        base, velocity = 1.0, 0.0
        taken, velocities = list[float](), list[float]()
        self.table = [(base, taken)]
        for _ in range(steps):
            velocity = settings.momentum * velocity + settings.weight_decay * base
            grown = zip([*velocities, 0.0], [*taken, 0.0], strict=True)
            velocities = [settings.momentum * v - settings.weight_decay * c for v, c in grown]
            velocities[-1] += 1
            base -= lr * velocity
            taken = [c + lr * v for c, v in zip([*taken, 0.0], velocities, strict=True)]
            self.table.append((base, taken))


class Layer:
    """One layer's factors, side by side for every client and row of a round; zero where a client has none.

    inputs: (k, rows, in). gradients: (k, rows, out).
    """

    def __init__(self, link: Link, weight: Tensor, clients: int, rows: int) -> None:
        self.link = link
        self.inputs = weight.new_zeros(clients, rows, weight.shape[1])
        self.gradients = weight.new_zeros(clients, rows, weight.shape[0])

    @property
    def one(self) -> float:
        """What a bias takes."""
        return 0.0 if self.link.bias is None else 1.0


class Factored:
    """One round of a group of clients on a chain's layers.

    initial: what each client begins at. steps: that each client makes, most first. sizes: rows of each step's longest batch.
    table: of the coefficients at the largest learning rate; at_own_lr: gradients (k, ...) such that a step at that rate is one at
    each client's own.
    """

    def __init__(
        self,
        chain: Chain,
        initial: Sequence[Params],
        steps: Sequence[int],
        sizes: Sequence[int],
        table: Coefficients,
        at_own_lr: Callable[[Tensor], Tensor],
    ) -> None:
        self.steps, self.table, self.at_own_lr = steps, table.table, at_own_lr
        self.ends = [0, *accumulate(sizes)]
        self.initial, self.bases = initial, bases_of(initial)
        clients, rows = len(initial), self.ends[-1]
        self.layers = [Layer(link, initial[0][link.weight], clients, rows) for link in chain.links]

    def forward(self, x: Tensor, step: int, active: int) -> Tensor:
        """x: (active * b, ...) -> the network's outputs before this step, (active * b, out)."""
        h = x.reshape(active, len(x) // active, -1)
        start, end = self.ends[step], self.ends[step] + h.shape[1]
        beta, taken = self._before(step)
        for layer in self.layers:
            layer.inputs[:active, start:end] = h
            z = self._of_base(h, layer.link, beta)
            if taken is not None:
                alike = torch.bmm(h, layer.inputs[:active, :start].mT).add_(layer.one).mul_(taken)
                z.baddbmm_(alike, layer.gradients[:active, :start], alpha=-1)
            h = z.relu_() if layer.link.rectified else z
        return h.flatten(0, 1)

    def backward(self, gradient: Tensor, step: int, active: int) -> None:
        """Take the step. gradient: (active * b, out) of the outputs."""
        g = gradient.view(active, -1, gradient.shape[-1])
        start, end = self.ends[step], self.ends[step] + g.shape[1]
        beta, taken = self._before(step)
        for place in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[place]
            layer.gradients[:active, start:end] = self.at_own_lr(g)
            if place == 0:
                return
            before = self._to_base(g, layer.link, beta)
            if taken is not None:
                alike = torch.bmm(g, layer.gradients[:active, :start].mT).mul_(taken)
                before.baddbmm_(alike, layer.inputs[:active, :start], alpha=-1)
            if self.layers[place - 1].link.rectified:
                before = torch.ops.aten.threshold_backward(before, layer.inputs[:active, start:end], 0)
            g = before

    def client(self, row: int) -> Params:
        """One client's arrays after its last step, under every name of the model's state dict."""
        return self._written([row], [1.0])

    def total(self, weights: Tensor) -> Params:
        """The sum of all clients' arrays, each times its weight. weights: (k,); a client of weight 0 is left out, finite or not."""
        rows = weights.nonzero().flatten()
        return self._written(rows.tolist(), weights[rows].tolist())

    def finite(self) -> Tensor:
        """(k,) whether all of a client's arrays are finite: sure where its factors' norms bound them, else looked at."""
        bound = torch.zeros_like(self.layers[0].gradients[:, 0, 0])
        for layer in self.layers:
            a, g = (torch.linalg.vector_norm(factor, dim=(1, 2)) for factor in (layer.inputs, layer.gradients))
            bound += g * (a + layer.one)
        finite = torch.isfinite(bound)
        for row in [] if finite.all() else (~finite).nonzero().flatten().tolist():
            finite[row] = all_finite(self.client(row).values())
        return finite

    def _written(self, clients: list[int], weights: list[float]) -> Params:
        """The sum of these clients' arrays, each times its weight. Of their factors the rows of steps that they made are read."""
        made = [self.steps[client] for client in clients]
        by_row = {steps: self._by_row(self.table[steps][1]) for steps in set(made)}
        taken = torch.cat([by_row[steps] * weight for steps, weight in zip(made, weights, strict=True)])
        ends = [self.ends[steps] for steps in made]
        left = [weight * self.table[steps][0] for steps, weight in zip(made, weights, strict=True)]
        found = sum_of_starts([self.initial[client] for client in clients], left)
        for layer in self.layers:
            a, g = (
                torch.cat([factor[client, :end] for client, end in zip(clients, ends, strict=True)])
                for factor in (layer.inputs, layer.gradients)
            )
            g *= taken[:, None]
            found[layer.link.weight].addmm_(g.mT, a, alpha=-1)
            if layer.link.bias is not None:
                found[layer.link.bias].sub_(g.sum(0))
        return found

    def _before(self, step: int) -> tuple[float, Tensor | float | None]:
        """beta, and by how much each earlier row's gradient was taken, (rows,) or a number for all; None before the first step."""
        base, taken = self.table[step]
        if not taken or min(taken) == max(taken):
            return base, taken[0] if taken else None
        return base, self._by_row(taken)

    def _by_row(self, taken: Sequence[float]) -> Tensor:
        """(rows,) of the first steps: each step's number for each of its rows."""
        sizes = [end - start for start, end in pairwise(self.ends)]
        return self.layers[0].inputs.new_tensor([c for c, size in zip(taken, sizes, strict=False) for _ in range(size)])

    def _of_base(self, h: Tensor, link: Link, beta: float) -> Tensor:
        """beta (h W_0^T + b_0), h: (active, b, in)."""
        found = []
        for rows, arrays in self._bases(len(h)):
            flat, weight = h[rows].flatten(0, 1), arrays[link.weight].mT
            if link.bias is None:
                found.append(torch.mm(flat, weight) if beta == 1 else torch.mm(flat, weight).mul_(beta))
            else:
                found.append(torch.addmm(arrays[link.bias], flat, weight, beta=beta, alpha=beta))
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole.view(*h.shape[:2], -1)

    def _to_base(self, g: Tensor, link: Link, beta: float) -> Tensor:
        """beta g W_0, g: (active, b, out)."""
        found = [torch.mm(g[rows].flatten(0, 1), arrays[link.weight]) for rows, arrays in self._bases(len(g))]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return (whole if beta == 1 else whole.mul_(beta)).view(*g.shape[:2], -1)

    def _bases(self, active: int) -> Iterator[tuple[slice, Params]]:
        """The models that active clients began at, each with the rows of those who did."""
        for start, stop, arrays in self.bases:
            if start < active:
                yield slice(start, min(stop, active)), arrays


def bases_of(initial: Sequence[Params]) -> list[tuple[int, int, Params]]:
    """Runs of clients that begin at the very same arrays: first, last + 1, and the arrays."""
    found, start = [], 0
    for _, run in groupby(initial, key=id):
        clients = list(run)
        found.append((start, start + len(clients), clients[0]))
        start += len(clients)
    return found


def sum_of_starts(initial: Sequence[Params], shares: Sequence[float], names: Collection[str] = ()) -> Params:
    """The sum of what clients begin at, each times its share; arrays that several share are read once. names: of these alone."""
    bases = {id(base): base for base in initial}
    totals = dict.fromkeys(bases, 0.0)
    for base, share in zip(initial, shares, strict=True):
        totals[id(base)] += share
    found: Params = {}
    for one, base in bases.items():
        for name in names or base:
            array = base[name]
            found[name] = found[name].add_(array, alpha=totals[one]) if name in found else array * totals[one]
    return found


def worth_it(chain: Chain, rows: int) -> bool:
    """Whether factors of so many rows are less work than weights. By the layers' shapes: the same on every machine."""
    return rows * numbers_a_row(chain) <= MOST_ROWS * sum(link.outputs * link.inputs for link in chain.links)


def numbers_a_row(chain: Chain) -> int:
    """That are kept of each row of a client's batches."""
    return sum(link.outputs + link.inputs for link in chain.links)
