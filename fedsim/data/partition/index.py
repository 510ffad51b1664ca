"""What a scheme looks at, and what it gives: an index of rows by client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Columns(NamedTuple):
    """What a scheme may look at, one entry a training row.

    label: (n,) class labels, or real targets of a regression, or users where the task is next_token.
    user: (n,) natural user of each row, or None. time: (n,) arrival order, or None.
    """

    label: np.ndarray
    user: np.ndarray | Blocks | None = None
    time: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Columns:
        """The columns of these rows alone."""
        user, time = (None if column is None else column[rows] for column in (self.user, self.time))
        return Columns(self.label[rows], user, time)


class Partition(NamedTuple):
    """An index of rows by client. offsets: (num_clients + 1,) int64 from 0; rows: (assigned,) int64 row numbers.

    rows may be a `range`, which takes no memory however many clients there are.
    """

    offsets: np.ndarray
    rows: np.ndarray | range

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(num_clients,) rows of each client."""
        return np.diff(self.offsets)

    def client(self, client: int) -> np.ndarray:
        """Rows of one client, ascending: a view, so that asking costs nothing; IndexError for a client there is not."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}")
        return np.asarray(self.rows[self.offsets[client] : self.offsets[client + 1]])


@dataclass(frozen=True)
class Blocks:
    """The user of each row, where users 0, 1, 2 ... hold `size` consecutive rows each; numpy sees the array that it stands for."""

    users: int
    size: int

    def __len__(self) -> int:
        return self.users * self.size

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows) // self.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.repeat(np.arange(self.users, dtype=dtype), self.size)

    def partition(self, chosen: np.ndarray | None) -> Partition:
        """Each user a client, or each of those chosen (clients,)."""
        if chosen is None:
            return Partition(np.arange(self.users + 1) * self.size, range(len(self)))
        rows = chosen[:, None] * self.size + np.arange(self.size)
        return Partition(np.arange(len(chosen) + 1) * self.size, rows.ravel())


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """(clients,) rows of each client to (clients + 1,) offsets."""
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def by_owner(owner: np.ndarray, clients: int) -> Partition:
    """The index of `clients` clients. owner: (n,) the client of each row, -1 for a row that nobody holds."""
    held = np.flatnonzero(owner >= 0)
    owner = owner[held].astype(np.int32)
    return Partition(offsets_of(np.bincount(owner, minlength=clients)), held[np.argsort(owner, kind="stable")])
