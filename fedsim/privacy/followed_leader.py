"""DP-FTRL under a trusted server (`privacy.mechanism=tree|banded`): noise correlated over rounds, no sampling needed.

The server's model is a running sum of noisy rounds; what one round's noise adds, later ones take back in part (Kairouz et al.
2021, arXiv 2103.00039; Choquette-Choo et al. 2023, arXiv 2306.08153). The promise rests on how often and how closely spaced
a client takes part, so both limits are enforced: a client outside of them is not drawn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.privacy import accounting
from fedsim.privacy.base import Setting
from fedsim.privacy.clipping import Clip, ClipPerLayer
from fedsim.privacy.correlated import make_correlated_noise
from fedsim.privacy.noise import NoiseSource
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
    """Clipped sums with correlated noise; participation is public, and limited."""

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
        self.last: dict[int, int] = {}
        self.replays = 0
        self._check_supply()

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

    @property
    def planned(self) -> int:
        """One: the whole run is one release of a matrix mechanism, whose sensitivity holds all participations."""
        return 1

    @property
    def spent_count(self) -> int:
        """The whole promise is spent with the first release, and again with each replay: all of it is seen twice then."""
        return 1 + self.replays if self.book.releases else 0

    def keep_journal(self, path: Path, resumed_after: int | None) -> None:
        """See Accounted."""
        before = self.book.releases
        super().keep_journal(path, resumed_after)
        self.replays += int(self.book.releases > before)

    def rounds_left(self, most: int) -> int:
        """The noise was laid out for the rounds that were planned; there is none for more."""
        return min(most, self.correlated.rounds - self.correlated.round)

    def eligible(self, round: int) -> np.ndarray | None:
        """Those within both limits."""
        noise = self.correlated
        allowed = self.book.at_most(self.setting.num_clients, noise.max_participations)
        resting = [client for client, last in self.last.items() if round - last < noise.min_separation]
        return np.setdiff1d(allowed, np.array(resting, dtype=allowed.dtype), assume_unique=True)

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """See Accounted; and when each client took part last."""
        super().charge(round, cohort)
        self.last.update(dict.fromkeys(cohort.tolist(), round))

    def client_epsilons(self, num_clients: int) -> np.ndarray | None:
        """By how often each took part: the sensitivity to a client that took part less is less."""
        counts = np.array([self.book.charges.get(client, 0) for client in range(num_clients)])
        known = {0: 0.0}
        for count in np.unique(counts[counts > 0]).tolist():
            own = replace(self.mechanism, sensitivity=self.correlated.sensitivity(count))  # type: ignore[type-var]
            known[count] = accounting.spend(own, self.spent_count, self.keys.delta).epsilon
        return np.array([known[int(count)] for count in counts])

    def details(self) -> dict[str, Any]:
        """See Accounted; and the limits."""
        return super().details() | {
            "sampling": "none: limited participation",
            "limits": {
                "participations": self.correlated.max_participations,
                "separation": self.correlated.min_separation,
            },
        }

    def state(self) -> dict[str, Any]:
        """See Accounted; and what the noise remembers."""
        last = {str(client): round for client, round in self.last.items()}
        return super().state() | {"last": last, "replays": self.replays, "noise": self.correlated.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Accounted."""
        super().load_state(state)
        self.replays = int(state["replays"])
        self.last = {int(client): round for client, round in state["last"].items()}
        self.correlated.load_state(state["noise"])
