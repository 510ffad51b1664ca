"""`audit=canary`: canaries take part in the run as clients or examples do, and two lower bounds come of what they show.

A canary is in the run or out of it by a fair coin. It pushes the model in a direction of its own with all its might, so that
clipping, where it works, brings it to exactly the clipping norm. Scores are what the adversary of the promise sees: one
who knows everyone else, and so everything but the noise and the canaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import rng
from fedsim.audit.base import Audit
from fedsim.audit.directions import CanaryUpdates, Directions
from fedsim.audit.replay import replay
from fedsim.audit.sampling import canary_cohort, clip_norm_of, refuse_masked
from fedsim.audit.scores import Scores
from fedsim.audit.verdict import Claim, judge
from fedsim.checks import require_int, require_number, shown
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism
    from fedsim.privacy.base import Protection, Setting

MIGHT = 1e3
"""A canary's norm over the clipping norm."""

ALWAYS = "The canaries took part in the training itself, so the model is not quite what it would have been without the audit."
REMOVED = (
    "The noise was left out on purpose (audit.remove_noise=true) while the claim stands: this tests the audit alone."
)


@dataclass
class CanaryAudit(Audit):
    """The keys of `audit=canary`. canaries: their number; confidence: of what is printed. remove_noise: see Audit."""

    canaries: int = 1000
    confidence: float = 0.95
    remove_noise: bool = False

    def __post_init__(self) -> None:
        require_int("audit.canaries", self.canaries, low=10)
        require_number("audit.confidence", self.confidence, low=0.5, below=1)
        if not isinstance(self.remove_noise, bool):
            raise FedsimError(
                f"audit.remove_noise={shown(self.remove_noise)} is neither true nor false; give one of them"
            )

    def begin(self, setting: Setting, protection: Protection, like: Params) -> None:
        """See Audit."""
        if protection.unit is None:
            raise FedsimError(
                "audit=canary tests a promise and privacy=none makes none; choose privacy=user, or set audit=none"
            )
        refuse_masked(protection, "canary")
        self.setting, self.protection = setting, protection
        sent = {name: like[name] for name in setting.shapes}
        self.directions = Directions.draw(sent, self.canaries, setting.seed)
        count = len(self.directions)
        coins = rng.numpy_generator(setting.seed, 0, rng.SERVER, "audit coins")
        self.scores = Scores(coins.random(count) < 0.5, setting.rounds)
        self.last = np.full(count, -setting.rounds - 1)
        self.joined, self.clip_norm = np.zeros(count, dtype=bool), 1.0
        if self.joins:
            self.cohort(1)  # refuses now what could not be drawn later

    @property
    def joins(self) -> bool:
        """Whether canary clients take part in the run's own sums; else the mechanism is played again after it."""
        return self.protection.sums and self.protection.unit == "client"

    def cohort(self, round: int) -> np.ndarray:
        """(canaries,) bool: those that the run's law of sampling picks, in or out."""
        return canary_cohort(self.setting, self.protection, self.scores.times, self.last, round)

    def join(self, round: int) -> Sequence[Params]:
        """See Audit."""
        if not self.joins:
            return ()
        self.joined = self.scores.included & self.cohort(round)
        self.clip_norm = clip_norm_of(self.protection)  # an adaptive one moves before `observe`
        return CanaryUpdates(self.directions, np.flatnonzero(self.joined), MIGHT * self.clip_norm)

    def observe(self, round: int, residual: Params) -> None:
        """See Audit."""
        if not self.joins:
            return
        seen = self.directions.along(residual) / self.clip_norm
        self.scores.add(seen, self.joined, rng.numpy_generator(self.setting.seed, round, rng.SERVER, "audit pairs"))
        self.last[self.joined] = round

    def finish(self, claimed_epsilon: float | None, delta: float, mechanism: Mechanism | None) -> dict[str, Any]:
        """See Audit."""
        gap, how = 1.0, [ALWAYS]
        count = int(getattr(self.protection, "spent_count", self.scores.releases))
        if not self.joins:
            self.scores = Scores(self.scores.included)  # `finish` may be called again
            played = replay(self.protection, self.setting, self.directions, self.scores, MIGHT)
            gap, count, how = played.gap, played.releases, played.words
            mechanism = played.mechanism or mechanism
        whole_run = hasattr(self.protection, "correlated")
        claimed_epsilon = math.inf if claimed_epsilon is None else claimed_epsilon  # as JSON has infinity
        claim = Claim(claimed_epsilon, delta, mechanism, count)
        found = judge(self.scores, claim, self.confidence, gap=gap, whole_run=whole_run)
        found["words"] += [*how, *self._geometry(), *([REMOVED] if self.remove_noise else [])]
        return {"kind": "canary", "unit": self.protection.unit, "noise_removed": self.remove_noise, **found}

    def _geometry(self) -> list[str]:
        if self.protection.unit == "example":
            return []
        fewer = f" ({self.canaries:,} were asked for)" if len(self.directions) < self.canaries else ""
        return [
            f"Each of {len(self.directions):,} canaries{fewer} pushes {self.directions.width:,} coordinates of its own, "
            f"{MIGHT:,.0f} clipping norms far before clipping."
        ]

    def state(self) -> dict[str, Any]:
        """See Audit."""
        return {"scores": self.scores.state(), "last": self.last}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Audit."""
        self.scores.load_state(state["scores"])
        self.last = np.array(state["last"], dtype=np.int64)
