"""What is trained together: clients, by what each of them trains, their data as one, and the batches of their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedsim.training.client_half import ClientHalf, Device
from fedsim.training.dpsgd import DPSGD, PrivateClient
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.training.settings import LocalTraining
from fedsim.training.updates import Weigh
from fedsim.types import ClientData, Params


class Recipe(NamedTuple):
    """By what a run's clients train, beside the model and the objective; as the Trainer's fields."""

    settings: LocalTraining
    client_half: ClientHalf
    seed: int
    local_steps: DPSGD | None

    @property
    def takes_any_rate(self) -> bool:
        """Whether a step at a fraction of another's rate is a step along a fraction of the gradient."""
        return self.settings.optimizer is None and not self.settings.weight_decay


class Job(NamedTuple):
    """A client to train. Clients of several runs may be trained together, see `alike`.

    weigh: those that were given the very same one are wanted as their weighted sum alone; None: each is wanted by itself.
    """

    recipe: Recipe
    received: Params
    client: int
    data_of: Callable[[int], ClientData]
    state_of: Callable[[int], Params]
    round: int
    weigh: Weigh | None = None


@dataclass
class Member:
    """One client of a group. drawn: the rows of all its steps and each step's number of them (plain training). private: what it
    draws under DP-SGD.
    """

    place: int
    job: Job
    lr: float
    data: ClientData
    half: ClientHalf
    device: Device
    initial: Params
    metrics: dict[str, float]
    generator: torch.Generator
    drawn: tuple[Tensor, list[int]] | None
    private: PrivateClient | None

    @property
    def in_span(self) -> bool:
        """Whether it trains by DP-SGD and keeps to the span of its own inputs."""
        return self.private is not None and self.private.span is not None

    @property
    def steps(self) -> int:
        """In this round."""
        if self.private is not None:
            return self.private.steps
        assert self.drawn is not None
        return len(self.drawn[1])


class Group:
    """The members' data as one, and the batches of their steps.

    relative_lr: (members,) each one's learning rate over the largest, at which all step; None where they are the same.
    """

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        ends = torch.tensor([len(member.data.x) for member in members]).cumsum(0)
        self.offsets = [0, *ends.tolist()]
        self.relative_lr: Tensor | None = None
        self.losses: list[Tensor] = []
        self.rows: list[int] = []

    @cached_property
    def x(self) -> Tensor:
        """(n, ...) of all members, one after the other; clients that keep to a span do without."""
        return _joined([member.data.x for member in self.members])

    @cached_property
    def y(self) -> Tensor:
        """(n, ...) as x."""
        return _joined([member.data.y for member in self.members])

    def at_own_lr(self, gradient: Tensor) -> Tensor:
        """(k, ...) gradients of the active members such that one step at the largest rate is each one's at its own."""
        if self.relative_lr is None:
            return gradient
        return gradient * self.relative_lr[: len(gradient)].view(-1, *[1] * (gradient.dim() - 1))

    def private(self, active: int) -> list[PrivateClient]:
        """What the active members draw under DP-SGD."""
        return [member.private for member in self.members[:active] if member.private is not None]

    @property
    def in_spans(self) -> bool:
        """Whether all members keep to a span."""
        return all(member.in_span for member in self.members)

    @property
    def longest(self) -> list[int]:
        """Rows of each step's longest batch, of plain training."""
        return [max(size or 0 for size in sizes) for sizes in self._drawn[1]]

    @cached_property
    def _drawn(self) -> tuple[Tensor, list[tuple[int, ...]]]:
        """(steps, members, longest batch) row numbers, -1 where a batch is filled up or not made; each step's batch sizes."""
        drawn = [member.drawn for member in self.members if member.drawn is not None]
        sizes = [own for _, own in drawn]
        longest, steps = max(map(max, sizes)), len(sizes[0])
        if all(own == [longest] * steps for own in sizes):
            rows = torch.stack([rows for rows, _ in drawn]) + torch.tensor(self.offsets[:-1])[:, None]
            matrix = rows.view(len(drawn), steps, longest)
        else:
            matrix = torch.full((len(drawn), steps, longest), -1)
            for own, (rows, lengths), offset in zip(matrix, drawn, self.offsets, strict=False):
                padded = pad_sequence((rows + offset).split(lengths), batch_first=True, padding_value=-1)
                own[: len(lengths), : padded.shape[1]] = padded
        return matrix.transpose(0, 1).contiguous().to(self.x.device), list(zip_longest(*sizes))

    def batch(self, number: int, active: int) -> tuple[Tensor, Tensor, list[int]]:
        """x, y: (active * b, ...) of step `number`, and how many rows count in each active member's batch.

        What fills up a batch has the target IGNORED_TARGET. A Poisson batch is drawn here, once: where the operating system
        draws, it would be another the next time.
        """
        if self.members[0].private is not None:
            drawn = [member.private.rows(number) for member in self.members[:active]]  # type: ignore[union-attr]
            sizes = [len(one) for one in drawn]
            placed = [one + offset for one, offset in zip(drawn, self.offsets, strict=False)]
            rows = pad_sequence(placed, batch_first=True, padding_value=-1).to(self.x.device)
        else:
            matrix, all_sizes = self._drawn
            sizes = list(all_sizes[number][:active])
            rows = matrix[number, :active, : max(sizes)]
        if min(sizes) == rows.shape[1]:
            flat = rows.flatten()
            return self.x.index_select(0, flat), self.y.index_select(0, flat), sizes
        # what fills up is a row of the client's own batch: another's, or one that was not drawn, might not be finite
        first = torch.tensor(self.offsets[:active], device=rows.device)[:, None]
        first = torch.where(rows[:, :1] < 0, first, rows[:, :1])
        filled, flat = (rows < 0).flatten(), torch.where(rows < 0, first, rows).flatten()
        x, y = self.x.index_select(0, flat), self.y.index_select(0, flat)
        if not y.is_floating_point():
            y[filled] = IGNORED_TARGET
        return x, y, sizes

    def count(self, losses: Tensor, sizes: list[int]) -> None:
        """Take note of losses (k,), which are means over so many rows; they stay on the device."""
        self.losses.append(losses)
        self.rows += sizes

    def train_losses(self) -> list[dict[str, float]]:
        """Each member's mean loss over the round's examples."""
        totals, counts = [0.0] * len(self.members), [0] * len(self.members)
        place = 0
        for losses in torch.cat(self.losses).cpu().split([len(losses) for losses in self.losses]):
            for row, loss in enumerate(losses.tolist()):
                totals[row] += loss * self.rows[place]
                counts[row] += self.rows[place]
                place += 1
        return [{"train_loss": total / count} for total, count in zip(totals, counts, strict=True)]


def _joined(arrays: list[Tensor]) -> Tensor:
    return arrays[0] if len(arrays) == 1 else torch.cat(arrays)


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether clients of both can be trained together, in steps at one rate or (`Recipe.takes_any_rate`) each at its own.

    Seeds, noise and clipping norms may differ.
    """
    mine, yours = (replace(recipe.settings, lr=1.0, lr_decay=1.0, optimizer=None) for recipe in (one, other))
    if mine != yours or _made_of(one.settings.optimizer) != _made_of(other.settings.optimizer):
        return False
    if not _same_half(one.client_half, other.client_half):
        return False
    rules = [(r.clipping, r.way) if (r := recipe.local_steps) is not None else None for recipe in (one, other)]
    return rules[0] == rules[1]


def _same_half(one: ClientHalf, other: ClientHalf) -> bool:
    """Of one kind, with the same plain values; what else they hold (arrays, say) is not looked into and counts as different."""
    mine, yours = vars(one), vars(other)
    plain = all(isinstance(value, (bool, int, float, str, type(None))) for value in [*mine.values(), *yours.values()])
    return one is other or (type(one) is type(other) and plain and mine == yours)


def _made_of(optimizer: Any) -> Any:
    """What a partial is made of, by which two of them are equal."""
    return (optimizer.func, optimizer.args, optimizer.keywords) if isinstance(optimizer, partial) else optimizer
