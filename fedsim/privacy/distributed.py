"""Distributed privacy (`privacy=distributed`): no one sees an update, and the noise is in the sum before anyone sees that.

Each device clips its update, rounds it to integers, adds a share of discrete noise and sends it under masks that cancel in the
sum (Kairouz et al. 2021, arXiv 2102.06387; Skellam noise: 2110.04995; the masks: secure_aggregation). A device that drops
out takes its share along, so shares are made for the smallest cohort that may be left: its sum has the noise that was
promised, any larger one more.

The sum is taken modulo 2^bits. A wrap would cost accuracy and not privacy, since what is left is a function of the noisy
sum; nothing is clamped on the device, for a clamped share would change the law of the sum's noise. A wrap is ruled out when
the run is planned: clients x (largest rounded coordinate, which its norm bounds) + the noise's tail must stay below half
the modulus. The tail is exceeded in a round with a chance of at most 1e-12; the part of the updates never is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedsim.checks import require_choice, require_int, require_number
from fedsim.privacy import accounting
from fedsim.privacy.accounted import Budget, check_max_participations, refuse_setting
from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.discrete import discrete_gaussian, skellam
from fedsim.privacy.discrete_accounting import DiscreteGaussianSum, DiscreteSum, SkellamSum, noise_tail
from fedsim.privacy.secure_aggregation.keys import TRAVELS
from fedsim.types import FedsimError

WRAP_CHANCE = 1e-12
FINEST, FINE = 1000.0, 16.0
"""The clipping norm is this many steps of the grid, or this many times the root of the dimension if that is more: rounding
then raises the sensitivity by less than a thousandth."""

NOISES = {"skellam": (SkellamSum, skellam), "discrete_gaussian": (DiscreteGaussianSum, discrete_gaussian)}
COARSEST = 2.0
"""The most by which rounding may raise the sensitivity."""


@dataclass(frozen=True)
class DistributedPrivacy:
    """The keys of `privacy=distributed`.

    epsilon or noise_multiplier: what is promised to a client that takes part in max_participations rounds (None: in all), or
    the noise's standard deviation in the sum over clip_norm. noise: skellam | discrete_gaussian. bits: 16 | 32, of a
    coordinate. granularity: the step of the grid (None: as fine as is useful and fits). dropout_tolerance: the share of a
    cohort that may drop out. dropout: the chance that a device does (simulated), after it shared its keys. neighbours: with
    whom a device shares keys (None: all, or a random few of a large cohort). budget: the epsilon that stops a run of given
    noise. secure_rng: keys and noise from the operating system.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    clip_norm: float = 1.0
    noise: str = "skellam"
    bits: int = 32
    granularity: float | None = None
    dropout_tolerance: float = 0.3
    dropout: float = 0.0
    neighbours: int | None = None
    max_participations: int | None = None
    budget: float | None = None
    secure_rng: bool = False

    def __post_init__(self) -> None:
        require_number("privacy.clip_norm", self.clip_norm, above=0)
        require_choice("privacy.noise", self.noise, NOISES)
        if self.bits not in TRAVELS:
            raise FedsimError(f"privacy.bits={self.bits} is not a width of integers that is summed here; give 16 or 32")
        if self.granularity is not None:
            require_number("privacy.granularity", self.granularity, above=0)
        require_number("privacy.dropout_tolerance", self.dropout_tolerance, low=0, below=0.5)
        require_number("privacy.dropout", self.dropout, low=0, below=1)
        if self.neighbours is not None:
            require_int("privacy.neighbours", self.neighbours, low=2)
        check_max_participations(self.max_participations)
        self.keys  # noqa: B018 - checks them

    @property
    def keys(self) -> Budget:
        """Those that every mechanism has."""
        return Budget(self.epsilon, self.noise_multiplier, self.delta, self.budget, self.secure_rng)

    def protect(self, setting: Setting) -> Protection:
        """The mechanism for this run. Raises FedsimError where the run's other parts do not allow the promise."""
        refuse_setting(setting, "distributed", linear=True)
        self.keys.check_delta(setting.num_clients, "the number of clients")
        if setting.cohort_size < 2:
            raise FedsimError(
                f"privacy=distributed hides an update among others, and a cohort of {setting.cohort_size:g} has none; raise "
                "sampler.cohort_size to at least 2, or use privacy=local"
            )
        from fedsim.privacy.distributed_sum import DistributedSum

        return DistributedSum(self, setting)

    def least(self, clients: int) -> int:
        """The smallest number of survivors out of so many."""
        return clients - math.floor(self.dropout_tolerance * clients + 1e-9)


def largest_cohort(setting: Setting) -> int:
    """The most clients that a round may have; of a Poisson cohort, what it exceeds with a chance of 1e-12."""
    if setting.sampling != "poisson":
        return min(round(setting.cohort_size), setting.num_clients)
    from scipy.stats import binom

    most = binom.isf(WRAP_CHANCE, setting.num_clients, min(1.0, setting.cohort_size / setting.num_clients))
    return max(2, int(most))


def fitted(part: DistributedPrivacy, mechanism: DiscreteSum, largest: int, rounds: int) -> DiscreteSum:
    """The mechanism on a grid on which no sum wraps, with the noise that was given or that meets epsilon.

    The grid is the one asked for, or the finest that is useful and fits. Raises FedsimError where none does.
    """

    def on_grid(scale: float) -> DiscreteSum:
        placed = replace(mechanism, scale=scale)
        if part.epsilon is None:
            return replace(placed, noise_multiplier=part.noise_multiplier or 0.0)
        return replace(placed, noise_multiplier=accounting.solve(placed, rounds, part.epsilon, part.delta))

    def fits(placed: DiscreteSum) -> bool:
        return 1.001 * reach(placed, part, largest) < 2 ** (
            part.bits - 1
        )  # epsilon is met by a noise up to 0.1% larger

    if part.granularity is not None:
        placed = on_grid(part.clip_norm / part.granularity)
        if not fits(placed):
            raise FedsimError(
                f"privacy.granularity={part.granularity:g} is so fine that a sum of {largest} clients could reach "
                f"{reach(placed, part, largest):.3g} and wrap at privacy.bits={part.bits}; raise it, or leave it null"
            )
        return placed
    scale = max(FINEST, FINE * math.sqrt(mechanism.dimension))
    while not fits(placed := on_grid(scale)):
        scale *= 0.9
        if replace(placed, scale=scale).l2 > COARSEST * scale:
            raise FedsimError(
                f"privacy.bits={part.bits} holds the sum of {largest} clients only on a grid so coarse that rounding doubles "
                "the sensitivity; use privacy.bits=32, a smaller cohort, or less noise"
            )
    return placed


def reach(mechanism: DiscreteSum, part: DistributedPrivacy, largest: int) -> float:
    """What no coordinate of a sum of up to `largest` clients exceeds, all of them there with their shares of noise."""
    variance = mechanism.variance / (1 - part.dropout_tolerance)
    return largest * math.floor(mechanism.l2) + noise_tail(variance, mechanism.dimension, WRAP_CHANCE)
