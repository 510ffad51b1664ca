"""DP-SGD of many clients on a chain, each in the span of its own inputs: see `span.py`.

A client's first layer is held as what it is on that span, (out, u) numbers in place of (out, in), and its examples as their
coordinates. Everything else is a round on the stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedsim.training.chain import Chain
from fedsim.training.dpsgd import PrivateClient
from fedsim.training.factored import bases_of, sum_of_starts
from fedsim.training.group import Member
from fedsim.training.objectives import Objective
from fedsim.training.private_lockstep import chain_gradients, private_step
from fedsim.training.span import Span
from fedsim.training.stack import Stack, finite_rows, weighted_sum
from fedsim.types import Params


class InSpans:
    """One round of a group's plain steps. Stands in the stack's place: `weights` are the clients' own, the first in its span.

    members: in the order of their steps, most first, each with a span.
    """

    def __init__(self, stack: Stack, chain: Chain, objective: Objective, members: Sequence[Member]) -> None:
        self.stack, self.objective, self.members = stack, objective, members
        self.chain, self.first = Chain(self, chain.links, False), chain.links[0].weight
        self.clients, self.spans = _private(members)
        self.initial = [member.initial for member in members]
        self.sizes: list[int] = []
        k, self.active = len(members), len(members)
        self.width = max(len(span.rows) for span in self.spans)  # of the client that has most coordinates
        weight = stack.arrays[self.first]
        self.bad = torch.zeros(k, dtype=torch.bool, device=weight.device)
        coordinates = torch.zeros(k * self.width + 1, self.width, dtype=weight.dtype)  # the last is of no row at all
        basis = torch.zeros(k, self.width, weight.shape[2], dtype=weight.dtype)
        y = members[0].data.y
        self.y = y.new_zeros(k * self.width + 1, *y.shape[1:])
        for row, (member, span) in enumerate(zip(members, self.spans, strict=True)):
            start, own = row * self.width, len(span.rows)
            coordinates[start : start + own, :own], basis[row, :own] = span.coordinates, span.basis
            self.y[start : start + own] = member.data.y[span.rows.to(y.device)]
        self.coordinates, self.basis = coordinates.to(weight.device), basis.to(weight.device)
        starts = [self.basis[a:b] @ base[self.first].to(self.basis).mT for a, b, base in bases_of(self.initial)]
        self.start = torch.cat(starts).mT.contiguous()
        stack.load(self.initial, but=self.first)
        self.arrays = {name: array[:k] for name, array in stack.arrays.items()} | {self.first: self.start.clone()}

    def weight(self, name: str) -> Tensor:
        """(active, ...)."""
        return self.arrays[self.stack.aliases[name]][: self.active]

    def weights(self) -> list[Tensor]:
        """(active, ...) of each parameter, in their order."""
        return [self.arrays[name][: self.active] for name in self.stack.trained]

    @torch.no_grad()
    def step(self, number: int, active: int, decay: float) -> None:
        """One step of the first `active` clients. decay: what weights are multiplied by."""
        self.active, clients = active, self.clients[:active]
        places = [span.places[number] for span in self.spans[:active]]
        self.sizes = [len(own) for own in places]
        rows = pad_sequence(places, batch_first=True, padding_value=-1)
        if rows.shape[1] == 0:
            rows = rows.new_full((active, 1), -1)
        rows = torch.where(rows < 0, len(self.y) - 1, rows + torch.arange(active)[:, None] * self.width)
        flat = rows.flatten().to(self.y.device)
        given = chain_gradients(self.chain, self.objective, self.coordinates[flat], self.y[flat], self.stack.trained)
        noises = (client.noise_in_span(number, self.width) for client in clients)
        rates = [member.lr for member in self.members[:active]]
        private_step(self, given, clients, noises, len(flat), number, self.bad[:active], rates, decay)

    def finite(self) -> Tensor:
        """(k,) whether all that a client has is finite, and what is to be added will be."""
        most = torch.finfo(torch.float32).max / 100  # standard deviations
        noises = torch.tensor([client.unseen_std() < most for client in self.clients], device=self.bad.device)
        return finite_rows(self.arrays, len(self.members)) & noises & ~self.bad

    def client(self, row: int) -> Params:
        """One client's arrays after its last step, under every name that the model's state dict has. To be asked for once."""
        return self._named({name: array[row] for name, array in self.arrays.items()}, [row], [1.0])

    def total(self, weights: Tensor) -> Params:
        """The sum of the clients' arrays, each times its weight. weights: (k,); one of weight 0 is left out.

        Of each client to be asked for once.
        """
        others = {name: array for name, array in self.arrays.items() if name != self.first}
        rows = weights.nonzero().flatten()
        return self._named(weighted_sum(others, weights), rows.tolist(), weights[rows].tolist())

    def _named(self, found: Params, rows: list[int], weights: list[float]) -> Params:
        """Arrays by every name, with the first layer's: the sum over these clients, each times its weight.

        Of a client: what it began at and the unseen noise, in which what lies in the span makes room for what it learnt there.
        """
        kept = [
            (1 - self.members[row].lr * self.clients[row].settings.weight_decay) ** self.clients[row].steps
            for row in rows
        ]
        left = [weight * share for weight, share in zip(weights, kept, strict=True)]
        total = sum_of_starts([self.initial[row] for row in rows], left, [self.first])[self.first].to(self.basis)
        learnt = []
        for row, weight, share in zip(rows, weights, kept, strict=True):
            noise = self.clients[row].unseen_noise().to(total)
            total.add_(noise, alpha=weight)
            learnt.append(
                (self.arrays[self.first][row] - noise @ self.basis[row].mT - share * self.start[row]) * weight
            )
        total.addmm_(torch.cat(learnt, 1), self.basis[rows].flatten(0, 1))
        return {name: total if first == self.first else found[first] for name, first in self.stack.aliases.items()}


def _private(members: Sequence[Member]) -> tuple[list[PrivateClient], list[Span]]:
    clients = [member.private for member in members if member.private is not None]
    spans = [client.span for client in clients if client.span is not None]
    assert len(spans) == len(members), "each has one"
    return clients, spans
