"""The device's half of `privacy=example`: what clients train with by DP-SGD, whatever the server's books count."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.privacy.accounted import Booked
from fedsim.privacy.accounting import Spent
from fedsim.privacy.base import Setting
from fedsim.training.dpsgd import DPSGD, expected_batch, update_multiplier

if TYPE_CHECKING:
    from fedsim.privacy.example import ExamplePrivacy


class PrivateDevices(Booked):
    """Clients train by DP-SGD and send their models as ever; the server keeps the books, which subclasses do.

    account_of: (clients,) the account of each, or NO_ACCOUNT. z: (accounts,) the noise multiplier of its clients. Subclasses set
    both. left: clients that might not take part in the last round that was charged, since they had nothing left to spend.
    """

    unit = "example"
    account_of: np.ndarray
    z: np.ndarray
    left: int = 0

    def __init__(self, part: ExamplePrivacy, setting: Setting) -> None:
        super().__init__(setting, part.keys[0].secure_rng)
        self.part, self.keys = part, part.keys[0]
        self.local_steps = DPSGD(
            self.noise_multiplier_of,
            self.draw_noise,
            self.draw_chances,
            part.clip_norm,
            part.clipping,
            part.way,
            part.target_quantile,
            part.clip_lr,
            part.count_noise,
        )

    def check_count_noise(self) -> None:
        """Refuse, once `z` is known, a count's noise that would cost more than z allows."""
        if self.part.clipping == "adaptive" and self.part.count_noise is not None:
            update_multiplier(float(self.z.max()), self.part.count_noise)

    def noise_multiplier_of(self, client: int) -> float:
        """What a client's noise is really drawn with: its z, unless noise was removed on purpose."""
        return 0.0 if self.noise_removed else float(self.z[self.account_of[client]])

    def draw_noise(self, size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
        """See fedsim.training.dpsgd.Noise."""
        return self.source.gaussian({"": torch.empty(size)}, std, round, client, self.purpose(purpose, round))[""]

    def draw_chances(self, size: int, round: int, client: int, purpose: str) -> Tensor:
        """See fedsim.training.dpsgd.Chances. The batches must be as secret as the noise is."""
        if self.keys.secure_rng:
            integers = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(11)
            return torch.from_numpy(integers * 2.0**-53)
        draw = rng.wide_generator(self.setting.seed, round, client, self.purpose(purpose, round))
        return torch.rand(size, dtype=torch.float64, generator=draw)

    def clients_spent(self, round: int) -> int:
        """How many clients might take part in this round, the next to be charged, had they anything left to spend."""
        raise NotImplementedError

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """See Booked."""
        self.left = self.clients_spent(round)
        super().charge(round, cohort)

    def described(self, account: int, spent: Spent, delta: float, adjacency: str) -> dict[str, Any]:
        """What the ledger says of the account that has spent most."""
        return {
            "noise_multiplier": float(self.z[account]),
            "noise_multipliers": [float(self.z.min()), float(self.z.max())],
            "unit": self.unit,
            "adjacency": adjacency,
            "accountant": spent.accountant,
            "delta": delta,
            "epsilon": spent.epsilon if math.isfinite(spent.epsilon) else None,
            "epsilon_by": {name: spent.by.get(name) for name in ("pld", "rdp", "prv")},
        }

    def ledger_of(
        self,
        where: tuple[str, str],
        worst: dict[str, Any],
        sizes: np.ndarray,
        budget: float | None,
        next_round: int,
        caveats: Sequence[str],
    ) -> dict[str, Any]:
        """The ledger. where: DP-SGD runs, and batches are drawn. worst: see `described`. sizes: (n,) of sets that batches are from.

        budget: of the account that has spent most. next_round: the one that would be charged next. caveats: beside that of noise
        which was removed.
        """
        part = self.part
        batches = [expected_batch(self.setting.training, int(size)) for size in np.unique(sizes) if size > 0]
        more = {"budgets": {group.name: group._asdict() for group in part.groups}} if part.groups else {}
        removed = ["The noise was removed on purpose (audit.remove_noise=true): nothing is protected in this run."]
        return {
            "mechanism": f"DP-SGD{where[0]}, {part.clipping.replace('_', '-')} clipping",
            **worst,
            "sampling": f"poisson batches{where[1]} on the device",
            "clip_norm": part.clip_norm,
            "sensitivity": part.clip_norm,
            "denominator": f"the expected batch: {min(batches)} to {max(batches)} examples",
            "rounds": self.book.releases,
            "rounds_planned": self.setting.rounds,
            "participations": {"most": int(self.participations().max()), "limit": part.max_participations},
            "budget": budget,
            "clients_spent": self.clients_spent(next_round),
            **more,
            "generator": self.source.generator,
            "trust": "nobody outside the device",
            "against": "anyone who sees every update of every client, the server too",
            **({"noise_removed": True} if self.noise_removed else {}),
            "caveats": [*(removed if self.noise_removed else []), *caveats],
        }

    def participations(self) -> np.ndarray:
        """(clients,) rounds that each has been charged for."""
        counts = np.zeros(len(self.account_of), dtype=np.int64)
        for client, count in self.book.charges.items():
            counts[client] = count
        return counts
