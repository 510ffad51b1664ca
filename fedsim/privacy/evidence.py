"""Evidence that a mechanism adds the noise that it claims: a lower bound of mu from many releases of it.

A mechanism is mu-GDP (Dong, Roth and Su 2019, arXiv 1905.02383) if telling two neighbouring inputs apart is no easier than
telling N(0, 1) from N(mu, 1). Noise that is 20% too small raises mu by a quarter, which some ten thousand releases show.
"""

from __future__ import annotations

import numpy as np


def gaussian_mu_lower_bound(scores_in: np.ndarray, scores_out: np.ndarray, confidence: float = 0.95) -> float:
    """A mu that the mechanism has at least, with this confidence; 0 where nothing is shown.

    scores_in, scores_out: (releases,) one number for each independent release with and without the client, larger where
    the client seems to be in. A threshold is chosen on every other score and tested on the rest, so that the choice does not
    spend the confidence; the two rates' Clopper-Pearson bounds share what is left. Raises ValueError for fewer than two
    scores a side, or scores that are not finite.
    """
    from scipy.special import ndtri

    sides = [np.asarray(side, dtype=np.float64) for side in (scores_in, scores_out)]
    if any(side.ndim != 1 or len(side) < 2 or not np.isfinite(side).all() for side in sides):
        raise ValueError("two lists of at least two finite scores are needed")
    error = (1 - confidence) / 2

    def bounds(half: int, thresholds: np.ndarray) -> np.ndarray:
        """(thresholds,) Phi^-1 of the least true positive rate minus Phi^-1 of the greatest false positive rate."""
        inside, outside = (np.sort(side[half::2]) for side in sides)
        hits = len(inside) - np.searchsorted(inside, thresholds)
        alarms = len(outside) - np.searchsorted(outside, thresholds)
        least, greatest = (
            least_rate(hits, len(inside), error),
            1 - least_rate(len(outside) - alarms, len(outside), error),
        )
        known = (least > 0) & (greatest < 1)
        return np.where(known, ndtri(np.where(known, least, 0.5)) - ndtri(np.where(known, greatest, 0.5)), -np.inf)

    candidates = np.quantile(np.concatenate([side[0::2] for side in sides]), np.linspace(0.001, 0.999, 999))
    threshold = candidates[np.argmax(bounds(0, candidates))]
    return max(float(bounds(1, np.array([threshold]))[0]), 0.0)


def least_rate(successes: np.ndarray, trials: int, error: float) -> np.ndarray:
    """One-sided Clopper-Pearson bounds: a smaller rate gives so many successes with a chance of `error` at most."""
    from scipy.special import betaincinv

    successes = np.asarray(successes)
    inner = betaincinv(np.maximum(successes, 1), trials - successes + 1, error)
    return np.where(successes == 0, 0.0, inner)
