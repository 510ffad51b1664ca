"""`audit=one_shot`: an ESTIMATE of epsilon from how far canaries moved the model (Andrew et al. 2023, arXiv 2302.03098).

Canary clients send random unit directions and take part as others do. In high dimension the cosine of such a direction with
a movement that it had no part in is N(0, 1/d), whatever the movement; a Gaussian is fitted to the canaries' own cosines
with the final model's movement; and epsilon is what tells the two Gaussians apart at delta. No bound: the fit is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.audit.base import Audit, Subject
from fedsim.audit.sampling import canary_cohort, clip_norm_of, refuse_masked
from fedsim.audit.verdict import finite, shown
from fedsim.checks import require_int
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting

WORDS = "It is estimated, not bounded: a Gaussian was fitted to canaries' cosines with the model's movement (arXiv 2302.03098)."


@dataclass
class OneShotAudit(Audit):
    """The keys of `audit=one_shot`. canaries: their number; more of them make the fit better and the model worse."""

    canaries: int = 100
    needs_subject: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        require_int("audit.canaries", self.canaries, low=10)

    def begin(self, setting: Setting, protection: Protection, like: Params) -> None:
        """See Audit."""
        if protection.unit != "client" or not protection.sums:
            raise FedsimError(
                "audit=one_shot sends canary clients into a private sum; choose privacy=user, or audit=canary"
            )
        refuse_masked(protection, "one_shot")
        self.setting, self.protection = setting, protection
        self.start = {name: like[name].detach().cpu().clone() for name in setting.shapes}
        self.times, self.last = np.zeros(self.canaries, dtype=np.int64), np.full(self.canaries, -setting.rounds - 1)
        self.cosines, self.size = np.zeros(0), sum(array.numel() for array in self.start.values())
        self.cohort(1)

    def cohort(self, round: int) -> np.ndarray:
        """(canaries,) bool: those that take part."""
        return canary_cohort(self.setting, self.protection, self.times, self.last, round)

    def direction(self, number: int) -> Tensor:
        """(d,) a random unit vector; numbers from `canaries` on belong to no one."""
        draw = torch.randn(self.size, generator=rng.generator(self.setting.seed, 0, number, "one-shot canary"))
        return draw / draw.norm()

    def join(self, round: int) -> Sequence[Params]:
        """See Audit."""
        joined = np.flatnonzero(self.cohort(round))
        self.times[joined] += 1
        self.last[joined] = round
        length = clip_norm_of(self.protection)
        return [self._named(self.direction(int(canary)) * length) for canary in joined]

    def _named(self, flat: Tensor) -> Params:
        pieces = flat.split([array.numel() for array in self.start.values()])
        named = {name: piece.view(self.start[name].shape) for name, piece in zip(self.start, pieces, strict=True)}
        return named

    def examine(self, subject: Subject) -> None:
        """See Audit."""
        moved = torch.cat(
            [(subject.arrays[name].cpu() - start).flatten() for name, start in self.start.items()]
        ).double()
        moved /= moved.norm().clamp(min=1e-30)
        everyone = range(2 * self.canaries)  # the second half took no part: they are drawn for the picture alone
        self.cosines = np.array([float(self.direction(number).double() @ moved) for number in everyone])

    def finish(self, claimed_epsilon: float | None, delta: float, mechanism: Mechanism | None) -> dict[str, Any]:
        """See Audit."""
        claimed_epsilon = math.inf if claimed_epsilon is None else claimed_epsilon
        inside, outside = self.cosines[: self.canaries], self.cosines[self.canaries :]
        null = (0.0, self.size**-0.5)
        fitted = (float(inside.mean()), float(inside.std(ddof=1)))
        estimate = gaussians_epsilon(null, fitted, delta)
        claim = (
            f"claimed at most {shown(claimed_epsilon)}" if math.isfinite(claimed_epsilon) else "no epsilon was claimed"
        )
        edges = np.linspace(self.cosines.min(), self.cosines.max() + 1e-12, 31)
        return {
            "kind": "one_shot",
            "unit": "client",
            "canaries": self.canaries,
            "claimed": finite(claimed_epsilon),
            "observed": finite(estimate),
            "delta": delta,
            "confidence": None,
            "verdict": None,
            "estimate": True,
            "fit": {"mean": fitted[0], "std": fitted[1], "std_of_others": null[1], "dimensions": self.size},
            "words": [f"At delta {delta:g}: {claim}, estimated at {shown(estimate)}.", WORDS],
            "plot": {
                "cosine": {
                    "edges": edges.tolist(),
                    "in": np.histogram(inside, edges)[0].tolist(),
                    "out": np.histogram(outside, edges)[0].tolist(),
                }
            },
        }

    def state(self) -> dict[str, Any]:
        """See Audit."""
        start = {f"start {name}": array.numpy() for name, array in self.start.items()}
        return {"times": self.times, "last": self.last} | start

    def load_state(self, state: dict[str, Any]) -> None:
        """See Audit."""
        self.times, self.last = np.array(state["times"]), np.array(state["last"])
        self.start = {name: torch.from_numpy(np.array(state[f"start {name}"])) for name in self.start}


def gaussians_epsilon(first: tuple[float, float], second: tuple[float, float], delta: float) -> float:
    """The smallest epsilon at which two Gaussians (mean, std) are (epsilon, delta)-indistinguishable, either way round."""
    (m0, s0), (m1, s1) = first, second
    low, high = min(m0 - 12 * s0, m1 - 12 * s1), max(m0 + 12 * s0, m1 + 12 * s1)
    step = min(s0, s1) / 500
    grid = np.linspace(low, high, int(np.clip((high - low) / step, 1_000, 2_000_000)))
    logs = [-0.5 * ((grid - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi)) for m, s in (first, second)]
    return max(_one_way(logs[0], logs[1], grid, delta), _one_way(logs[1], logs[0], grid, delta))


def _one_way(log_p: np.ndarray, log_q: np.ndarray, grid: np.ndarray, delta: float) -> float:
    """Bisection on delta(epsilon) = integral of max(p - e^epsilon q, 0)."""
    loss, weight = log_p - log_q, np.exp(log_p) * (grid[1] - grid[0])

    def spent(epsilon: float) -> float:
        return float((weight * -np.expm1(np.minimum(epsilon - loss, 0.0))).sum())

    low, high = 0.0, float(loss.max())
    if spent(0.0) <= delta:
        return 0.0
    while high - low > 1e-6 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high
