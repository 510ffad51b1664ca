"""Training of one client on the module itself, by autograd: any model and any client half.

How a client is trained where the model cannot be stacked (`stack.py`), and what lockstep is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.training import per_example
from fedsim.training.arrays import all_finite, distinct, load_arrays, model_arrays, trained_weights
from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.dpsgd import DPSGD, KEPT, PrivateSteps
from fedsim.training.objectives import Objective
from fedsim.training.settings import LocalTraining
from fedsim.training.span import FirstLayer, first_layer
from fedsim.training.steps import clip_gradients, make_step
from fedsim.training.updates import ClientFailure, ClientUpdate, batches, check_metrics, no_batch, not_finite
from fedsim.types import ClientData, FedsimError, Params


class LocalSteps(AbstractContextManager["LocalSteps"], Protocol):
    """A kind of local training: plain SGD and DP-SGD differ in how a batch is drawn and in what gradient it gives."""

    def batches(self) -> Iterator[Any]:
        """One a step, drawn when it is asked for."""

    def gradients(self, batch: Any) -> list[Tensor]:
        """Of a batch, at the weights as they are now; in the order of the weights, for the caller to change."""

    def end(self, weights: list[Tensor]) -> None:
        """Change the weights once more, after the last step."""

    def metrics(self) -> dict[str, float]:
        """What may be sent of the round's training."""

    def keeps(self) -> Params:
        """What this kind, not the algorithm, keeps on the device."""


@dataclass
class Alone:
    """Trains one client at a time; the fields are the Trainer's."""

    model: nn.Module
    objective: Objective
    settings: LocalTraining
    client_half: ClientHalf
    seed: int
    smallest_batch: int
    local_steps: DPSGD | None
    _way: str | None = field(default=None, init=False, repr=False)
    _first: FirstLayer | None = field(default=None, init=False, repr=False)

    def train(
        self,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
    ) -> list[ClientUpdate | ClientFailure]:
        """Train the one client; its update's arrays are the module's own."""
        (client,) = clients
        try:
            return [self._update(received, data_of(client), state_of(client), round)]
        except Exception as error:  # whatever a device's own code raises must not end the round for the others
            return [ClientFailure.of(client, error)]

    def _update(self, received: Params, data: ClientData, state: Params, round: int) -> ClientUpdate:
        if len(data.x) == 0:
            raise FedsimError("it has no training examples")
        kept = {name: array for name, array in state.items() if name != KEPT}
        load_arrays(self.model, self.client_half.initial(received, kept))
        device = Device(self.model, self.objective, data, received, kept)
        if not self.client_half.sends_model:
            return self._statistics(device)
        self.model.train()
        with rng.seeded_globally(self.seed, round, data.client, "model"):
            metrics = self.client_half.begin(device)
            if self.local_steps is not None:
                check_metrics(metrics)
            kind = self._kind(data, state, round)
            steps = self._fit(kind, round)
        arrays = model_arrays(self.model)
        if not all_finite(arrays.values()):
            raise not_finite(steps)
        state = self.client_half.finish(device, steps, self.settings.lr_in(round))
        finished = {name: array.clone() for name, array in state.items()}  # the model is the next client's
        return ClientUpdate(
            data.client, arrays, len(data.x), steps, {**kind.metrics(), **metrics}, {**finished, **kind.keeps()}
        )

    @torch.no_grad()
    def _statistics(self, device: Device) -> ClientUpdate:
        """What a half that makes no steps sends; `train_loss` is of the arrays that it received."""
        data = device.data
        self.model.eval()
        arrays = self.client_half.statistics(device)
        if not all_finite(arrays.values()):
            raise FedsimError("what it computed of its examples is not finite; look for huge numbers in the dataset")
        loss = float(self.objective(self.model(data.x), data.y))
        return ClientUpdate(data.client, arrays, len(data.x), 0, {"train_loss": loss}, {})

    def _kind(self, data: ClientData, state: Params, round: int) -> LocalSteps:
        """This client's steps of this round."""
        if self.local_steps is None:
            generator = rng.generator(self.seed, round, data.client, "batches")
            half = self.client_half
            return PlainSteps(self.model, self.objective, half, self.settings, data, generator, self.smallest_batch)
        if self._way is None:
            self._way = per_example.choose(self.local_steps.way, self.model, self.objective, data.x, data.y)
            self._first = first_layer(self.model, self.objective, self.settings, self.client_half)
        model, objective, settings = self.model, self.objective, self.settings
        private = PrivateSteps(self.local_steps, self._way, model, objective, settings, data, state, round)
        if self._first is not None:
            private.keep_to_span(self._first)
        return private

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
            kind.end(weights)
        return steps


class PlainSteps:
    """Plain SGD: shuffled batches, and the gradient of their mean loss and of what the client half adds to it."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        client_half: ClientHalf,
        settings: LocalTraining,
        data: ClientData,
        generator: torch.Generator,
        smallest_batch: int,
    ) -> None:
        self.model, self.objective, self.client_half = model, objective, client_half
        self.settings, self.data = settings, data
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
            raise no_batch(len(self.data.x), self.smallest_batch)

    def gradients(self, rows: Tensor | None) -> list[Tensor]:
        """Of the batch's mean loss."""
        x, y = (self.data.x, self.data.y) if rows is None else (self.data.x[rows], self.data.y[rows])
        outputs = self.model(x.clone() if rows is None else x)  # a layer in place would change the data
        loss = self.objective(outputs, y)
        extra = self.client_half.extra_loss(outputs, rows)
        lowered = loss if extra is None else loss + extra
        gradients = distinct(torch.autograd.grad(lowered, self.weights, materialize_grads=True))
        self.total += loss.detach() * len(x)  # stays on the device: one synchronisation a client, not one a step
        self.count += len(x)
        return gradients

    def end(self, weights: list[Tensor]) -> None:
        """Nothing."""

    def metrics(self) -> dict[str, float]:
        """The mean loss over the round's examples."""
        return {"train_loss": float(self.total) / self.count}

    def keeps(self) -> Params:
        """Nothing."""
        return {}
