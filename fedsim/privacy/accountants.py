"""What the accountants of dp_accounting and Opacus say of composed events. None of the arithmetic of privacy is done here.

PLD composes the distribution of the privacy loss numerically, on a grid and rounded to the side of safety (Doroshenko et al.
2022, arXiv 2207.04380); RDP composes Renyi divergences (Mironov 2017, arXiv 1702.07476); PRV is Opacus's accountant of the
first kind (Gopi et al. 2021, arXiv 2106.02848).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it takes most of a second
    from dp_accounting import DpEvent, NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ADJACENCIES = ("add-or-remove-one", "replace-one", "zero-out")
"""What neighbours differ by: one more client, another client, or a client that sends zeros and is drawn like before."""

GRID = 1e-4
"""Width of the steps in which PLD counts the privacy loss: dp_accounting's default."""
WIDEST = 10.0
"""A grid for an epsilon of a million or so, which PLD is not asked for."""
FEW_ORDERS = (1.5, 2.0, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 63, 128, 512, 1024)
"""Some of the default ones: enough for a search, which is quick with them."""
ROUNDING = 1e-13
"""Of a Renyi divergence."""
MOST_CELLS = 2e6
"""Of PRV's grid: half a second, and 100 MB."""
MOST_TERMS = 600
"""Of each series in Opacus's own RDP, which PRV calls for the size of its grid: half a second."""


def as_text(accountant: str) -> str:
    """An accountant with the version of the package that it comes from, as in `PLD, dp-accounting 0.6.0`."""
    if accountant == "exact":
        return "exact, in closed form"
    package = "opacus" if accountant == "prv" else "dp-accounting"
    return f"{accountant.upper()}, {package} {version(package)}"


def _relation(adjacency: str) -> NeighboringRelation:
    from dp_accounting import NeighboringRelation as Relation

    return (Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE, Relation.REPLACE_SPECIAL)[ADJACENCIES.index(adjacency)]


def pld_epsilon(events: DpEvent, adjacency: str, delta: float, width: int = 1) -> float:
    """Epsilon by PLD. width: of the grid, in cells of the finest; a wider one is quicker, and never gives less."""
    from dp_accounting.pld import PLDAccountant

    parts = [(_gaussian(once), count) for once, count in _parts(events)]
    kinds = [(kind[0], kind[1], count) for kind, count in parts if kind is not None]
    if len(kinds) < len(parts):
        with _quiet():
            return float(PLDAccountant(_relation(adjacency)).compose(events).get_epsilon(delta))
    kinds = [
        (z / math.sqrt(count), rate, 1) if rate == 1 else (z, rate, count) for z, rate, count in kinds
    ]  # off the grid
    interval = _interval([((2 if adjacency == "replace-one" else 1) / z, rate, n) for z, rate, n in kinds], width)
    if not interval < WIDEST:
        return math.inf
    with _quiet():
        composed = None
        for z, rate, count in kinds:
            part = _one_pld(z, rate, adjacency, interval)
            part = part.self_compose(count) if len(kinds) == 1 and count > 1 else _times(part, count)
            composed = part if composed is None else composed.compose(part)
        assert composed is not None
        return float(composed.get_epsilon_for_delta(delta))


def _times(part: PrivacyLossDistribution, count: int) -> PrivacyLossDistribution:
    """As `self_compose`, by squaring: a tenth of its time where the count is small."""
    total = None
    while True:
        if count & 1:
            total = part if total is None else total.compose(part)
        count >>= 1
        if not count:
            assert total is not None
            return total
        part = part.compose(part)


@lru_cache(maxsize=64)
def _one_pld(z: float, rate: float, adjacency: str, interval: float) -> PrivacyLossDistribution:
    """Of one release, as PLDAccountant has it: kept, since it takes longer than composing it."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        z, value_discretization_interval=interval, sampling_prob=rate, neighboring_relation=_relation(adjacency)
    )


def _parts(events: Any) -> list[tuple[Any, int]]:
    """(event, how often it is composed) of each kind that there is."""
    from dp_accounting import ComposedDpEvent, SelfComposedDpEvent

    if isinstance(events, ComposedDpEvent):
        return [part for event in events.events for part in _parts(event)]
    return [(events.event, events.count) if isinstance(events, SelfComposedDpEvent) else (events, 1)]


def _gaussian(event: Any) -> tuple[float, float] | None:
    """(noise multiplier, sampling rate) of a Gaussian release, Poisson sampled or not; None for any other event."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    if isinstance(event, GaussianDpEvent):
        return event.noise_multiplier, 1.0
    if isinstance(event, PoissonSampledDpEvent) and isinstance(event.event, GaussianDpEvent):
        return event.event.noise_multiplier, event.sampling_probability
    return None


def _interval(kinds: list[tuple[float, float, int]], width: int) -> float:
    """The grid for PLD: GRID, or wider where the losses are so large that memory would not hold them at that.

    Any grid gives a valid bound, by connecting the dots; one that leaves some dots out lies above. How wide is judged by
    Gaussian approximation (Bu et al. 2019, arXiv 1911.11607): of one loss's spread, its range, and the total. kinds: of each kind
    of release the sensitivity over the noise's standard deviation, the sampling rate, and how often it is composed.
    """
    spreads = [min(rate * math.sqrt(math.expm1(min(shift**2, 700.0))), shift) for shift, rate, _ in kinds]
    total = math.hypot(*(spread * math.sqrt(count) for spread, (_, _, count) in zip(spreads, kinds, strict=True)))
    spread = min(spreads)
    widest = max((shift**2 / 2 + 10 * shift) / (1e5 if rate == 1 else 3e5) for shift, rate, _ in kinds)
    wide = max(widest, (total**2 / 2 + 5 * total) / 2e5)
    fine = max(GRID, min(wide, spread / 20))
    return fine * max(1, min(width, int(spread * (width / 35) ** 2 / fine)))


def rdp_epsilon(events: DpEvent, adjacency: str, delta: float, orders: tuple[float, ...] | None = None) -> float:
    """Epsilon by RDP, an upper bound by any set of orders; None for dp_accounting's own.

    The accountant takes the noise over the sensitivity as it stands in the events, under every adjacency.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    used, curve = _composed_curve(events, adjacency, orders)
    with _quiet():
        return float(compute_epsilon(used, curve, delta)[0])


def rdp_curve(events: DpEvent, adjacency: str) -> dict[str, list[float]]:
    """What RDP composes, as JSON: `divergences` at `orders`, infinite where an order has no bound."""
    orders, curve = _composed_curve(events, adjacency, FEW_ORDERS)
    return {"orders": [float(order) for order in orders], "divergences": [float(value) for value in curve]}


def _composed_curve(events: DpEvent, adjacency: str, orders: tuple[float, ...] | None) -> tuple[Any, Any]:
    """(orders, divergences) of all events together."""
    used, total = None, 0.0
    for once, count in _parts(events):
        try:
            used, curve = _rdp_curve(once, adjacency, orders)
        except TypeError:  # an event that holds a list cannot be a key of the cache
            used, curve = _rdp_curve.__wrapped__(once, adjacency, orders)
        total = total + count * curve
    return used, total


@lru_cache(maxsize=256)
def _rdp_curve(once: DpEvent, adjacency: str, orders: tuple[float, ...] | None) -> tuple[Any, Any]:
    """(orders, divergences) of one event, with what rounding may have taken off: else many tiny ones would add up to none."""
    import numpy as np
    from dp_accounting.rdp import RdpAccountant

    with _quiet():
        accountant = RdpAccountant(orders, _relation(adjacency)).compose(once)
    return accountant.orders, np.where(accountant.rdp >= 0, accountant.rdp + ROUNDING, np.inf)


def prv_epsilon(noise_multiplier: float, rate: float, count: int, delta: float, pld: float, rdp: float) -> float | None:
    """Epsilon by PRV, of Poisson-sampled Gaussian releases and add-or-remove-one alone.

    None where it fails, needs more memory or time than a cross-check is worth, or is far from PLD, as its arithmetic can
    be. rdp: an upper bound, by which the memory is judged.
    """
    from opacus.accountants import PRVAccountant

    error = min(max(rdp / 100, 1e-3), 1e-2)  # added to epsilon
    cells = (rdp + 12) * 2 * math.sqrt(count * math.log(12e3 / delta) / 2) / error
    terms = noise_multiplier * (noise_multiplier * max(math.log(1 / rate - 1), 0.0) + 8)
    if not (cells < MOST_CELLS and terms < MOST_TERMS):
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, rate, count)]
    try:
        with _quiet():
            epsilon = float(accountant.get_epsilon(delta, eps_error=error))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError, IndexError):
        return None
    return epsilon if pld / 1.2 - 0.02 < epsilon < pld * 1.2 + 0.02 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """The accountants' warnings say that an order was left out or a logarithm taken of 0, which costs tightness alone."""
    import numpy as np

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("_compute_log_a_frac failed")

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(wanted)
