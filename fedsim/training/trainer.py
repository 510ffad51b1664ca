"""Local training: THE one entry, for one client or for a cohort of many.

`Trainer.train` takes the server's arrays and any number of clients and gives each client's update in turn. How wide it
trains is its own business; the next engine goes in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.objectives import Objective
from fedsim.training.settings import LocalTraining
from fedsim.training.steps import clip_gradients, make_step
from fedsim.types import ClientData, FedsimError, Params


class ClientUpdate(NamedTuple):
    """What one client's training gave.

    arrays: the trained arrays; they are the trainer's own and hold until the next update is asked for: use or copy them.
    metrics: numbers to send, `train_loss` (mean over the round's examples) among them. state: to keep on the device.
    """

    client: int
    arrays: Params
    num_examples: int
    num_steps: int
    metrics: dict[str, float]
    state: Params


class ClientFailure(NamedTuple):
    """A client that raised, or whose update is not finite; the round goes on without it."""

    client: int
    reason: str


@dataclass
class Trainer:
    """Trains clients one at a time on one module, which is loaded anew for each.

    model: on the training device. seed: the run's. smallest_batch: a shorter last batch is left out (BatchNorm cannot
    train on one example).
    """

    model: nn.Module
    objective: Objective
    settings: LocalTraining
    client_half: ClientHalf
    seed: int
    smallest_batch: int = 1

    def train(
        self,
        received: Params,
        clients: Iterable[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
    ) -> Iterator[ClientUpdate | ClientFailure]:
        """Train each client from `received`, in the order given. Only what the client itself raises is a failure."""
        for client in clients:
            try:
                yield self._train_one(received, data_of(client), state_of(client), round)
            except Exception as error:  # whatever a device's own code raises must not end the round for the others
                own = isinstance(error, FedsimError)
                yield ClientFailure(client, str(error) if own else f"{type(error).__name__}: {error}")

    def _train_one(self, received: Params, data: ClientData, state: Params, round: int) -> ClientUpdate:
        if len(data.x) == 0:
            raise FedsimError("it has no training examples")
        load_arrays(self.model, self.client_half.initial(received, state))
        device = Device(self.model, self.objective, data, received, state)
        self.model.train()
        with rng.seeded_globally(self.seed, round, data.client, "model"):
            metrics = self.client_half.begin(device)
            steps, loss = self._fit(data, round)
        arrays = model_arrays(self.model)
        if not all_finite(arrays.values()):
            raise FedsimError(
                f"its update is not finite after {steps} steps; lower client.lr or set client.max_grad_norm"
            )
        state = self.client_half.finish(device, steps, self.settings.lr_in(round))
        return ClientUpdate(data.client, arrays, len(data.x), steps, {"train_loss": loss, **metrics}, state)

    def _fit(self, data: ClientData, round: int) -> tuple[int, float]:
        """Run the round's steps on the loaded model; gives their number and the mean loss over them."""
        settings = self.settings
        weights: list[Tensor] = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        anchors = [weight.detach().clone() for weight in weights]
        step = make_step(settings, weights, settings.lr_in(round))
        total, count, steps = torch.zeros((), device=data.x.device), 0, 0
        generator = rng.generator(self.seed, round, data.client, "batches")
        for rows in batches(len(data.x), settings, generator, self.smallest_batch):
            x, y = (data.x, data.y) if rows is None else (data.x[rows], data.y[rows])
            loss = self.objective(self.model(x), y)
            gradients = distinct(torch.autograd.grad(loss, weights, materialize_grads=True))
            self.client_half.correct(gradients, weights, anchors)
            if settings.max_grad_norm is not None:
                clip_gradients(gradients, settings.max_grad_norm)
            step(weights, gradients)
            total += loss.detach() * len(x)  # stays on the device: one synchronisation a client, not one a step
            count, steps = count + len(x), steps + 1
        if steps == 0:
            raise FedsimError(
                f"its {len(data.x)} examples make no batch of {self.smallest_batch}, the least this model trains on"
            )
        return steps, float(total) / count


def distinct(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Each element in memory of its own, since steps write in place.

    Autograd gives one tensor for both weights of a + b, and one number, expanded, for all the elements of a sum.
    """
    if len({gradient.data_ptr() for gradient in gradients}) < len(gradients):
        return [gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients]
    return [gradient.contiguous() for gradient in gradients]


def batches(
    num_examples: int, settings: LocalTraining, generator: torch.Generator, smallest: int = 1
) -> Iterator[Tensor | None]:
    """Row numbers of each step's batch: each epoch shuffled anew, the last batch short, and left out below `smallest`.

    None stands for all rows.
    """
    remaining = settings.steps(num_examples)
    for _ in range(settings.epochs):
        if settings.batch_size is None or settings.batch_size >= num_examples:
            chunks: Iterable[Tensor | None] = [None]
        else:
            chunks = torch.randperm(num_examples, generator=generator).split(settings.batch_size)
        for rows in chunks:
            if remaining == 0:
                return
            if (num_examples if rows is None else len(rows)) < smallest:
                continue
            remaining -= 1
            yield rows


def model_arrays(model: nn.Module) -> Params:
    """The module's own parameters and buffers by name (no copy), in the order of its state dict."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


@torch.no_grad()
def load_arrays(model: nn.Module, arrays: Params) -> None:
    """Copy `arrays` into the module in place; the names must be the module's."""
    own = model_arrays(model)
    if own.keys() != arrays.keys():
        wrong = sorted(own.keys() ^ arrays.keys())
        raise FedsimError(
            f"the arrays do not fit the model: {', '.join(wrong[:5])} are on one side only; check model=..."
        )
    for name, tensor in own.items():
        tensor.copy_(arrays[name])


def all_finite(arrays: Iterable[Tensor]) -> bool:
    """Whether no element is NaN or Inf."""
    return all(bool(torch.isfinite(array).all()) for array in arrays)
