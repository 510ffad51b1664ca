"""Noise with a memory, for training without sampling (DP-FTRL): what one round adds, later rounds take back in part.

The server's model is the running sum of the rounds' noisy sums, so what matters is the noise of prefix sums. A lower
triangular strategy matrix C, (rounds, rounds), says how: round t adds row t of C^-1 Z, Z independent Gaussian rows. All
rounds together are one release of C x + Z, a Gaussian mechanism whose sensitivity is that of C (`sensitivity.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csc_array

from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.sensitivity import most_participations, sensitivities
from fedsim.rng import SERVER
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:  # importing it takes most of a second
    from dp_accounting import DpEvent


@dataclass(frozen=True)
class MatrixReleases:
    """A whole run of correlated noise as an accountant sees it: one Gaussian release, however many rounds it has.

    noise_multiplier: the standard deviation of Z over the clipping norm. sensitivity: of C, for updates of norm 1. Neighbours
    differ by one client's updates of all rounds, or zeros in their place: who takes part when stays the same.
    """

    noise_multiplier: float
    sensitivity: float
    adjacency: str = "zero-out"
    accountants: tuple[str, ...] = ("pld", "rdp")

    def events(self, count: int) -> DpEvent:
        """`count` whole runs. One that was killed and went on with fresh noise counts as two: it shows no more than they."""
        from dp_accounting import GaussianDpEvent, SelfComposedDpEvent

        return SelfComposedDpEvent(GaussianDpEvent(self.noise_multiplier / self.sensitivity), count)


class CorrelatedNoise:
    """Rounds of noise, drawn in order. Subclasses give the matrix and how a fresh row becomes a round's noise.

    rounds: for which it was laid out. A client may take part at most max_participations times, at least min_separation
    rounds apart (1: in every round): the caller sees to that, the sensitivity rests on it.
    """

    def __init__(self, source: NoiseSource, rounds: int, max_participations: int | None, min_separation: int) -> None:
        possible = most_participations(rounds, min_separation)
        self.source, self.rounds, self.min_separation = source, rounds, min(min_separation, rounds)
        self.max_participations = possible if max_participations is None else min(max_participations, possible)
        self.round = 0
        self.std = 0.0
        self.memory: list[torch.Tensor] = []  # of (coordinates,) noise of standard deviation 1

    def matrix(self) -> csc_array:
        """C, (rounds, rounds), lower triangular."""
        raise NotImplementedError

    def advance(self, fresh: torch.Tensor, round: int) -> torch.Tensor:
        """Row `round` of C^-1 Z from row `round` of Z, both (coordinates,); keeps in `memory` what later rounds need."""
        raise NotImplementedError

    def sensitivity(self, participations: int | None = None) -> float:
        """How far a client of unit updates moves C x that takes part so often at most (None: as often as it may)."""
        most = self.max_participations if participations is None else min(participations, self.max_participations)
        return float(self.sensitivities(most)[-1]) if most else 0.0

    def sensitivities(self, most: int) -> np.ndarray:
        """(most,) the same for 1, 2, ... participations."""
        return sensitivities(self.matrix(), most, self.min_separation)

    def mechanism(self) -> MatrixReleases:
        """The run as the accountant sees it, with noise multiplier 1."""
        return MatrixReleases(1.0, self.sensitivity())

    def noise(self, like: Params, std: float, round: int, purpose: str = "noise") -> Params:
        """What to add to the sum of this round's clipped updates; std: of Z, the noise multiplier times the clipping norm.

        Rounds are 1, 2, ... `rounds`, one after the other, all with the same std: raises ValueError for another.
        """
        if round != self.round + 1 or round > self.rounds:
            raise ValueError(f"noise for round {round} of {self.rounds} after round {self.round}")
        if round > 1 and std != self.std:
            raise ValueError(f"correlated noise of standard deviation {std} after rounds of {self.std}")
        fresh = self.source.gaussian(like, 1.0, round, SERVER, purpose)
        flat = torch.cat([array.flatten() for array in fresh.values()])
        self.memory = [kept.to(flat.device) for kept in self.memory]  # loaded from a checkpoint: still on the CPU
        row = self.advance(flat, round)
        self.round, self.std = round, std
        pieces = (row * std).split([array.numel() for array in like.values()])
        return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces, strict=True)}

    def state(self) -> dict[str, Any]:
        """The noise that later rounds take back, and where it stands."""
        memory = [kept.cpu().numpy() for kept in self.memory]
        return {"rounds": self.rounds, "round": self.round, "std": self.std, "memory": memory}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave. Raises FedsimError where it was laid out for another number of rounds."""
        if int(state["rounds"]) != self.rounds:
            raise FedsimError(
                f"rounds={self.rounds}: the correlated noise of this run (privacy.mechanism) was laid out for "
                f"{int(state['rounds'])} rounds and its promise holds for those alone; resume it without rounds="
            )
        self.round, self.std = int(state["round"]), float(state["std"])
        self.memory = [torch.from_numpy(np.array(kept)) for kept in state["memory"]]
