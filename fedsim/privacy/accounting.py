"""Epsilon of composed releases: spent, solved for, and how many releases it pays for.

A mechanism describes itself as dp_accounting events; `accountants.py` hands them to the libraries' accountants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fedsim.checks import require_choice, require_int, require_number
from fedsim.privacy.accountants import (
    ADJACENCIES,
    FEW_ORDERS,
    as_text,
    pld_epsilon,
    prv_epsilon,
    rdp_curve,
    rdp_epsilon,
)
from fedsim.types import FedsimError

if TYPE_CHECKING:  # importing it takes most of a second
    from dp_accounting import DpEvent

MOST_NOISE = 1e6


class Mechanism(Protocol):
    """One release (or one step), as an accountant sees it; implementations are frozen dataclasses with these as fields.

    accountants: which of pld, rdp, prv and exact give valid upper bounds for it. A mechanism may also have `rdp_events(count)`,
    where RDP needs other events than PLD (PLD doubles the sensitivity under replace-one by itself, RDP does not: events that
    go to RDP hold it doubled); with `exact`, it has `epsilon(count, delta) -> float`; and `width`, where PLD's grid is never to be
    finer than so many cells of the finest.
    """

    @property
    def noise_multiplier(self) -> float: ...

    @property
    def adjacency(self) -> str: ...

    @property
    def accountants(self) -> tuple[str, ...]: ...

    def events(self, count: int) -> DpEvent:
        """`count` releases, composed."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class GaussianReleases:
    """Releases of a sum of vectors of norm at most C with Gaussian noise of standard deviation noise_multiplier x C.

    sampling: poisson (each takes part with probability `rate`), fixed (`cohort` of `population` without replacement) or none
    (all take part, or it is known who does). Shuffling and epochs are not Poisson sampling and are refused.

    Under fixed and replace-one both bounds are taken: RDP with amplification, which wants the noise over the sensitivity of
    replacing, z / 2 (Wang, Balle and Kasiviswanathan 2019, arXiv 1808.00087, Theorem 27); and PLD without any. Under fixed and
    add-or-remove-one no amplification is claimed, and one more client takes the place of another in a cohort of fixed
    size, so the sum moves by 2 C: Gaussian noise of z / 2. Under fixed and zero-out the others' places stay: z, no amplification.
    """

    noise_multiplier: float
    sampling: str
    rate: float = 1.0
    population: int = 0
    cohort: int = 0
    adjacency: str = "add-or-remove-one"

    def __post_init__(self) -> None:
        require_number("privacy.noise_multiplier", self.noise_multiplier, low=0)
        require_choice("adjacency", self.adjacency, ADJACENCIES)
        if self.sampling not in ("poisson", "fixed", "none"):
            raise FedsimError(
                f"sampling={self.sampling} is not one whose privacy amplification is known (shuffling and epochs are not Poisson "
                "sampling); use poisson or fixed, or none, which claims no amplification"
            )
        if self.sampling == "poisson":
            require_number("the sampling rate", self.rate, above=0, high=1)
        if self.sampling == "fixed":
            require_int("the cohort size", self.cohort, low=1, high=require_int("population", self.population, low=1))

    @property
    def accountants(self) -> tuple[str, ...]:
        """See Mechanism. No RDP bound is known for Poisson sampling and replace-one; PRV is for add-or-remove-one alone."""
        if self.sampling != "poisson" or self.rate == 1:
            return ("pld", "rdp")
        return {"replace-one": ("pld",), "zero-out": ("pld", "rdp")}.get(self.adjacency, ("pld", "rdp", "prv"))

    def events(self, count: int) -> DpEvent:
        """See Mechanism."""
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        z = self.noise_multiplier
        if self.sampling == "fixed" and self.adjacency == "add-or-remove-one":
            z /= 2
        if self.sampling == "poisson" and self.rate < 1:
            return SelfComposedDpEvent(PoissonSampledDpEvent(self.rate, GaussianDpEvent(z)), count)
        return SelfComposedDpEvent(GaussianDpEvent(z), count)

    def rdp_events(self, count: int) -> DpEvent:
        """See Mechanism."""
        from dp_accounting import GaussianDpEvent, SampledWithoutReplacementDpEvent, SelfComposedDpEvent

        if self.adjacency != "replace-one":
            return self.events(count)
        once: DpEvent = GaussianDpEvent(self.noise_multiplier / 2)
        if self.sampling == "fixed":
            once = SampledWithoutReplacementDpEvent(self.population, self.cohort, once)
        return SelfComposedDpEvent(once, count)


class Spent(NamedTuple):
    """epsilon: the smallest valid bound. accountant: whose it is. by: what each gives; None where it is not valid or failed."""

    epsilon: float
    accountant: str
    by: dict[str, float | None]


@lru_cache(maxsize=4096)
def spend(mechanism: Mechanism, count: int, delta: float) -> Spent:
    """Epsilon at `delta` of `count` releases: 0 of none, infinite without noise. Raises FedsimError unless 0 < delta < 1."""
    bounds = _bounds(mechanism, count, delta)
    by: dict[str, float | None] = {"pld": None, "rdp": None, "prv": None, **bounds}
    best = min(bounds, key=lambda name: bounds[name])
    if "prv" in mechanism.accountants:
        trivial = count == 0 or mechanism.noise_multiplier == 0
        z, rate = mechanism.noise_multiplier, getattr(mechanism, "rate", 1.0)
        by["prv"] = bounds[best] if trivial else prv_epsilon(z, rate, count, delta, bounds["pld"], bounds["rdp"])
    return Spent(bounds[best], as_text(best), by)


def renyi(mechanism: Mechanism, count: int) -> dict[str, list[float]] | None:
    """What further composition needs (`privacy/tuning.py`): Renyi divergences of `count` releases; None where none are known."""
    if "rdp" not in mechanism.accountants or count == 0 or mechanism.noise_multiplier == 0:
        return None
    return rdp_curve(getattr(mechanism, "rdp_events", mechanism.events)(count), mechanism.adjacency)


def epsilons_after(mechanism: Mechanism, counts: Sequence[int], delta: float) -> list[float]:
    """Epsilon after each number of releases, as `spend` has it but without cross-checks, which saves most of the time."""
    return [_epsilon(mechanism, int(count), delta) for count in counts]


def within(mechanism: Mechanism, count: int, epsilon: float, delta: float) -> bool:
    """Whether `count` releases spend no more than epsilon. By RDP first, which is quick, and enough where it says so."""
    return by_rdp(mechanism, count, delta) <= epsilon or _epsilon(mechanism, count, delta) <= epsilon


@lru_cache(maxsize=4096)
def by_rdp(mechanism: Mechanism, count: int, delta: float) -> float:
    """An upper bound of the epsilon of `count` releases that is quick to have; infinite where RDP gives none."""
    if count == 0:
        return 0.0
    if "rdp" not in mechanism.accountants or mechanism.noise_multiplier == 0:
        return math.inf
    events = getattr(mechanism, "rdp_events", mechanism.events)(count)
    return rdp_epsilon(events, mechanism.adjacency, delta, FEW_ORDERS)


@lru_cache(maxsize=1024)
def affordable(mechanism: Mechanism, epsilon: float, delta: float, most: int) -> int:
    """The most releases, at most `most`, that spend no more than epsilon."""

    def fits(count: int, width: int = 1) -> bool:
        return _epsilon(mechanism, count, delta, width) <= epsilon

    if fits(most):
        return most
    guess = _last(lambda count: fits(count, width=10), 0, most)
    return _last(fits, guess if fits(guess) else 0, most)


@lru_cache(maxsize=1024)
def solve(mechanism: Mechanism, count: int, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier at which `count` releases spend at most epsilon: never below it, at most 0.1% above.

    The mechanism's own noise multiplier is where the search starts, and does not matter otherwise. 0 where nothing is
    released. Raises FedsimError where no noise is enough.
    """
    require_number("privacy.epsilon", epsilon, above=0)
    if count == 0:
        return 0.0

    def at(z: float, width: int = 1) -> float:
        return _epsilon(replace(mechanism, noise_multiplier=z), count, delta, width)  # type: ignore[type-var]

    start = _Guess(mechanism.noise_multiplier or 1.0, slope=-1.5)
    near = _smallest(lambda z: at(z, width=50), epsilon, start, slack=1e-2)
    near = _smallest(lambda z: at(z, width=10), epsilon * (1 - 1e-6), near, slack=4e-4)
    if _is_fine_enough(replace(mechanism, noise_multiplier=near.z), count, delta):  # type: ignore[type-var]
        return near.z
    return _smallest(at, epsilon, near, slack=5e-4).z


def _is_fine_enough(mechanism: Mechanism, count: int, delta: float) -> bool:
    """Whether the finest grid would hardly lower an epsilon by PLD: its error grows with the square of the width.

    Not where RDP has events of its own, by which more orders may give less than PLD.
    """
    if getattr(mechanism, "rdp_events", mechanism.events)(1) != mechanism.events(1):
        return False
    wide, wider = (_bounds(mechanism, count, delta, width) for width in (10, 20))
    least = min(wide.values())
    return least == wide.get("pld") and wider["pld"] - least <= 1e-3 * least


def solve_many(cases: Sequence[tuple[Mechanism, int]], epsilon: float, delta: float) -> list[float]:
    """`solve` for each (mechanism, count); quicker where neighbours in the list are alike, since each search starts at the last."""
    found: dict[tuple[Mechanism, int], float] = {}
    z = 1.0
    for mechanism, count in cases:
        if (mechanism, count) not in found:
            found[mechanism, count] = solve(replace(mechanism, noise_multiplier=z), count, epsilon, delta)  # type: ignore[type-var]
            z = found[mechanism, count] or z
    return [found[case] for case in cases]


def _last(fits: Callable[[int], bool], low: int, most: int) -> int:
    """The largest number up to `most` that fits, where `low` does and fitting ends once."""
    step = 1
    while low + step <= most and fits(low + step):
        low, step = low + step, step * 2
    while step := step // 2:
        if low + step <= most and fits(low + step):
            low += step
    return low


class _Guess(NamedTuple):
    """A noise multiplier, and how steeply log epsilon falls with its logarithm."""

    z: float
    slope: float


def _smallest(epsilon_at: Callable[[float], float], target: float, start: _Guess, slack: float) -> _Guess:
    """A z with target x (1 - slack) <= epsilon_at(z) <= target, by secants of log epsilon over log z.

    Where epsilon jumps over that range, the z after the jump.
    """
    x, slope = math.log(start.z), start.slope
    low, high = -math.inf, math.inf
    last_x, last_gap = x, math.nan
    for tries in itertools.count():
        gap = math.log(min(max(epsilon_at(math.exp(x)) / target, 1e-9), 1e9))
        if tries:
            slope = min(max((gap - last_gap) / (x - last_x), -50.0), -1.0)
        low, high = (x, high) if gap > 0 else (low, x)
        if -slack <= gap <= 0 or high - low < slack / 30:
            break
        if low > math.log(MOST_NOISE):
            raise FedsimError(f"privacy.epsilon={target:g} is below what any noise can give; raise it")
        step = min(max(-(gap + slack / 2) / slope, -1.5), 1.5)
        if tries > 6:  # a flat stretch, or a jump
            step = math.copysign(1.5, step)
        if not low < x + step < high or (tries > 6 and math.isfinite(high - low)):
            step = (low + high) / 2 - x
        last_x, last_gap, x = x, gap, x + step
    return _Guess(math.exp(high), slope)


def _bounds(mechanism: Mechanism, count: int, delta: float, width: int = 1) -> dict[str, float]:
    """Epsilon by each accountant whose bound may be reported. width: above 1 for a search."""
    return _bounds_at(mechanism, count, delta, max(width, getattr(mechanism, "width", 1)))


@lru_cache(maxsize=4096)
def _bounds_at(mechanism: Mechanism, count: int, delta: float, width: int) -> dict[str, float]:
    require_number("privacy.delta", delta, above=0, below=1)
    require_int("the number of releases", count, low=0)
    names = [name for name in mechanism.accountants if name != "prv"]
    if count == 0 or mechanism.noise_multiplier == 0:
        return dict.fromkeys(names, math.inf if count else 0.0)
    by: dict[str, float] = {}
    for name in names:
        if name == "exact":
            by[name] = float(getattr(mechanism, "epsilon")(count, delta))  # noqa: B009 - an optional method
        elif name == "rdp":
            events = getattr(mechanism, "rdp_events", mechanism.events)(count)
            by[name] = rdp_epsilon(events, mechanism.adjacency, delta, FEW_ORDERS if width > 1 else None)
        else:
            by[name] = pld_epsilon(mechanism.events(count), mechanism.adjacency, delta, width)
    return by


def _epsilon(mechanism: Mechanism, count: int, delta: float, width: int = 1) -> float:
    return min(_bounds(mechanism, count, delta, width).values())
