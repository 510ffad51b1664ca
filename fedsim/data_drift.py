"""The data-drift report of a run: what came in each window of rounds against the first, and what the model made of it.

It is the simulation's own look at what devices hold: nothing of it reaches a device, and no promise of privacy covers it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.streams.movement import Movement, described, spaced
from fedsim.streams.population import StreamedPopulation
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import FedsimError

SAMPLE = 2_000
"""Examples of a window that are compared, at most: evenly spread over it."""


class Window(NamedTuple):
    """last: its last round. features: (n, features). labels: (classes,) counts, or (n, 1) values of a regression."""

    last: int
    names: list[str]
    features: np.ndarray
    labels: np.ndarray


class DataDrift:
    """Counts what the model predicts as rounds go by; the rest is a function of the population and is looked at in the end."""

    def __init__(self, population: StreamedPopulation, width: int) -> None:
        """width: rounds of a window."""
        self.population, self.width = population, width
        self.classes = 0 if population.dataset.task == "regression" else population.dataset.num_outputs
        self._predicted: dict[int, np.ndarray] = {}

    def take(self, round: int, predicted: np.ndarray) -> None:
        """What the model said of a round's arrivals, (n,) int64 classes; none in a regression."""
        if self.classes:
            counts = np.bincount(predicted, minlength=self.classes)
            self._predicted[self._last(round)] = self._predicted.get(self._last(round), 0) + counts

    def _last(self, round: int) -> int:
        return -(-round // self.width) * self.width

    def table(self, rounds: int) -> dict[str, Any]:
        """Columns of data_drift.parquet, see `fedsim.streams.movement`; of whole windows alone."""
        movement, first = Movement(), None
        for last in range(self.width, rounds + 1, self.width):
            window = self._window(last)
            if window is None:
                continue
            if first is None:
                first = window
                continue
            movement.features(last, window.names, first.features, window.features)
            if not self.classes:
                movement.features(last, ["label"], first.labels, window.labels)
                continue
            movement.classes(last, "label", first.labels, window.labels)
            before, now = (self._predicted.get(one.last) for one in (first, window))
            if before is not None and now is not None and before.any() and now.any():
                movement.classes(last, "prediction", before, now)
        return movement.table()

    def _window(self, last: int) -> Window | None:
        """What came in the rounds of a window, at most SAMPLE examples; None where nothing did."""
        population = self.population
        rounds = range(last - self.width + 1, last + 1)
        arrived = {round: population.arrived(round) for round in rounds}
        came = [(round, client) for round in rounds for client in np.flatnonzero(arrived[round]).tolist()]
        counts = np.array([arrived[round][client] for round, client in came], np.int64)
        chosen = spaced(int(counts.sum()), SAMPLE)
        if not len(chosen):
            return None
        starts = np.cumsum(counts) - counts
        owner = np.searchsorted(starts, chosen, side="right") - 1
        x, y = [], []
        for place in np.unique(owner).tolist():
            round, client = came[place]
            data = population.arriving_data(client, round)
            rows = torch.from_numpy(chosen[owner == place] - starts[place]).to(data.x.device)
            x.append(data.x[rows])
            y.append(data.y[rows])
        features, names = described(torch.cat(x))
        return Window(last, names, features, self._labels(torch.cat(y).cpu().numpy()))

    def _labels(self, y: np.ndarray) -> np.ndarray:
        if not self.classes:
            return np.asarray(y, np.float64).reshape(-1, 1)
        return np.bincount(y[y != IGNORED_TARGET], minlength=self.classes)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        windows = sorted(self._predicted)
        counts = np.array([self._predicted[last] for last in windows], np.int64)
        return {"windows": np.array(windows, np.int64), "counts": counts.reshape(len(windows), self.classes)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises FedsimError where it is something else."""
        try:
            self._predicted = dict(zip(state["windows"].tolist(), state["counts"].copy(), strict=True))
        except (KeyError, AttributeError, ValueError) as error:
            raise FedsimError(
                "the checkpoint does not hold what evaluation.data_drift counted, so it is corrupt; start anew"
            ) from error
