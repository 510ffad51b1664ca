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
from fedsim.training.factored import bases_of
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
        self.bases = bases_of([member.initial for member in members])
        self.bad = torch.zeros(len(members), dtype=torch.bool, device=members[0].data.x.device)
        self.sizes: list[int] = []
        weight = stack.arrays[self.first]
        self.width = max(1, *(len(span.rows) for span in self.spans))  # coordinates, of the client that has most
        k, u = len(members), self.width
        coordinates, basis = (
            torch.zeros(k, u, u, dtype=weight.dtype),
            torch.zeros(k, u, weight.shape[2]).to(weight.dtype),
        )
        for row, span in enumerate(self.spans):
            own = len(span.rows)
            coordinates[row, :own, :own], basis[row, :own] = span.coordinates, span.basis
        self.coordinates, self.basis = coordinates.to(weight.device).flatten(0, 1), basis.to(weight.device)
        targets = [member.data.y[span.rows.to(weight.device)] for member, span in zip(members, self.spans, strict=True)]
        self.y = pad_sequence(targets, batch_first=True)
        self.y = torch.nn.functional.pad(self.y, (0, u - self.y.shape[1])).flatten()
        self.start = torch.cat([self.basis[a:b] @ arrays[self.first].mT for a, b, arrays in self.bases]).mT.contiguous()
        stack.load([member.initial for member in members], but=self.first)
        self.arrays = {name: array[:k] for name, array in stack.arrays.items()} | {self.first: self.start.clone()}
        self.active = k

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
        rows = pad_sequence(
            places, batch_first=True
        )  # what fills up is a row of the client's own, and counts for nothing
        if rows.shape[1] == 0:
            rows = rows.new_zeros(active, 1)
        flat = (rows + torch.arange(active)[:, None] * self.width).flatten().to(self.y.device)
        given = chain_gradients(self.chain, self.objective, self.coordinates[flat], self.y[flat], self.stack.trained)
        noises = (client.noise_in_span(number, self.width) for client in clients)
        rates = [member.lr for member in self.members[:active]]
        private_step(self, given, clients, noises, len(flat), number, self.bad[:active], rates, decay)

    def finite(self) -> Tensor:
        """(k,) whether all that a client has is finite."""
        return finite_rows(self.arrays, len(self.members)) & ~self.bad

    def client(self, row: int) -> Params:
        """One client's arrays after its last step, under every name that the model's state dict has."""
        return self._named({name: array[row] for name, array in self.arrays.items()}, [row], None)

    def total(self, weights: Tensor) -> Params:
        """The sum of the clients' arrays, each times its weight. weights: (k,); one of weight 0 is left out."""
        others = {name: array for name, array in self.arrays.items() if name != self.first}
        return self._named(weighted_sum(others, weights), weights.nonzero().flatten().tolist(), weights)

    def _named(self, found: Params, rows: list[int], weights: Tensor | None) -> Params:
        """Arrays by every name, with the first layer's: the sum over these clients, times their weights where there are any.

        Of a client: what it began at and the unseen noise, in which what lies in the span makes room for what it learnt there.
        """
        total, rest = torch.zeros_like(self.stack.arrays[self.first][0]), list[Tensor]()
        shares = [1.0] * len(self.members) if weights is None else weights.tolist()
        for row in rows:
            weight = shares[row]
            client = self.clients[row]
            kept = (1 - self.members[row].lr * client.settings.weight_decay) ** client.steps
            own = client.unseen_noise().to(total)
            total.add_(own, alpha=weight)
            inside = own @ self.basis[row].mT + kept * self.start[row]
            rest.append((self.arrays[self.first][row] - inside) * weight)
            for start, stop, arrays in self.bases:
                if start <= row < stop:
                    total.add_(arrays[self.first], alpha=weight * kept)
        total.addmm_(torch.cat(rest, 1), self.basis[rows].flatten(0, 1))
        return {name: total if first == self.first else found[first] for name, first in self.stack.aliases.items()}


def _private(members: Sequence[Member]) -> tuple[list[PrivateClient], list[Span]]:
    clients = [member.private for member in members if member.private is not None]
    return clients, [client.span for client in clients if client.span is not None]
