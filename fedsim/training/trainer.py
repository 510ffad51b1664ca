"""Local training: THE one entry, for one client or for a cohort of many.

`Trainer.train` takes the server's arrays and any number of clients and gives each client's update in turn. How wide it
trains is its own business; the next engine goes in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.training import per_example
from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.dpsgd import DPSGD, KEPT, PrivateSteps
from fedsim.training.objectives import Objective
from fedsim.training.settings import LocalTraining
from fedsim.training.steps import clip_gradients, make_step
from fedsim.types import ClientData, FedsimError, Params


class ClientUpdate(NamedTuple):
    """What one client's training gave.

    arrays: the trained arrays; they are the trainer's own and hold until the next update is asked for: use or copy them.
    metrics: numbers to send, `train_loss` (mean over the round's examples) among them unless training is private. state: to
    keep on the device.
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


class LocalSteps(AbstractContextManager["LocalSteps"], Protocol):
    """A kind of local training: plain SGD and DP-SGD differ in how a batch is drawn and in what gradient it gives."""

    def batches(self) -> Iterator[Any]:
        """One a step, drawn when it is asked for."""

    def gradients(self, batch: Any) -> list[Tensor]:
        """Of a batch, at the weights as they are now; in the order of the weights, for the caller to change."""

    def metrics(self) -> dict[str, float]:
        """What may be sent of the round's training."""

    def keeps(self) -> Params:
        """What this kind, not the algorithm, keeps on the device."""


@dataclass
class Trainer:
    """Trains clients one at a time on one module, which is loaded anew for each.

    model: on the training device. seed: the run's. smallest_batch: a shorter last batch is left out (BatchNorm cannot
    train on one example). local_steps: train by DP-SGD; None: plainly.
    """

    model: nn.Module
    objective: Objective
    settings: LocalTraining
    client_half: ClientHalf
    seed: int
    smallest_batch: int = 1
    local_steps: DPSGD | None = None
    _way: str | None = field(default=None, init=False, repr=False)

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
        kept = {name: array for name, array in state.items() if name != KEPT}
        load_arrays(self.model, self.client_half.initial(received, kept))
        device = Device(self.model, self.objective, data, received, kept)
        self.model.train()
        with rng.seeded_globally(self.seed, round, data.client, "model"):
            metrics = self.client_half.begin(device)
            if metrics and self.local_steps is not None:
                raise FedsimError(
                    f"the strategy would send {', '.join(metrics)} beside the update, which DP-SGD does not cover; "
                    "use another strategy=..., or privacy=none"
                )
            kind = self._kind(data, state, round)
            steps = self._fit(kind, round)
        arrays = model_arrays(self.model)
        if not all_finite(arrays.values()):
            raise FedsimError(
                f"its update is not finite after {steps} steps; lower client.lr or set client.max_grad_norm"
            )
        finished = self.client_half.finish(device, steps, self.settings.lr_in(round))
        return ClientUpdate(
            data.client, arrays, len(data.x), steps, {**kind.metrics(), **metrics}, {**finished, **kind.keeps()}
        )

    def _kind(self, data: ClientData, state: Params, round: int) -> LocalSteps:
        """This client's steps of this round."""
        if self.local_steps is None:
            generator = rng.generator(self.seed, round, data.client, "batches")
            return PlainSteps(self.model, self.objective, self.settings, data, generator, self.smallest_batch)
        if self._way is None:
            self._way = per_example.choose(self.local_steps.way, self.model, self.objective, data.x, data.y)
        model, objective, settings = self.model, self.objective, self.settings
        return PrivateSteps(self.local_steps, self._way, model, objective, settings, data, state, round)

    def _fit(self, kind: LocalSteps, round: int) -> int:
        """Run the round's steps on the loaded model; gives their number."""
        settings, steps = self.settings, 0
        weights = trained_weights(self.model)
        anchors = [weight.detach().clone() for weight in weights]
        step = make_step(settings, weights, settings.lr_in(round))
        with kind:
            for batch in kind.batches():
                gradients = kind.gradients(batch)
                self.client_half.correct(gradients, weights, anchors)
                if settings.max_grad_norm is not None:
                    clip_gradients(gradients, settings.max_grad_norm)
                step(weights, gradients)
                steps += 1
        return steps


class PlainSteps:
    """Plain SGD: shuffled batches, and the gradient of their mean loss."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: LocalTraining,
        data: ClientData,
        generator: torch.Generator,
        smallest_batch: int,
    ) -> None:
        self.model, self.objective, self.settings, self.data = model, objective, settings, data
        self.generator, self.smallest_batch = generator, smallest_batch
        self.weights = trained_weights(model)
        self.total, self.count = torch.zeros((), device=data.x.device), 0

    def __enter__(self) -> PlainSteps:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""

    def batches(self) -> Iterator[Tensor | None]:
        """See `batches`; at least one."""
        yield from batches(len(self.data.x), self.settings, self.generator, self.smallest_batch)
        if self.count == 0:
            raise FedsimError(
                f"its {len(self.data.x)} examples make no batch of {self.smallest_batch}, the least this model trains on"
            )

    def gradients(self, rows: Tensor | None) -> list[Tensor]:
        """Of the batch's mean loss."""
        x, y = (self.data.x, self.data.y) if rows is None else (self.data.x[rows], self.data.y[rows])
        loss = self.objective(self.model(x), y)
        gradients = distinct(torch.autograd.grad(loss, self.weights, materialize_grads=True))
        self.total += loss.detach() * len(x)  # stays on the device: one synchronisation a client, not one a step
        self.count += len(x)
        return gradients

    def metrics(self) -> dict[str, float]:
        """The mean loss over the round's examples."""
        return {"train_loss": float(self.total) / self.count}

    def keeps(self) -> Params:
        """Nothing."""
        return {}


def trained_weights(model: nn.Module) -> list[Tensor]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


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
