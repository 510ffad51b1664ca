"""The drift of one run: how far each client is in the new concept, what that does to its examples, and the truth about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Dataset
from fedsim.fleet.draws import uniforms
from fedsim.streams.schedules import Schedule, Undrifted
from fedsim.streams.shifts import LabelSwap, Rows, Shift, Target, make_shift
from fedsim.streams.stream import NEVER


class Drift:
    """One run's drift. Raises FedsimError where it makes no sense for the dataset."""

    def __init__(self, schedule: Schedule | Undrifted, dataset: Dataset, seed: int, num_clients: int) -> None:
        self.seed, self.num_clients = seed, num_clients
        self.schedule = schedule if isinstance(schedule, Schedule) else None
        self.shift: Shift | None = None
        if self.schedule is not None:
            given = self.schedule
            floating = dataset.preprocess(dataset.one_row[0]).is_floating_point()
            rows = Rows(dataset.task, dataset.classes, dataset.input_shape, floating)
            self.shift = make_shift(given.kind, given.strength, given.classes, rows, seed)
            self._touched, self._delays = given.touched(seed, num_clients), given.delays(seed, num_clients)

    @property
    def drifts(self) -> bool:
        """Whether anything ever moves."""
        return self.schedule is not None

    @property
    def moves_prior(self) -> bool:
        """Whether drift decides which rows come."""
        return self.shift is not None and self.shift.weights(0.0) is not None

    @property
    def moves_inputs(self) -> bool:
        """Whether drift changes inputs."""
        return self.shift is not None and self.shift.moves_inputs

    @property
    def swaps(self) -> bool:
        """Whether drift makes other labels true."""
        return isinstance(self.shift, LabelSwap | Target)

    @property
    def concepts(self) -> tuple[float, ...]:
        """The amounts of the concepts that there are: the old one, and the new one where data drift."""
        return (0.0, 1.0) if self.drifts else (0.0,)

    @property
    def starts(self) -> np.ndarray:
        """(num_clients,) int64 round in which each client's drift begins first; NEVER where it does not."""
        if self.schedule is None:
            return np.full(self.num_clients, NEVER)
        first = self.schedule.at if isinstance(self.schedule.at, int) else self.schedule.at[0]
        return np.where(self._touched, first + self._delays, NEVER)

    def amount(self, clients: np.ndarray, round: int | np.ndarray) -> np.ndarray:
        """(n,) float64 in [0, 1]: how far each of the clients (n,) is in the new concept in its round, one or (n,)."""
        clients = np.asarray(clients)
        if self.schedule is None:
            return np.zeros(len(clients))
        progress = self.schedule.progress(np.asarray(round) - self._delays[clients])
        return np.where(self._touched[clients], progress, 0.0)

    def apply(
        self, x: Tensor, y: Tensor, amounts: np.ndarray, client: int, positions: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Preprocessed rows x (n, ...), y (n, ...), each moved by its amount (n,); the very tensors where none moves.

        client, positions (n,): name the examples' draws. A gradual drift turns amounts into coins. Arguments are not written to.
        """
        if self.schedule is None or self.shift is None:
            return x, y
        if self.schedule.by_coin:
            amounts = (self._draws("coin", client, positions, 1)[:, 0] < amounts).astype(np.float64)
        moved = np.flatnonzero(amounts > 0)
        if not moved.size:
            return x, y
        amount, index = (torch.from_numpy(array).to(x.device) for array in (amounts[moved], moved))

        def draw(name: str, columns: int) -> np.ndarray:
            return self._draws(name, client, positions[moved], columns)

        if self.shift.moves_inputs:
            x = x.index_copy(0, index, self.shift.inputs(x[index], amount, draw))
        if self.shift.moves_targets:
            y = y.index_copy(0, index, self.shift.targets(y[index], amount, draw))
        return x, y

    def weights(self, amount: float) -> np.ndarray:
        """(classes,) how often a row comes, by its class, where drift decides that (`moves_prior`)."""
        weights = None if self.shift is None else self.shift.weights(amount)
        assert weights is not None, "asked for where drift leaves priors alone"
        return weights

    def coming(self, labels: np.ndarray, amount: float, client: int, positions: np.ndarray) -> np.ndarray:
        """(n,) bool: of rows with these labels (n,), a share that has the classes as often as they come at this amount."""
        if not self.moves_prior:
            return np.ones(len(labels), bool)
        weights = self.weights(amount)
        return self._draws("thinning", client, positions, 1)[:, 0] < (weights / weights.max())[labels]

    def truth(self, rounds: int) -> list[dict[str, Any]]:
        """What drifts within so many rounds, event by event, for the run's record.

        round: in which it begins, for the first client; until: the first in which it is complete, for the last client;
        towards: the new concept or back to the old; clients: how many drift.
        """
        if self.schedule is None or self.shift is None or not self._touched.any():
            return []
        late = self._delays[self._touched]
        about = {
            "form": self.schedule.form,
            "kind": self.schedule.kind,
            "strength": self.shift.strength,
            "who": self.schedule.who,
            "clients": int(self._touched.sum()),
            **self.shift.words(),
        }
        first, last = int(late.min()), int(late.max())
        return [
            {"round": begins + first, "until": ends + last, "towards": "new" if new else "old", **about}
            for begins, ends, new in self.schedule.events(rounds - first)
        ]

    def _draws(self, name: str, client: int, positions: np.ndarray, columns: int) -> np.ndarray:
        """(n, columns) float64 in (0, 1)."""
        index = (positions[:, None] * columns + np.arange(columns)).ravel()
        return uniforms(self.seed, f"drift {name}", np.full(len(index), client), index).reshape(-1, columns)
