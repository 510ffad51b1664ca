"""How canary clients are drawn: by the law of the run's own clients, and within the limits that the promise rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import rng
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from fedsim.privacy.base import Protection, Setting


def refuse_masked(protection: Protection, kind: str) -> None:
    """Refuse an audit by clients of its own where only parties to a protocol can be in the sum."""
    if protection.sums and not protection.takes_canaries:
        raise FedsimError(
            f"audit={kind} adds clients to the sum, which secure aggregation lets no one do; use privacy=user, whose clipping "
            "and noise are the same in kind, or audit=lira, or audit=none"
        )


def clip_norm_of(protection: Protection) -> float:
    """The clipping norm of this round."""
    clip: Any = getattr(protection, "clip", protection)
    return float(clip.clip_norm)


def canary_cohort(
    setting: Setting, protection: Protection, times: np.ndarray, last: np.ndarray, round: int
) -> np.ndarray:
    """(canaries,) bool: those drawn for this round that may take part.

    times, last: (canaries,) how often each took part, and the round of the last time. Raises FedsimError where there are
    too few canaries for a cohort of fixed size.
    """
    return _drawn(setting, len(times), round) & _allowed(protection, times, last, round)


def _drawn(setting: Setting, count: int, round: int) -> np.ndarray:
    draw = rng.numpy_generator(setting.seed, round, rng.SERVER, "audit cohort")
    rate = min(1.0, setting.cohort_size / setting.num_clients)
    if setting.sampling == "all" or rate == 1:
        return np.ones(count, dtype=bool)
    if setting.sampling == "poisson":
        return draw.random(count) < rate
    size = int(count * rate + 1e-9)  # rounded down: a canary's chance is not above a client's
    if size == 0:
        least = int(np.ceil(1 / rate))
        raise FedsimError(
            f"audit.canaries={count} are too few to be sampled at {rate:.3g} a round; give at least {least}"
        )
    picked = np.zeros(count, dtype=bool)
    picked[draw.choice(count, size, replace=False)] = True
    return picked


def _allowed(protection: Protection, times: np.ndarray, last: np.ndarray, round: int) -> np.ndarray:
    limit = getattr(protection, "max_participations", None)
    apart = getattr(getattr(protection, "correlated", None), "min_separation", 1)
    within = times < limit if limit is not None else np.ones(len(times), dtype=bool)
    return within & (round - last >= apart)
