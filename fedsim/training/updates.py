"""What comes of one client's training, and the batches that it makes its steps on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.training.per_example import NOT_FINITE
from fedsim.training.settings import LocalTraining
from fedsim.types import FedsimError, Params


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


Weigh = Callable[[ClientUpdate], float]
"""The weight of a client's arrays in a sum, by what else its update says; the arrays themselves may not be there."""


class Folded(NamedTuple):
    """Clients that trained together, as one sum: `arrays` is that of each one's arrays times its weight.

    updates: each client's, without its arrays, which were written nowhere.
    """

    arrays: Params
    updates: list[ClientUpdate]


class ClientFailure(NamedTuple):
    """A client that raised, or whose update is not finite; the round goes on without it."""

    client: int
    reason: str

    @classmethod
    def of(cls, client: int, error: Exception) -> ClientFailure:
        """In the error's own words where they are fedsim's."""
        own = isinstance(error, FedsimError)
        return cls(client, str(error) if own else f"{type(error).__name__}: {error}")


def draw_rows(
    num_examples: int, settings: LocalTraining, generator: torch.Generator, smallest: int = 1
) -> tuple[Tensor, list[int]]:
    """Row numbers of all steps' batches one after the other, and how many rows each batch has.

    Each epoch is shuffled anew; its last batch is short, and left out below `smallest`. Where a batch is all rows they keep
    their order.
    """
    size = min(settings.batch_size or num_examples, num_examples)
    sizes = [size] * (num_examples // size) + [num_examples % size]
    sizes = [one for one in sizes if one >= max(1, smallest)]
    epochs = []
    for _ in range(settings.epochs if sizes else 0):
        whole = size == num_examples
        rows = torch.arange(num_examples) if whole else torch.randperm(num_examples, generator=generator)
        epochs.append(rows[: sum(sizes)])
    sizes = (sizes * settings.epochs)[: settings.steps(num_examples)]
    return (torch.cat(epochs)[: sum(sizes)] if epochs else torch.empty(0, dtype=torch.int64)), sizes


def batches(
    num_examples: int, settings: LocalTraining, generator: torch.Generator, smallest: int = 1
) -> Iterator[Tensor | None]:
    """The rows of each step, see `draw_rows`; None stands for all of them."""
    rows, sizes = draw_rows(num_examples, settings, generator, smallest)
    yield from (None if len(batch) == num_examples else batch for batch in rows.split(sizes))


def check_metrics(metrics: dict[str, float]) -> None:
    """Refuse numbers beside the update of a client that trains by DP-SGD."""
    if metrics:
        raise FedsimError(
            f"the strategy would send {', '.join(metrics)} beside the update, which DP-SGD does not cover; "
            "use another strategy=..., or privacy=none"
        )


def no_batch(examples: int, smallest: int) -> FedsimError:
    """A client too small for the model."""
    return FedsimError(f"its {examples} examples make no batch of {smallest}, the least this model trains on")


def not_finite(steps: int, gradient: bool = False) -> FedsimError:
    """An update, or already an example's gradient, holds NaN or Inf."""
    if gradient:
        return FedsimError(NOT_FINITE)
    return FedsimError(f"its update is not finite after {steps} steps; lower client.lr or set client.max_grad_norm")
