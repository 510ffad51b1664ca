"""DP-FTRL under a trusted server (`privacy.mechanism=tree|banded`): noise correlated over rounds, no sampling needed.

The server's model is a running sum of noisy rounds; what one round's noise adds, later ones take back in part (Kairouz et al.
2021, arXiv 2103.00039; Choquette-Choo et al. 2023, arXiv 2306.08153). The promise rests on how often and how closely spaced
a client takes part, so both limits are enforced: a client outside of them is not drawn.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.privacy import accounting
from fedsim.privacy.base import Setting
from fedsim.privacy.clipping import Clip, ClipPerLayer
from fedsim.privacy.correlated import make_correlated_noise
from fedsim.privacy.ledger import read_journal
from fedsim.privacy.matrix import MatrixReleases
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.tree import TreeNoise
from fedsim.privacy.user import CentralSum, UserPrivacy
from fedsim.transforms import Transform
from fedsim.types import FedsimError, Params


class AddCorrelatedNoise(Transform):
    """The round's share of the correlated noise, on the sum."""

    def __init__(self, owner: FollowedLeader) -> None:
        self.owner = owner

    def on_server(self, total: Params, round: int) -> Params:
        """See `correlated.py`."""
        owner = self.owner
        noise = owner.correlated.noise(
            total, owner.noise_scale * owner.clip.clip_norm, round, owner.purpose("noise", round)
        )
        return {name: array + noise[name] for name, array in total.items()}


class FollowedLeader(CentralSum):
    """Clipped sums with correlated noise; participation is public, and limited.

    taken, last: (clients,) rounds in which each took part, and the last of these, on the way to the model that there is.
    shown: whole runs that an onlooker may have seen, in part at least. Rounds that are played again after a kill, with other
    noise, begin another (`parted`: the next round does). What was lost tells, with what it has in common with the rest, no
    more than a whole run of its own.
    """

    mechanism: MatrixReleases
    against = "anyone who sees the models of all rounds and knows who took part"

    def __init__(self, part: UserPrivacy, setting: Setting) -> None:
        self.correlated = make_correlated_noise(
            part.mechanism,
            NoiseSource(setting.seed, part.secure_rng),
            rounds=setting.rounds,
            max_participations=part.max_participations,
            min_separation=part.min_separation,
            restart=part.restart,
            bands=part.bands,
            strategy_matrix=part.strategy_matrix,
            num_clients=setting.num_clients,
            cohort_size=setting.cohort_size,
        )
        super().__init__(part, setting, self.correlated.mechanism(), self.correlated.max_participations)
        self.name = f"{part.mechanism} (DP-FTRL), {part.clipping.replace('_', '-')} clipping"
        self.clip = Clip(part.clip_norm) if part.clipping == "flat" else ClipPerLayer(part.clip_norm)
        self.transforms = (self.clip, AddCorrelatedNoise(self))
        self.matrix = self._matrix(part)
        self.taken = np.zeros(setting.num_clients, dtype=np.int64)
        self.last = np.full(setting.num_clients, -setting.rounds, dtype=np.int64)
        self.shown, self.parted = 0, False
        self._check_supply()
        if setting.sampling == "poisson":
            self.warnings.append(
                "sampler=poisson amplifies nothing where participation is limited and public, and its cohorts are smaller than "
                "planned, since resting clients are left out; use sampler=fixed"
            )
        self._check_budget(part.mechanism)

    def _matrix(self, part: UserPrivacy) -> dict[str, Any]:
        """What the sensitivity rests on beside the limits, for privacy.json."""
        noise = self.correlated
        if isinstance(noise, TreeNoise):
            return {"kind": part.mechanism, "restart": noise.restart, "rounds": noise.rounds}
        return {
            "kind": part.mechanism,
            "strategy_matrix": part.strategy_matrix,
            "bands": len(noise.coefficients),  # type: ignore[attr-defined]
            "rounds": noise.rounds,
        }

    def _check_supply(self) -> None:
        """Refuse limits under which the population cannot fill the rounds' cohorts."""
        setting, noise = self.setting, self.correlated
        supply = setting.num_clients * noise.max_participations
        if supply < setting.cohort_size * setting.rounds or (
            setting.num_clients < setting.cohort_size * min(noise.min_separation, setting.rounds)
        ):
            limits = f"take part at most {noise.max_participations} times, {noise.min_separation} rounds apart"
            raise FedsimError(
                f"{setting.num_clients} clients that {limits} do not fill {setting.rounds} rounds of {setting.cohort_size:g}; "
                "make sampler.cohort_size or rounds less, or raise privacy.max_participations, or lower privacy.min_separation"
            )

    def _check_budget(self, kind: str) -> None:
        """Refuse a budget that does not pay for the whole run, since its first round spends all of it."""
        if self.keys.budget is not None and not self.affords(1):
            epsilon = accounting.spend(self.mechanism, 1, self.keys.delta).epsilon
            raise FedsimError(
                f"privacy.mechanism={kind} spends the epsilon of the whole run, {epsilon:.3g}, with its first round, and "
                f"privacy.budget={self.keys.budget:g} does not pay for one round of it; raise privacy.budget or "
                "privacy.noise_multiplier"
            )

    def affords(self, runs: int) -> bool:
        """Whether the budget pays for so many whole runs."""
        limit = self.keys.limit
        return limit is None or accounting.affordable(self.mechanism, limit, self.keys.delta, runs) >= runs

    @property
    def planned(self) -> int:
        """One: the whole run is one release of a matrix mechanism, whose sensitivity holds all participations."""
        return 1

    @property
    def spent_count(self) -> int:
        """The whole promise is spent with the first release, and again with each run that another part was seen of."""
        return self.shown

    def keep_journal(self, path: Path, resumed_after: int | None) -> None:
        """See Accounted. Each time that the journal goes back, and now where it ends behind the checkpoint, a run was lost."""
        super().keep_journal(path, resumed_after)
        begun = [entry.round for entry in read_journal(path)]
        if self.book.repeats_count and begun:
            self.shown = max(self.shown, 1 + sum(later <= earlier for earlier, later in pairwise(begun)))
            self.parted = begun[-1] != (resumed_after or 0)

    def rounds_left(self, most: int) -> int:
        """The noise was laid out for the rounds that were planned; there is none for more, nor where the budget is spent.

        After a kill nothing is played that the budget does not bear: what was seen before it stays seen.
        """
        new = self.parted or not self.shown
        if not self.affords(self.shown + new) or (self.taken >= self.correlated.max_participations).all():
            return 0
        return min(most, self.correlated.rounds - self.correlated.round)

    def eligible(self, round: int) -> np.ndarray | None:
        """Those within both limits. What a kill has lost does not count: that is a run of its own, and paid for as one."""
        noise = self.correlated
        rested = round - self.last >= noise.min_separation
        return np.flatnonzero(rested & (self.taken < noise.max_participations))

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """See Accounted; and who took part when, and whether this begins another run."""
        super().charge(round, cohort)
        if self.parted or not self.shown:
            self.shown, self.parted = self.shown + 1, False
        self.taken[cohort] += 1
        self.last[cohort] = round

    def client_epsilons(self, num_clients: int) -> np.ndarray | None:
        """By how often each took part: the sensitivity to a client that took part less is less."""
        counts = np.array([self.book.charges.get(client, 0) for client in range(num_clients)])
        known = {0: 0.0}
        for count in np.unique(counts[counts > 0]).tolist():
            own = replace(self.mechanism, sensitivity=self.correlated.sensitivity(count))
            known[count] = accounting.spend(own, self.spent_count, self.keys.delta).epsilon
        return np.array([known[int(count)] for count in counts])

    def details(self) -> dict[str, Any]:
        """See Accounted; and the matrix and the limits that the sensitivity, of all rounds together, rests on."""
        return super().details() | {
            "sampling": "none: limited participation",
            "sensitivity": self.clip.clip_norm * self.mechanism.sensitivity,
            "sensitivity_is": "the whole run's, of the matrix times the updates; the noise is over clip_norm",
            "matrix": self.matrix | {"sensitivity": self.mechanism.sensitivity},
            "runs_shown": self.shown,
            "limits": {
                "participations": self.correlated.max_participations,
                "separation": self.correlated.min_separation,
            },
        }

    def state(self) -> dict[str, Any]:
        """See Accounted; and what the noise remembers."""
        clients = np.flatnonzero(self.taken)
        took = {"clients": clients, "taken": self.taken[clients], "last": self.last[clients]}
        return super().state() | {"took": took, "shown": self.shown, "noise": self.correlated.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Accounted."""
        super().load_state(state)
        self.shown = int(state["shown"])
        took = state["took"]
        self.taken[took["clients"]], self.last[took["clients"]] = took["taken"], took["last"]
        self.correlated.load_state(state["noise"])
