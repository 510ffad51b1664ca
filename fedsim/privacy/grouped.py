"""Groups of clients that are promised different epsilons under one noise at the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.privacy import accounting
from fedsim.privacy.accounted import Accounted
from fedsim.privacy.budgets import draw_groups, read_groups


class GroupBudgets:
    """The stricter groups are clipped to a smaller norm, over which the same noise is larger.

    noise: z of each group, the noise over its own clipping norm; the most generous group's is the run's.
    """

    def __init__(self, budgets: Mapping[str, Any], owner: Accounted) -> None:
        self.owner, self.groups = owner, read_groups(budgets)
        setting, planned, delta = owner.setting, owner.planned, owner.keys.delta
        self.group_of = draw_groups([group.share for group in self.groups], setting.num_clients, setting.seed)
        self.noise = [accounting.solve(owner.mechanism, planned, group.epsilon, delta) for group in self.groups]

    def clip_shares(self) -> Tensor:
        """(clients,) of the clipping norm."""
        shares = [min(1.0, self.owner.noise_multiplier / z) for z in self.noise]
        return torch.tensor(shares, dtype=torch.float64)[self.group_of]

    def epsilons(self, num_clients: int) -> np.ndarray:
        """(clients,) spent so far."""
        spent, book = np.zeros(num_clients), self.owner.book
        for number, z in enumerate(self.noise):
            own = np.flatnonzero(self.group_of == number)
            mechanism = replace(self.owner.mechanism, noise_multiplier=z)  # type: ignore[type-var]
            counts = [book.charges.get(int(c), 0) if self.owner.public else book.releases for c in own]
            different, places = np.unique(counts, return_inverse=True)
            after = accounting.epsilons_after(mechanism, different.tolist(), self.owner.keys.delta)
            spent[own] = np.array(after)[places]
        return spent

    def describe(self) -> dict[str, Any]:
        """What privacy.json says of each group."""
        sizes = np.bincount(self.group_of, minlength=len(self.groups)).tolist()
        return {
            group.name: {**group._asdict(), "noise_multiplier": z, "clients": size}
            for group, z, size in zip(self.groups, self.noise, sizes, strict=True)
        }
