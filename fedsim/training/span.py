"""The noise of a first dense layer, as far as a device's own steps can tell: DP-SGD with a fraction of the draws.

A device's steps look at the first layer's weights W only through what these make of its own inputs: with P the projection onto
the span of the rows that its batches draw, W a = W P a for every row a. A step's noise N falls into N P and N (I - P), which
for a Gaussian are independent. Gradients follow from the first alone, and of the second nothing is seen before the round ends.
So what a round releases has the same distribution, up to rounding, where N P is drawn at each step and the rest once, with the
variance of its sum: sum over steps of c_t N_t (I - P) ~ N(0, (sum of c_t^2 sigma_t^2) (I - P)), with c_t by which step t is taken
in the end (`last_coefficients`).

P is of which rows were drawn, which is settled before any noise is. The promise is therefore that of noise drawn in full, for
whoever sees what leaves the device; between two steps the weights inside lack noise in directions that no one has looked at.
A device of 50 examples with 784 numbers each draws 16 times fewer numbers a step for such a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.training.chain import links_of
from fedsim.training.client_half import ClientHalf
from fedsim.training.objectives import ONE_TARGET, Objective
from fedsim.training.settings import LocalTraining

MOST_ROWS_PER_INPUT = 0.25
"""Of a span, for each number of an example: beyond it the span costs what it saves."""


class FirstLayer(NamedTuple):
    """The weight (outputs, inputs) of a layer that takes examples as they are. flattens: whether these may have any shape."""

    outputs: int
    inputs: int
    flattens: bool

    @property
    def numbers(self) -> int:
        """Of the weight."""
        return self.outputs * self.inputs

    def pays_for(self, rows: int) -> bool:
        """Whether draws in the span of so many rows are few enough to pay for the span."""
        return rows <= MOST_ROWS_PER_INPUT * self.inputs


@dataclass(frozen=True)
class Span:
    """What a client's rows span.

    rows: (u,) the row numbers that its batches draw, ascending. places: of each step, where its rows are among these.
    basis: (u, inputs), orthonormal. coordinates: (u, u): row i is coordinates[i] @ basis. All on the CPU.
    """

    rows: Tensor
    places: list[Tensor]
    basis: Tensor
    coordinates: Tensor

    def outside(self, noise: Tensor) -> Tensor:
        """noise: (outputs, inputs) -> N (I - P), on its device."""
        basis = self.basis.to(noise)
        return noise - noise @ basis.mT @ basis


def first_layer(
    model: nn.Module, objective: Objective, settings: LocalTraining, client_half: ClientHalf
) -> FirstLayer | None:
    """The model's first layer, where training is linear in its noise and looks at it only through examples; else None.

    So it is for a network of dense layers and SGD, with momentum or not, that no client half corrects.
    """
    corrects = client_half.alone or type(client_half).correct is not ClientHalf.correct
    if corrects or settings.optimizer is not None or settings.max_grad_norm is not None or objective not in ONE_TARGET:
        return None
    if (found := links_of(model)) is None:
        return None
    (first, *_), flattens = found
    own = next(iter(model.named_parameters()))[0] == first.weight
    return FirstLayer(first.outputs, first.inputs, flattens) if own else None


def span_of(x: Tensor, batches: Sequence[Tensor], first: FirstLayer) -> Span | None:
    """The span of the rows of x (n, ...) that are in the batches; None where drawing the noise in full is as well.

    The basis is that of a Householder QR, which is orthonormal even where rows repeat or depend on one another.
    """
    if len(batches) < 2 or not (first.flattens or x.dim() == 2) or x.dtype not in (torch.float32, torch.float64):
        return None
    rows = torch.cat([*batches]).unique()
    if not first.pays_for(len(rows)):
        return None
    inputs = x[rows.to(x.device)].flatten(1).cpu()  # a GPU's own QR of matrices of this size is no quicker
    if not bool(torch.isfinite(inputs).all()):
        return None  # such a client fails at the step that draws the row
    q, r = torch.linalg.qr(inputs.mT) if len(rows) else (inputs.mT, inputs.new_empty(0, 0))
    return Span(rows, [torch.searchsorted(rows, batch) for batch in batches], q.mT.contiguous(), r.mT.contiguous())
