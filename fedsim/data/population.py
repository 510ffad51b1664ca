"""The population: an index of who holds which rows; a client's data come into being when it is asked for."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Partition
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import ClientData


class Population:
    """Clients 0 .. num_clients - 1, each with rows to train on and held-out rows to be judged on.

    holdout: the share of each client's rows that it never trains on (rounded down). corruption: what is wrong with the
    rows. seed: the run's. device: where tensors are put; `preprocess` is the dataset's pipeline there.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        corruption: Corruption,
        holdout: float,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.partition, self.corruption = dataset, partition, corruption
        self.holdout, self.seed, self.device = holdout, seed, torch.device(device)
        self.preprocess = copy.deepcopy(dataset.preprocess).to(self.device)

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

    def training_data(self, client: int) -> ClientData:
        """What the client trains on."""
        return self._materialise(client, self.rows(client)[0], training=True)

    def holdout_data(self, client: int) -> ClientData:
        """What the client is judged on; its labels are never corrupted."""
        return self._materialise(client, self.rows(client)[1], training=False)

    def _materialise(self, client: int, rows: np.ndarray, *, training: bool) -> ClientData:
        index = torch.from_numpy(rows)
        examples = self.dataset.train
        with torch.no_grad():
            x = self.preprocess(examples.x[index].to(self.device))
        y = examples.y[index].to(self.device)
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
    def class_counts(self) -> np.ndarray | None:
        """(clients, classes) targets of each class among all rows of a client; None for regression."""
        classes = len(self.dataset.classes)
        if self.dataset.task == "regression":
            return None
        y = self.dataset.train.y.numpy()[self.partition.rows]  # (assigned, ...)
        owner = np.repeat(np.arange(self.partition.num_clients), self.partition.sizes)
        if y.ndim > 1:
            owner = np.repeat(owner, y.shape[1])
            y = y.reshape(-1)
            owner, y = owner[y != IGNORED_TARGET], y[y != IGNORED_TARGET]
        return np.bincount(owner * classes + y, minlength=self.partition.num_clients * classes).reshape(-1, classes)

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

    def training_data(self, client: int) -> ClientData:
        """Everybody's training rows, with each client's own corruption."""
        return ClientData(client, *self._pooled)
