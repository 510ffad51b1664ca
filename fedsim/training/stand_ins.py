"""Layers for many clients at once: each stands in for a layer of the model and holds one set of weights a client.

Inputs and outputs are (k * b, ...): the b examples of the first client, then those of the second ... so that everything between
the layers (activations, pooling, a user's own `forward`) runs as it is. Weights are (k, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Holder(Protocol):
    """Who holds the weights: see `stack.Stack`."""

    active: int
    sizes: list[int]
    generators: list[torch.Generator]

    def weight(self, name: str) -> Tensor:
        """(k, ...) of the clients that train now."""

    def capture(self, name: str, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """Called by a layer whose gradients can be had from what it took and what it gave."""


class NoStandIn(Exception):
    """A layer has no stand-in; the words say which and why."""


class StandIn(nn.Module):
    """name: of the layer in the model. layer: the one that it stands in for, for its settings alone."""

    holder: Holder
    layer: Any

    def __init__(self, holder: Holder, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name, self.dot = name, f"{name}." if name else ""
        self.__dict__["holder"], self.__dict__["layer"] = holder, layer  # not submodules of this one

    def own(self, key: str) -> Tensor | None:
        """(k, ...) one of the layer's weights; None where it has no such."""
        return None if getattr(self.layer, key) is None else self.holder.weight(f"{self.dot}{key}")


def rows(stacked: Tensor) -> Sequence[Tensor]:
    """Each client's own; of one alone a view, whose gradient costs no copy."""
    return [stacked.flatten(0, 1)] if len(stacked) == 1 else stacked.unbind(0)


class Dense(StandIn):
    """nn.Linear: one batched product."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ..., in) -> (k * b, ..., out)."""
        weight, bias = self.holder.weight(f"{self.dot}weight"), self.own("bias")
        a = x.reshape(self.holder.active, -1, x.shape[-1])
        out = torch.bmm(a, weight.mT) if bias is None else torch.baddbmm(bias[:, None], a, weight.mT)
        out = out.view(*x.shape[:-1], out.shape[-1])
        self.holder.capture(self.name, self.layer, x, out)
        return out


class Convolution(StandIn):
    """nn.Conv1d, nn.Conv2d: on CUDA one convolution in which every client is a group; on the CPU one a client, which is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, in, ...) -> (k * b, out, ...)."""
        weight, bias = self.holder.weight(f"{self.dot}weight"), self.own("bias")
        if self.holder.active > 1 and x.device.type == "cuda":
            out = self.grouped(x, weight, bias)
        else:
            biases = [None] * self.holder.active if bias is None else rows(bias)
            pieces = zip(x.chunk(self.holder.active), rows(weight), biases, strict=True)
            given = [self.one(*piece) for piece in pieces]
            out = given[0] if len(given) == 1 else torch.cat(given)
        self.holder.capture(self.name, self.layer, x, out)
        return out

    def one(self, x: Tensor, weight: Tensor, bias: Tensor | None, clients: int = 1) -> Tensor:
        """The layer's own convolution, with these weights; of several clients side by side in the channels."""
        layer = self.layer
        convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        return convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, clients * layer.groups)

    def grouped(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (k * b, in, ...) as (b, k * in, ...), and back."""
        k = len(weight)
        aside = x.unflatten(0, (k, -1)).transpose(0, 1).flatten(1, 2)
        out = self.one(aside, weight.flatten(0, 1), None if bias is None else bias.flatten(), k)
        return out.unflatten(1, (k, -1)).transpose(0, 1).flatten(0, 1)


class Norm(StandIn):
    """nn.GroupNorm, nn.LayerNorm: normalised by example, then scaled and shifted by client."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ...) -> the same."""
        layer, weight, bias = self.layer, self.own("weight"), self.own("bias")
        channels = isinstance(layer, nn.GroupNorm)
        if self.holder.active == 1:
            w, b = (None if array is None else array.flatten(0, 1) for array in (weight, bias))
            if channels:
                return self.captured(x, F.group_norm(x, layer.num_groups, w, b, layer.eps))
            return self.captured(x, F.layer_norm(x, layer.normalized_shape, w, b, layer.eps))
        if channels:
            out = F.group_norm(x, layer.num_groups, eps=layer.eps)
        else:
            out = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        out = out.unflatten(0, (self.holder.active, -1))  # (k, b, ...)
        if channels:  # positions follow the channels, and come before a normalised shape
            shape = [1, -1, *[1] * (x.dim() - 2)]
        else:
            shape = [*[1] * (out.dim() - 1 - len(layer.normalized_shape)), *layer.normalized_shape]
        if weight is not None:
            out = out * weight.view(len(weight), *shape)
        if bias is not None:
            out = out + bias.view(len(bias), *shape)
        return self.captured(x, out.flatten(0, 1))

    def captured(self, x: Tensor, out: Tensor) -> Tensor:
        """`out`, of which the holder takes note where there are weights."""
        if self.layer.weight is not None:
            self.holder.capture(self.name, self.layer, x, out)
        return out


class Lookup(StandIn):
    """nn.Embedding: one table, in which the clients' tables lie one below the other."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ...) int64 -> (k * b, ..., width)."""
        weight = self.holder.weight(f"{self.dot}weight")
        k, symbols, width = weight.shape
        offsets = (torch.arange(k, device=x.device) * symbols).repeat_interleave(len(x) // k)
        places = x + offsets.view(-1, *[1] * (x.dim() - 1))
        # no symbol: refused, not read from another client's table
        places = torch.where((x < 0) | (x >= symbols), k * symbols, places)
        out = F.embedding(places, weight.view(k * symbols, width))
        self.holder.capture(self.name, self.layer, x, out)
        return out


class Recurrent(StandIn):
    """nn.LSTM: one step of time at a time, all clients in one product; torch's own kernel where there is one client."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: (k * b, length, in), or (length, k * b, in) where the layer is not batch_first -> as nn.LSTM gives."""
        if state is not None:
            raise NoStandIn(f"{self.name or 'the model'} (LSTM) is given a state to start from")
        keys = [name for name, _ in self.layer.named_parameters()]
        if self.holder.active == 1:
            weights = {key: self.holder.weight(f"{self.dot}{key}").flatten(0, 1) for key in keys}
            return torch.func.functional_call(self.layer, weights, (x,))
        h, hs, cs = x if self.layer.batch_first else x.transpose(0, 1), [], []
        for level in range(self.layer.num_layers):
            h, last, cell = self.level(h, level)
            hs.append(last)
            cs.append(cell)
        return h if self.layer.batch_first else h.transpose(0, 1), (torch.stack(hs), torch.stack(cs))

    def level(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x: (k * b, length, in) -> (k * b, length, hidden) and the last (k * b, hidden) output and cell."""
        k = self.holder.active
        w_in, w_own = (self.holder.weight(f"{self.dot}weight_{kind}_l{level}") for kind in ("ih", "hh"))
        inputs = torch.bmm(x.reshape(k, -1, x.shape[-1]), w_in.mT)
        if self.layer.bias:
            inputs = inputs + sum(
                self.holder.weight(f"{self.dot}bias_{kind}_l{level}")[:, None] for kind in ("ih", "hh")
            )
        inputs = inputs.view(k, -1, x.shape[1], inputs.shape[-1])  # (k, b, length, 4 * hidden)
        h = x.new_zeros(k, inputs.shape[1], self.layer.hidden_size)
        c, outputs = torch.zeros_like(h), []
        for step in inputs.unbind(2):
            i, f, g, o = torch.baddbmm(step, h, w_own.mT).chunk(4, dim=2)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        series = torch.stack(outputs).movedim(0, 2)  # in memory time comes first, as in nn.LSTM
        return series.flatten(0, 1), h.flatten(0, 1), c.flatten(0, 1)


class Drop(StandIn):
    """nn.Dropout: each client draws from its own generator what it would draw alone."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (k * b, ...) -> the same; rows that only fill up a client's batch are zero."""
        keep = 1 - self.layer.p
        if keep == 1 or not self.training:  # a model's own `train` may leave this layer in evaluation
            return x
        k = self.holder.active
        noise = torch.zeros_like(x).unflatten(0, (k, -1))  # drawn in the order in memory, as x lies
        for own, size, generator in zip(noise, self.holder.sizes, self.holder.generators[:k], strict=True):
            own[:size].bernoulli_(keep, generator=generator)
        return x * noise.flatten(0, 1).div_(keep)


def _plain_convolution(layer: Any) -> str | None:
    return None if layer.padding_mode == "zeros" else f"padding_mode={layer.padding_mode}"


def _plain_embedding(layer: Any) -> str | None:
    for key in ("padding_idx", "max_norm"):
        if getattr(layer, key) is not None:
            return f"{key}={getattr(layer, key)}"
    return "sparse or scale_grad_by_freq" if layer.sparse or layer.scale_grad_by_freq else None


def _plain_lstm(layer: Any) -> str | None:
    return "dropout, proj_size or bidirectional" if layer.dropout or layer.proj_size or layer.bidirectional else None


def _plain(layer: Any) -> str | None:
    return None


def _not_in_place(layer: Any) -> str | None:
    return "inplace=True" if layer.inplace else None


STAND_INS: dict[type[nn.Module], tuple[type[StandIn], Callable[[Any], str | None]]] = {
    nn.Linear: (Dense, _plain),
    nn.Conv1d: (Convolution, _plain_convolution),
    nn.Conv2d: (Convolution, _plain_convolution),
    nn.GroupNorm: (Norm, _plain),
    nn.LayerNorm: (Norm, _plain),
    nn.Embedding: (Lookup, _plain_embedding),
    nn.LSTM: (Recurrent, _plain_lstm),
    nn.Dropout: (Drop, _not_in_place),
}
"""By the layer's exact type: the stand-in, and what it cannot do of a layer (None: nothing)."""

DRAWS: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd, nn.RReLU)
"""Layers that draw random numbers; those without a stand-in would draw others than a client draws alone."""


def stand_in(holder: Holder, name: str, layer: nn.Module) -> nn.Module | None:
    """The layer's stand-in; None where it needs none. Raises NoStandIn."""
    found = STAND_INS.get(type(layer))
    where = f"{name or 'the model itself'} ({type(layer).__name__})"
    if found is not None:
        kind, reason_of = found
        if reason := reason_of(layer):
            raise NoStandIn(f"{where} has {reason}")
        if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
            raise NoStandIn(f"{where} has hooks")
        if "forward" in vars(layer):
            raise NoStandIn(f"{where} has a forward of its own")
        return kind(holder, name, layer)
    if any(True for _ in layer.parameters(recurse=False)):
        raise NoStandIn(f"{where} has weights of its own and no batched form")
    if any(True for _ in layer.buffers(recurse=False)):
        raise NoStandIn(f"{where} keeps arrays that are not trained")
    if isinstance(layer, DRAWS):
        raise NoStandIn(f"{where} draws random numbers")
    return None
