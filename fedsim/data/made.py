"""Rows that are made when they are asked for: nothing is stored, so that there may be any number of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Examples
from fedsim.data.partition.index import Blocks
from fedsim.types import FedsimError

MOST_AT_ONCE = 1_000_000
"""Rows that are made all at once where somebody needs all of them; of more, nobody may ask for all."""


class MadeExamples(Examples):
    """Rows user * per_user + i of users 0, 1, 2 ..., in the users' order.

    make: a user's rows, x (per_user, ...) and y (per_user, ...), the same whenever it is asked. identity: says all that the
    rows depend on, in one line: two sets are the same where it is. `x` and `y` are made where there are few rows, else refused.
    """

    make: Callable[[int], tuple[Tensor, Tensor]]
    users: int
    per_user: int
    _identity: str

    def __init__(self, make: Callable[[int], tuple[Tensor, Tensor]], users: int, per_user: int, identity: str) -> None:
        own = {"make": make, "users": users, "per_user": per_user, "_identity": identity, "user": None, "time": None}
        self.__dict__.update(own)  # the class is frozen

    def __len__(self) -> int:
        return self.users * self.per_user

    def __repr__(self) -> str:
        return f"MadeExamples({len(self):,} rows: {self.identity})"

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """See Examples; costs as many users as the rows are of."""
        if len(rows) == 0:
            x, y = self.checked()
            return x[:0], y[:0]
        user = int(rows[0]) // self.per_user
        if int(rows[-1]) // self.per_user == user and (rows[1:] > rows[:-1]).all():  # one user's, as a rule
            x, y = self.make(user)
            if len(rows) == self.per_user:
                return x, y
            index = torch.from_numpy(rows - user * self.per_user)
            return x[index], y[index]
        users, row = np.divmod(rows, self.per_user)
        there, place = np.unique(users, return_inverse=True)
        made = [self.make(user) for user in there.tolist()]
        flat = torch.from_numpy(place * self.per_user + row)
        return tuple(torch.cat([one[column] for one in made])[flat] for column in (0, 1))  # type: ignore[return-value]

    def targets(self, rows: np.ndarray) -> Tensor:
        """See Examples."""
        return self.take(rows)[1]

    @property
    def identity(self) -> str:
        """See Examples."""
        return self._identity

    def checked(self) -> tuple[Tensor, Tensor]:
        """See Examples: one user's rows speak for all."""
        return self.make(0)

    @property
    def nbytes(self) -> int:
        """See Examples: none is kept."""
        return 0

    @property
    def label(self) -> Any:
        """See Examples: made when it is looked at."""
        return _Labels(self)

    @property
    def owner(self) -> Any:
        """See Examples: an arithmetic of row numbers."""
        return Blocks(self.users, self.per_user)

    @property
    def x(self) -> Tensor:
        """All inputs, where there are few."""
        return self._all[0]

    @property
    def y(self) -> Tensor:
        """All targets, where there are few."""
        return self._all[1]

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        if len(self) > MOST_AT_ONCE:
            raise FedsimError(
                f"the {len(self):,} rows of this dataset are made client by client, and something here needs all of them at once "
                f"(up to {MOST_AT_ONCE:,} can be had); set partition=natural and corruption=none, or lower dataset.num_clients"
            )
        return self.take(np.arange(len(self)))


class _Labels:
    """Targets as a partition looks at them: their number and type are known before they are made."""

    def __init__(self, examples: MadeExamples) -> None:
        self.examples = examples
        self.dtype = examples.checked()[1].numpy().dtype

    def __len__(self) -> int:
        return len(self.examples)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.examples.y.numpy(), dtype)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self)[rows]
