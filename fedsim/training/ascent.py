"""Unlearning by gradient ascent: a client's examples are unlearnt within a ball around a model that hardly knew them.

Halimi, Kadhe, Rawat and Baracaldo 2022, "Federated Unlearning: How to Efficiently Erase a Client in FL?" (arXiv 2207.05521).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim.checks import require_int, require_number
from fedsim.training.arrays import all_finite, load_arrays, model_arrays
from fedsim.training.evaluation import predict
from fedsim.training.objectives import Objective
from fedsim.types import ClientData, FedsimError, Params


@dataclass(frozen=True)
class Ascent:
    """The keys `ascent.*`; the defaults are the paper's, but for where it ends.

    max_steps, batch_size, lr, momentum: of the ascent (the paper makes five epochs). max_grad_norm: each step's gradient is
    clipped to it. radius: of the ball, as a share of the mean distance from the reference to freshly initialised models.
    stop_loss: stop once the loss on the examples is above this; None: above that of guessing, which is the logarithm of the
    number of classes, and in a regression the targets' variance. stop_accuracy: stop once the accuracy on them is below this
    (the paper's is 0.12, for ten classes; a loss without a bound may have run off by then, further than the rounds afterwards
    bring the model back); None: never. rounds: of federated training without the clients afterwards; None: a tenth of the
    run's, and at least three.
    """

    max_steps: int = 100
    batch_size: int = 1024
    lr: float = 0.01
    momentum: float = 0.9
    max_grad_norm: float = 5.0
    radius: float = 1 / 3
    stop_loss: float | None = None
    stop_accuracy: float | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        require_int("ascent.max_steps", self.max_steps, low=1)
        require_int("ascent.batch_size", self.batch_size, low=1)
        require_number("ascent.lr", self.lr, above=0)
        require_number("ascent.momentum", self.momentum, low=0, below=1)
        require_number("ascent.max_grad_norm", self.max_grad_norm, above=0)
        require_number("ascent.radius", self.radius, above=0)
        if self.stop_loss is not None:
            require_number("ascent.stop_loss", self.stop_loss, above=0)
        if self.stop_accuracy is not None:
            require_number("ascent.stop_accuracy", self.stop_accuracy, low=0, high=1)
        if self.rounds is not None:
            require_int("ascent.rounds", self.rounds, low=1)


class Climbed(NamedTuple):
    """arrays: the unlearnt model's. steps: that were made. stopped: whether early. from_reference: L2 distance at the end."""

    arrays: Params
    steps: int
    stopped: bool
    from_reference: float


def reference_model(model: nn.Module, arrays: Params, local: Iterable[tuple[float, Params]]) -> Params:
    """The average of the others' models: (w - sum p_i w_i) / (1 - sum p_i) over the forgotten clients i.

    arrays: the trained model w. local: for each forgotten client its share p of the average and its own model w_i, which is
    read before the next is asked for. What is not trained (running statistics) stays as in w.
    """
    trained = [name for name, _ in trainable(model)]
    rest = {name: arrays[name].double() for name in trained}
    left = 1.0
    for share, own in local:
        left -= share
        for name in trained:
            rest[name] = rest[name] - share * own[name].double()
    return {name: (rest[name] / left).to(a.dtype) if name in rest else a.clone() for name, a in arrays.items()}


def climb(
    model: nn.Module,
    objective: Objective,
    task: str,
    data: ClientData,
    reference: Params,
    radius: float,
    settings: Ascent,
    generator: torch.Generator,
) -> Climbed:
    """Maximise the loss on `data` from the reference model, inside the ball of this radius around it.

    The module is used, and left with the arrays that are returned. Raises FedsimError where the loss leaves the numbers that
    float32 can hold.
    """
    load_arrays(model, reference)
    weights = [parameter for _, parameter in trainable(model)]
    centre = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=settings.lr, momentum=settings.momentum, maximize=True)
    steps, stopped = 0, False
    for rows in _batches(len(data.x), settings, generator):
        if stopped := is_unlearnt(model, task, data, settings):
            break
        _keep_statistics(model)
        optimizer.zero_grad()
        objective(model(data.x[rows]), data.y[rows]).backward()
        nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        project(weights, centre, radius)
        steps += 1
    arrays = {name: array.clone() for name, array in model_arrays(model).items()}
    if not all_finite(arrays.values()):
        raise FedsimError(f"gradient ascent left the finite numbers within {steps} steps; lower ascent.lr")
    return Climbed(arrays, steps, stopped, distance(weights, centre))


def is_unlearnt(model: nn.Module, task: str, data: ClientData, settings: Ascent) -> bool:
    """Whether the model does as badly on the examples as `settings` ask for; see `Ascent`."""
    found = predict(model, data.x, data.y, task, settings.batch_size)
    limit = settings.stop_loss or guessing_loss(model, data)
    if not float(found.loss.double().mean()) <= limit:  # a loss that is not a number has gone far enough
        return True
    if settings.stop_accuracy is None or found.target is None or found.predicted is None:
        return False
    return float((found.predicted == found.target).double().mean()) < settings.stop_accuracy


@torch.no_grad()
def guessing_loss(model: nn.Module, data: ClientData) -> float:
    """Of a model that gives every class the same probability, or the examples' mean in a regression."""
    if data.y.is_floating_point():
        return float(data.y.double().var(correction=0))
    return math.log(model(data.x[:1]).shape[-1])


def _batches(examples: int, settings: Ascent, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of each step's batch, shuffled anew once all were used."""
    left = settings.max_steps
    while left > 0:
        for rows in torch.randperm(examples, generator=generator).split(settings.batch_size)[:left]:
            left -= 1
            yield rows


def _keep_statistics(model: nn.Module) -> None:
    """Training mode, but running statistics must not take in what is to be forgotten."""
    model.train()
    for module in model.modules():
        if any(True for _ in module.buffers(recurse=False)):
            module.eval()


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and weights of what training moves."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """L2 over all arrays as one vector."""
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(left, right, strict=True)))


@torch.no_grad()
def project(weights: Sequence[Tensor], centre: Sequence[Tensor], radius: float) -> None:
    """Move the weights, in place, to the nearest point of the ball."""
    if (far := distance(weights, centre)) > radius:
        for weight, middle in zip(weights, centre, strict=True):
            weight.copy_(middle + (weight - middle) * (radius / far))
