"""Local training: THE one entry, for one client or for a cohort of many.

`Trainer.train` takes the server's arrays and any number of clients and gives each client's update in turn. How wide it trains,
and in which way, is `execution`: chosen by a rule (`execution.py`), never by who asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from fedsim.training.alone import Alone
from fedsim.training.client_half import ClientHalf
from fedsim.training.dpsgd import DPSGD
from fedsim.training.execution import ONE_AT_A_TIME, Execution, is_out_of_memory, set_precision
from fedsim.training.lockstep import Lockstep
from fedsim.training.objectives import Objective
from fedsim.training.settings import LocalTraining
from fedsim.training.stack import make_copies
from fedsim.training.updates import ClientFailure, ClientUpdate, Folded, Weigh
from fedsim.types import ClientData, Params

log = logging.getLogger(__name__)


class Together(Protocol):
    """Trains clients of several runs at once: see `fedsim.sweeps.pack`."""

    def train(
        self,
        trainer: Trainer,
        received: Params,
        clients: Sequence[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh | None,
    ) -> Iterator[ClientUpdate | ClientFailure | Folded]:
        """As `Trainer.train_folded`; without `weigh` nothing is folded."""


@dataclass
class Trainer:
    """Trains clients.

    model: on the training device. seed: the run's. smallest_batch: a shorter last batch is left out (BatchNorm cannot
    train on one example). local_steps: train by DP-SGD; None: plainly. execution: how wide and in which way.
    pack: trains its clients together with other runs'; None: they train by themselves.
    """

    model: nn.Module
    objective: Objective
    settings: LocalTraining
    client_half: ClientHalf
    seed: int
    smallest_batch: int = 1
    local_steps: DPSGD | None = None
    execution: Execution = ONE_AT_A_TIME
    pack: Together | None = field(default=None, repr=False)
    _made: tuple[tuple[Any, ...], Alone | Lockstep] | None = field(default=None, init=False, repr=False)
    _was_halved: bool = field(default=False, init=False, repr=False)
    _was_told: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.client_half.check(self.model, self.objective, self.local_steps is not None)

    def __getstate__(self) -> dict[str, Any]:
        """A worker makes an engine of its own."""
        return {**self.__dict__, "_made": None, "pack": None}

    def train(
        self,
        received: Params,
        clients: Iterable[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
    ) -> Iterator[ClientUpdate | ClientFailure]:
        """Train each client from `received`, in the order given. What a client's own code or data raise is its failure alone."""
        for result in self._trained(received, clients, data_of, state_of, round, None):
            assert not isinstance(result, Folded), "nothing was weighed"
            yield result

    def train_folded(
        self,
        received: Params,
        clients: Iterable[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh,
    ) -> Iterator[ClientUpdate | ClientFailure | Folded]:
        """As `train`, for who wants the weighted sum alone: clients that train together may come as one."""
        return self._trained(received, clients, data_of, state_of, round, weigh)

    def _trained(
        self,
        received: Params,
        clients: Iterable[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh | None,
    ) -> Iterator[ClientUpdate | ClientFailure | Folded]:
        if self.pack is None or self.client_half.alone:
            return self.train_here(received, clients, data_of, state_of, round, weigh)
        return self.pack.train(self, received, list(clients), data_of, state_of, round, weigh)

    def train_here(
        self,
        received: Params,
        clients: Iterable[int],
        data_of: Callable[[int], ClientData],
        state_of: Callable[[int], Params],
        round: int,
        weigh: Weigh | None,
    ) -> Iterator[ClientUpdate | ClientFailure | Folded]:
        """As `train_folded`, without clients of other runs; without `weigh` nothing is folded."""
        waiting = list(clients)
        while waiting:
            group = waiting[: 1 if self.client_half.alone else self.execution.width]
            try:
                engine = self._engine()
                if weigh is not None and isinstance(engine, Lockstep):
                    yield from engine.train_folded(received, group, data_of, state_of, round, weigh)
                else:
                    yield from engine.train(received, group, data_of, state_of, round)
            except Exception as error:  # of the group as one: whose it is shows when each trains by itself
                if self._halved(error):
                    continue
                self._tell_apart(group, error)
                engine = self._engine()
                for client in group:
                    yield from engine.train(received, [client], data_of, state_of, round)
            waiting = waiting[len(group) :]

    @property
    def parts(self) -> tuple[Any, ...]:
        """What an engine is made of, beside the execution."""
        return (
            *(self.model, self.objective, self.settings, self.client_half),
            *(self.seed, self.smallest_batch, self.local_steps),
        )

    def alone(self) -> Alone:
        """The same training, one client at a time."""
        return Alone(*self.parts)

    def _engine(self) -> Alone | Lockstep:
        """Made anew only where one of the trainer's parts is another."""
        parts = self.parts
        if self._made is None or any(a is not b for a, b in zip(self._made[0], (*parts, self.execution), strict=True)):
            if next(self.model.parameters()).device.type == "cuda":
                set_precision(self.execution.precision)
            if self.execution.way == "one" or self.client_half.alone:
                engine: Alone | Lockstep = self.alone()
            else:
                engine = Lockstep(make_copies(self.model, self.execution), *parts)
            self._made = (*parts, self.execution), engine
        return self._made[1]

    def _tell_apart(self, group: list[int], error: Exception) -> None:
        """Say once in a run, in this process, that a group is trained one by one, which takes its time."""
        if len(group) > 1 and not self._was_told:
            reason = ClientFailure.of(group[0], error).reason.splitlines()[0]
            log.warning("%d clients could not be trained together (%s); each is trained by itself", len(group), reason)
            self._was_told = True

    def _halved(self, error: Exception) -> bool:
        """Whether memory ran out and half the width is worth a try: once in a run, in this process."""
        if not is_out_of_memory(error) or self._was_halved or self.execution.width == 1:
            return False
        width = self.execution.width // 2
        log.warning(
            "memory ran out with %d clients in lockstep; going on with %d, which may change the last bits; "
            "set grid.width=%d to have it so from the start",
            *(self.execution.width, width, width),
        )
        self.execution, self._made, self._was_halved = replace(self.execution, width=width), None, True
        if next(self.model.parameters()).device.type == "cuda":
            torch.cuda.empty_cache()
        return True
