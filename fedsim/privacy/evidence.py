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
    sides = [np.asarray(side, dtype=np.float64) for side in (scores_in, scores_out)]
    if any(side.ndim != 1 or len(side) < 2 or not np.isfinite(side).all() for side in sides):
        raise ValueError("two lists of at least two finite scores are needed")
    error = (1 - confidence) / 2
    threshold = _promising_threshold(sides[0][0::2], sides[1][0::2], error)
    inside, outside = (side[1::2] for side in sides)
    hits, quiet = (inside >= threshold).sum(), (outside < threshold).sum()
    return max(float(_gap(hits, len(inside), quiet, len(outside), error)), 0.0)


def _promising_threshold(inside: np.ndarray, outside: np.ndarray, error: float) -> float:
    """Where the bound would be largest if both sides were Gaussian with the moments that they have here.

    By the moments and not by counts, of which the best among many is best by luck at the far ends.
    """
    from scipy.special import ndtr

    candidates = np.quantile(np.concatenate([inside, outside]), np.linspace(0.001, 0.999, 999))
    above, below = (
        ndtr(sign * (side.mean() - candidates) / max(float(side.std()), 1e-12))
        for side, sign in ((inside, 1), (outside, -1))
    )
    gaps = _gap(above * len(inside), len(inside), below * len(outside), len(outside), error)
    best = candidates[gaps >= gaps.max() - 1e-12]
    return float(best[len(best) // 2])


def _gap(hits: np.ndarray, inside: int, quiet: np.ndarray, outside: int, error: float) -> np.ndarray:
    """Phi^-1 of the least true positive rate minus Phi^-1 of the greatest false positive rate; -inf where one is trivial."""
    from scipy.special import ndtri

    least, greatest = least_rate(hits, inside, error), 1 - least_rate(quiet, outside, error)
    known = (least > 0) & (greatest < 1)
    return np.where(known, ndtri(np.where(known, least, 0.5)) - ndtri(np.where(known, greatest, 0.5)), -np.inf)


def least_rate(successes: np.ndarray, trials: int, error: float) -> np.ndarray:
    """One-sided Clopper-Pearson bounds: a smaller rate gives so many successes with a chance of `error` at most."""
    from scipy.special import betaincinv

    successes = np.asarray(successes)
    inner = betaincinv(np.maximum(successes, 1e-9), trials - successes + 1, error)
    return np.where(successes <= 0, 0.0, inner)
