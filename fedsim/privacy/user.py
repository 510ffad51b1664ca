"""User-level privacy with a trusted server (`privacy=user`): clip on the device, one noise on the sum, a fixed denominator.

DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963): equal weights, and the noisy sum divided by the expected cohort, so that
who answered changes nothing of the noise. The mean goes to the strategy as one reply: its optimiser sees it after the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.checks import require_choice, require_int, require_number
from fedsim.privacy import accounting
from fedsim.privacy.accounted import Accounted, Budget, check_max_participations, refuse_setting
from fedsim.privacy.accounting import GaussianReleases
from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.budgets import read_groups
from fedsim.privacy.clipping import UNCLIPPED, AdaptiveClip, Clip, ClipByGroup, ClipPerLayer, norm_of
from fedsim.privacy.grouped import GroupBudgets
from fedsim.rng import SERVER
from fedsim.training.dpsgd import COUNT_NOISE, update_multiplier
from fedsim.transforms import Transform, on_server
from fedsim.types import FedsimError, Params


@dataclass(frozen=True)
class UserPrivacy:
    """The keys of `privacy=user`.

    epsilon or noise_multiplier: what is promised, or the noise's standard deviation in the sum over clip_norm. budget: the
    epsilon that stops a run of given noise. clipping: flat | per_layer | adaptive (target_quantile of updates not clipped,
    clip_lr, count_noise: None for a twentieth of the cohort, or z). mechanism: gaussian | tree | banded; the last two add noise
    that is correlated over rounds and need no sampling, but limits: a client takes part at most max_participations times, at
    least min_separation rounds apart (None: by the mechanism). restart: rounds of one tree. bands: of the matrix. budgets:
    instead of epsilon, a promise for each group of clients, as in {careful: {share: 0.3, epsilon: 1}, open: {...}}.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    clipping: str = "flat"
    mechanism: str = "gaussian"
    target_quantile: float = 0.5
    clip_lr: float = 0.2
    count_noise: float | None = None
    max_participations: int | None = None
    min_separation: int | None = None
    restart: int | None = None
    bands: int | None = None
    strategy_matrix: str = "sqrt"
    budget: float | None = None
    secure_rng: bool = False
    budgets: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_number("privacy.clip_norm", self.clip_norm, above=0)
        require_choice("privacy.clipping", self.clipping, ("flat", "per_layer", "adaptive"))
        require_choice("privacy.mechanism", self.mechanism, ("gaussian", "tree", "banded"))
        require_number("privacy.target_quantile", self.target_quantile, above=0, below=1)
        require_number("privacy.clip_lr", self.clip_lr, above=0)
        if self.count_noise is not None:
            require_number("privacy.count_noise", self.count_noise, above=0)
        check_max_participations(self.max_participations)
        if self.mechanism == "gaussian":
            self._refuse("gaussian", "min_separation", "restart", "bands")
        else:
            require_choice("privacy.strategy_matrix", self.strategy_matrix, ("sqrt", "optimized"))
            self._refuse(self.mechanism, "bands" if self.mechanism == "tree" else "restart")
        for key in ("min_separation", "restart", "bands"):
            if getattr(self, key) is not None:
                require_int(f"privacy.{key}", getattr(self, key), low=1)
        if self.mechanism != "gaussian" and self.clipping == "adaptive":
            raise FedsimError(
                f"privacy.clipping=adaptive changes the noise from round to round, which privacy.mechanism={self.mechanism} "
                "does not bear; use privacy.clipping=flat"
            )
        if self.budgets and (self.epsilon is not None or self.noise_multiplier is not None or self.budget is not None):
            raise FedsimError(
                "privacy.budgets says what each group is promised; leave privacy.epsilon, noise_multiplier and budget out"
            )
        if self.budgets and (self.mechanism, self.clipping) != ("gaussian", "flat"):
            raise FedsimError(
                "privacy.budgets needs privacy.mechanism=gaussian and privacy.clipping=flat; set both, or leave it out"
            )
        self.keys  # noqa: B018 - checks them

    def _refuse(self, mechanism: str, *keys: str) -> None:
        for key in keys:
            if getattr(self, key) is not None:
                raise FedsimError(f"privacy.{key} means nothing to privacy.mechanism={mechanism}; leave it out")

    @property
    def keys(self) -> Budget:
        """Those that every mechanism has."""
        most = max(group.epsilon for group in read_groups(self.budgets)) if self.budgets else self.epsilon
        return Budget(most, self.noise_multiplier, self.delta, self.budget, self.secure_rng)

    def protect(self, setting: Setting) -> Protection:
        """The mechanism for this run. Raises FedsimError where the run's other parts do not allow the promise."""
        refuse_setting(setting, "user", linear=True)
        self.keys.check_delta(setting.num_clients, "the number of clients")
        if self.mechanism == "gaussian":
            return CentralGaussian(self, setting)
        from fedsim.privacy.followed_leader import FollowedLeader

        return FollowedLeader(self, setting)


class AddNoise(Transform):
    """Gaussian noise on the sum, once a round, at the server."""

    def __init__(self, owner: CentralGaussian) -> None:
        self.owner = owner

    def on_server(self, total: Params, round: int) -> Params:
        """Every coordinate of the update with z C; the count of unclipped updates with sigma_b."""
        owner = self.owner
        update = {name: array for name, array in total.items() if name != UNCLIPPED}
        noise = owner.source.gaussian(update, owner.noise_std, round, SERVER, owner.purpose("noise", round))
        noisy = {name: array + noise[name] for name, array in update.items()}
        if UNCLIPPED in total:
            count = {UNCLIPPED: total[UNCLIPPED]}
            std = 0.0 if owner.noise_removed else owner.count_noise
            drawn = owner.source.gaussian(count, std, round, SERVER, owner.purpose("count noise", round))
            noisy[UNCLIPPED] = total[UNCLIPPED] + drawn[UNCLIPPED]
        return noisy


class CentralSum(Accounted):
    """Clients send clipped updates of equal weight; the server noises their sum and divides by the expected cohort."""

    unit = "client"
    sums = True
    trust = "the server, which sees every clipped update before the noise"
    clip: Clip

    def __init__(self, part: UserPrivacy, setting: Setting, mechanism: accounting.Mechanism, limit: int | None) -> None:
        super().__init__(part.keys, setting, mechanism, limit)
        self.denominator = setting.cohort_size

    def release(self, total: Params, round: int) -> Params:
        """Noise, then the fixed denominator: the number of replies changes neither."""
        noisy = on_server(self.transforms, total, round)
        return {name: array / self.denominator for name, array in noisy.items()}

    def plan(self) -> dict[str, Any]:
        """See Accounted; and the rate, without which epsilon cannot be computed again."""
        return super().plan() | {"sampling_rate": min(1.0, self.denominator / self.setting.num_clients)}

    def refusal(self, arrays: Params) -> str | None:
        """A real node's update must be clipped already, by the norm that was broadcast."""
        update = [array for name, array in arrays.items() if name != UNCLIPPED]
        if norm_of(update) > self.clip.clip_norm * (1 + 1e-5):
            return "its update is larger than the clipping norm"
        return None

    def details(self) -> dict[str, Any]:
        """See Accounted."""
        return {
            "sampling": self.setting.sampling,
            "sampling_rate": min(1.0, self.denominator / self.setting.num_clients),
            "clip_norm": self.clip.clip_norm,
            "sensitivity": self.clip.clip_norm * (2 if self.mechanism.adjacency == "replace-one" else 1),
            "denominator": self.denominator,
        }


class CentralGaussian(CentralSum):
    """Fresh Gaussian noise every round; sampling, where it is secret, amplifies."""

    def __init__(self, part: UserPrivacy, setting: Setting) -> None:
        limited = part.max_participations is not None
        mechanism = releases(setting, limited)
        super().__init__(part, setting, mechanism, part.max_participations)
        self.name = f"Gaussian, {part.clipping.replace('_', '-')} clipping"
        self.clip = self._clip(part)
        self.groups = GroupBudgets(part.budgets, self) if part.budgets else None
        if self.groups is not None:
            self.clip = ClipByGroup(part.clip_norm, self.groups.clip_shares())
        self.transforms = (self.clip, AddNoise(self))
        self.against = (
            "anyone who sees the models of all rounds, who may know who took part"
            if self.public
            else "anyone who sees the models of all rounds but not who took part (clients.parquet given away voids it)"
        )
        self._warn()
        self.warn_of_supply()

    def _clip(self, part: UserPrivacy) -> Clip:
        self.count_noise = 0.0
        if part.clipping == "flat":
            return Clip(part.clip_norm)
        if part.clipping == "per_layer":
            return ClipPerLayer(part.clip_norm)
        # a small cohort's twentieth would cost too much
        chosen = max(self.denominator / COUNT_NOISE, self.noise_multiplier)
        self.count_noise = chosen if part.count_noise is None else part.count_noise
        if not self.setting.resumed:  # else it is not this noise that the run goes on with
            update_multiplier(self.noise_multiplier, self.count_noise)  # refused here if at all
        return AdaptiveClip(part.clip_norm, part.target_quantile, part.clip_lr, self.denominator)

    @property
    def noise_std(self) -> float:
        """Of the noise on the sum; beside a noisy count a little more, so that both together cost z."""
        z = self.noise_scale
        if self.count_noise:
            z = update_multiplier(z, self.count_noise)
        return z * self.clip.clip_norm

    def _warn(self) -> None:
        if (self.setting.sampling == "poisson" and not self.public) or self.noise_multiplier == 0:
            return
        fraction = min(1.0, self.setting.cohort_size / self.setting.num_clients)
        delta, rounds = self.keys.delta, self.planned
        mine = accounting.spend(self.mechanism, rounds, delta).epsilon
        if self.max_participations is not None:
            why = "with max_participations who took part is public"
        elif self.public:
            why = (
                "sampler=all hides no one"
                if self.setting.sampling == "all"
                else "nothing is known of this sampler's law"
            )
        else:
            why = "sampler=fixed is accounted for replacing one client"
        words = f"{why}: the plan spends {mine:.3g}"
        if fraction < 1:
            poisson = GaussianReleases(self.noise_multiplier, "poisson", rate=fraction)
            other = accounting.spend(poisson, self.setting.rounds, delta).epsilon
            words += f"; sampler=poisson of the same size would spend {other:.3g} by the same noise (adding or removing one client)"
        self.warnings.append(words)

    def broadcast(self) -> dict[str, float]:
        """The clipping norm, which adaptive clipping moves."""
        return {"clip-norm": self.clip.clip_norm}

    def heed(self, numbers: Mapping[str, Any]) -> None:
        """See Protection."""
        self.clip.clip_norm = float(numbers["clip-norm"])

    def sent(self, like: Params) -> Params:
        """The update, and the one number of adaptive clipping."""
        zeros = {name: array.float() for name, array in like.items()}
        return self.clip.on_device({name: array * 0 for name, array in zeros.items()}, 0, 0)

    def canary(self, update: Params, round: int) -> Params:
        """See Protection. It does not vote on the clipping norm: all canaries are clipped, and would drive it up."""
        return {name: array for name, array in super().canary(update, round).items() if name != UNCLIPPED}

    def details(self) -> dict[str, Any]:
        """See Accounted."""
        more: dict[str, Any] = {}
        if self.count_noise:
            more = {
                "count_noise": self.count_noise,
                "clip_norm_is": "the last round's; the noise of each was over its own",
            }
        if self.groups is not None:
            more["budgets"] = self.groups.describe()
        return super().details() | more

    def client_epsilons(self, num_clients: int) -> np.ndarray | None:
        """See Accounted; by group where budgets differ."""
        return super().client_epsilons(num_clients) if self.groups is None else self.groups.epsilons(num_clients)

    def columns(self, due: bool = True) -> dict[str, Any]:
        """See Accounted; and the norm that the next round clips to."""
        return super().columns(due) | {"clip_norm": self.clip.clip_norm}

    def state(self) -> dict[str, Any]:
        """See Accounted; and the moving norm."""
        groups = [] if self.groups is None else self.groups.noise
        return super().state() | {"clip_norm": self.clip.clip_norm, "count_noise": self.count_noise, "groups": groups}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Accounted."""
        super().load_state(state)
        self.clip.clip_norm, self.count_noise = float(state["clip_norm"]), float(state["count_noise"])
        if self.groups is not None:
            self.groups.noise = [float(z) for z in state["groups"]]
            self.clip.shares = self.groups.clip_shares()  # type: ignore[attr-defined]


def releases(setting: Setting, limited: bool) -> GaussianReleases:
    """One release as the accountant sees it: by how participants are drawn, and whether that may stay secret.

    A limit on participations makes a client's chance depend on what it did before, so no amplification is claimed with one.
    Where participation is public a client is hidden by zeros in its place, since others' places do not move ("zero-out").
    """
    if limited or setting.sampling not in ("poisson", "fixed"):
        return GaussianReleases(1.0, "none", adjacency="zero-out")
    if setting.sampling == "poisson":
        return GaussianReleases(1.0, "poisson", rate=min(1.0, setting.cohort_size / setting.num_clients))
    size = round(setting.cohort_size)
    return GaussianReleases(
        1.0,
        "fixed",
        rate=size / setting.num_clients,
        population=setting.num_clients,
        cohort=size,
        adjacency="replace-one",
    )
