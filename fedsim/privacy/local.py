"""Local privacy (`privacy=local`): every message carries all the noise that it needs by itself; no one is trusted.

The device clips its update and adds Gaussian noise of z C to every coordinate. Another client's message in its place, or
another update of the same client, moves it by at most 2 C. What the server does with messages is post-processing, so any
strategy may be used. The messages of one client compose: k of them are one Gaussian of z / sqrt(k), exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.checks import require_choice, require_number
from fedsim.privacy import accounting
from fedsim.privacy.accounted import Accounted, Budget, check_max_participations, refuse_setting
from fedsim.privacy.accounting import GaussianReleases
from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.clipping import Clip, ClipPerLayer
from fedsim.transforms import Transform
from fedsim.types import Params


@dataclass(frozen=True)
class LocalPrivacy:
    """The keys of `privacy=local`.

    epsilon or noise_multiplier: of all messages that one client sends, or of the noise in one message over clip_norm.
    clipping: flat | per_layer. max_participations: rounds that a client takes part in at most (None: every round).
    budget: the epsilon at which a client of given noise leaves.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    clipping: str = "flat"
    max_participations: int | None = None
    budget: float | None = None
    secure_rng: bool = False

    def __post_init__(self) -> None:
        require_number("privacy.clip_norm", self.clip_norm, above=0)
        require_choice("privacy.clipping", self.clipping, ("flat", "per_layer"))
        check_max_participations(self.max_participations)
        self.keys  # noqa: B018 - checks them

    @property
    def keys(self) -> Budget:
        """Those that every mechanism has."""
        return Budget(self.epsilon, self.noise_multiplier, self.delta, self.budget, self.secure_rng)

    def protect(self, setting: Setting) -> Protection:
        """The mechanism for this run. Raises FedsimError where the run's other parts do not allow the promise."""
        refuse_setting(setting, "local", linear=False)
        self.keys.check_delta(setting.num_clients, "the number of clients")
        return LocalGaussian(self, setting)


class OwnNoise(Transform):
    """Noise on the device, of a full measure for one message."""

    def __init__(self, owner: LocalGaussian) -> None:
        self.owner = owner

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """Every coordinate with z C."""
        owner = self.owner
        noise = owner.source.gaussian(
            update, owner.noise_scale * owner.clip_norm, round, client, owner.purpose("local noise", round)
        )
        return {name: array + noise[name] for name, array in update.items()}


class LocalGaussian(Accounted):
    """Clip, then noise, both on the device; weights are equal, since a count of examples would be sent in clear."""

    unit = "client"
    hides_failures = True
    name = "local Gaussian"
    trust = "nobody"
    against = "the server and anyone who sees a client's messages, and knows who took part"

    def __init__(self, part: LocalPrivacy, setting: Setting) -> None:
        # a limit of every round is one that no client reaches; what a client spends is counted for itself in any case
        limit = min(part.max_participations or setting.rounds, setting.rounds)
        mechanism = GaussianReleases(1.0, "none", adjacency="replace-one")
        super().__init__(part.keys, setting, mechanism, limit)
        self.clip_norm = part.clip_norm
        clip = Clip(part.clip_norm) if part.clipping == "flat" else ClipPerLayer(part.clip_norm)
        self.transforms = (clip, OwnNoise(self))
        self.warn_of_supply()

    def details(self) -> dict[str, Any]:
        """See Accounted; and what a single message costs."""
        single = accounting.spend(self.mechanism, 1, self.keys.delta).epsilon
        return {
            "sampling": "none: the server sees who takes part",
            "clip_norm": self.clip_norm,
            "sensitivity": 2 * self.clip_norm,
            "denominator": None,
            "epsilon_of_one_message": single if np.isfinite(single) else None,
        }
