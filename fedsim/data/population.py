"""The population: an index of who holds which rows; a client's data come into being when it is asked for."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset
from fedsim.data.made import MOST_AT_ONCE, MadeExamples
from fedsim.data.partition import Partition
from fedsim.data.prepared import Prepared
from fedsim.data.resident import Resident
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import ClientData

PACK = 65_536
"""Clients that are gone through at a time where all are: what is in hand does not grow with the population."""

LEAST_KEPT = 0.25
"""Share of the population's data that must have room in memory: keeping takes time, which is lost where nothing is found again."""

MOST_COUNTED = 2_000
"""Clients whose classes are counted where rows are made when asked for, and many."""


class Population:
    """Clients 0 .. num_clients - 1, each with rows to train on and held-out rows to be judged on.

    holdout: the share of each client's rows that it never trains on (rounded down). corruption: what is wrong with the
    rows. seed: the run's. device: where tensors are put; `preprocess` is the dataset's pipeline there. cache_mb: of clients'
    training data that are kept ready from round to round.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        corruption: Corruption,
        holdout: float,
        seed: int,
        device: torch.device | str = "cpu",
        cache_mb: int = 256,
    ) -> None:
        self._resident: Resident | None = None
        self.dataset, self.partition, self.corruption = dataset, partition, corruption
        self._prepared = Prepared(self._worth_keeping(cache_mb * 10**6))
        self.holdout, self.seed, self.device = holdout, seed, torch.device(device)
        self.preprocess = copy.deepcopy(dataset.preprocess).to(self.device)

    def _worth_keeping(self, most_bytes: int) -> int:
        """`most_bytes`, or none where most clients would be gone from the cache before they are sampled again.

        Rows that are made when asked for are made each time: then a cohort costs the same from a population of any size.
        """
        if isinstance(self.dataset.train, MadeExamples):
            return 0
        x, y = self.dataset.one_row
        row = self.dataset.preprocess(x).nbytes + y.nbytes
        return most_bytes if most_bytes >= LEAST_KEPT * row * int(self.partition.offsets[-1]) else 0

    def __getstate__(self) -> dict[str, Any]:
        """Another process has a device of its own."""
        return {**self.__dict__, "_resident": None}

    @property
    def num_clients(self) -> int:
        """How many clients there are to be sampled for training."""
        return self.partition.num_clients

    @property
    def num_holders(self) -> int:
        """How many clients hold data, and are evaluated."""
        return self.partition.num_clients

    def rows(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training split: (to train on, held out), each ascending. The same in every round."""
        rows = self.partition.client(client)
        held = int(len(rows) * self.holdout)
        if held == 0:
            return rows, rows[:0]
        out = rng.numpy_generator(self.seed, 0, client, "holdout").permutation(len(rows))[:held]
        mask = np.zeros(len(rows), dtype=bool)
        mask[out] = True
        return rows[~mask], rows[mask]

    def training_data(self, client: int, round: int = 1) -> ClientData:
        """What the client trains on, the same in every round; not to be changed in place."""
        return self._prepared.get(client, lambda: self._materialise(client, self.rows(client)[0], training=True))

    def holdout_data(self, client: int) -> ClientData:
        """What the client is judged on; its labels are never corrupted."""
        return self._materialise(client, self.rows(client)[1], training=False)

    def _materialise(self, client: int, rows: np.ndarray, *, training: bool) -> ClientData:
        if self._resident is None or self._resident.device != self.device:
            self._resident = Resident(self.dataset.train, self.device)
        x, y = self._resident.take(rows)
        with torch.no_grad():
            x = self.preprocess(x)
        x, y = self.corruption.apply(
            x,
            y,
            client=client,
            num_clients=self.partition.num_clients,
            num_classes=len(self.dataset.classes),
            seed=self.seed,
            training=training,
        )
        return ClientData(client, x, y)

    @cached_property
    def counted(self) -> np.ndarray:
        """(counted,) clients whose classes are counted, ascending: all, or some by chance where many rows would have to be made."""
        clients = self.partition.num_clients
        if not isinstance(self.dataset.train, MadeExamples) or self.partition.offsets[-1] <= MOST_AT_ONCE:
            return np.arange(clients)
        draw = rng.numpy_generator(self.seed, 0, rng.SERVER, "counted clients")
        most = min(clients, MOST_COUNTED, max(1, MOST_AT_ONCE // self.dataset.train.per_user))
        return np.sort(draw.choice(clients, size=most, replace=False, shuffle=False))

    @cached_property
    def class_counts(self) -> np.ndarray | None:
        """(counted, classes) int32 targets of each class among all rows of each client in `counted`; None for regression."""
        if self.dataset.task == "regression":
            return None
        parts = [self.counted[start : start + PACK] for start in range(0, len(self.counted), PACK)]
        return np.concatenate([self._count(clients) for clients in parts])

    def _count(self, clients: np.ndarray) -> np.ndarray:
        """(clients, classes), see `class_counts`. clients: (clients,) ascending."""
        classes, offsets = len(self.dataset.classes), self.partition.offsets
        sizes = offsets[clients + 1] - offsets[clients]
        owner = np.repeat(np.arange(len(clients)), sizes)
        places = np.arange(len(owner)) + np.repeat(offsets[clients] - (np.cumsum(sizes) - sizes), sizes)
        y = self.dataset.train.targets(_rows_at(self.partition.rows, places)).numpy()  # (their rows, ...)
        if y.ndim > 1:
            owner = np.repeat(owner, y.shape[1])
            y = y.reshape(-1)
            owner, y = owner[y != IGNORED_TARGET], y[y != IGNORED_TARGET]
        counts = np.bincount(owner * classes + y, minlength=len(clients) * classes)
        return counts.reshape(-1, classes).astype(np.int32)

    @cached_property
    def holdout_sizes(self) -> np.ndarray:
        """(clients,) how many rows each client holds out."""
        return np.floor(self.partition.sizes * self.holdout).astype(np.int64)


class PooledPopulation(Population):
    """The same data in one place: a single client trains on what all clients would train on. Judged client by client."""

    @property
    def num_clients(self) -> int:
        """One."""
        return 1

    @cached_property
    def _pooled(self) -> tuple[Tensor, Tensor]:
        parts = [super(PooledPopulation, self).training_data(client) for client in range(self.num_holders)]
        return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])

    def training_data(self, client: int, round: int = 1) -> ClientData:
        """Everybody's training rows, with each client's own corruption."""
        return ClientData(client, *self._pooled)


def _rows_at(rows: np.ndarray | range, places: np.ndarray) -> np.ndarray:
    """Row numbers at places (k,) of an index; a range is an arithmetic."""
    return rows.start + rows.step * places if isinstance(rows, range) else rows[places]
