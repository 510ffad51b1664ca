"""How far a sample has moved from a reference: distances to report, and tests that say whether it is chance.

Samples are (n,) or (n, features), rows being examples; reference and current may differ in n.
"""

from __future__ import annotations

import math

import numpy as np

PSI_BINS = 10
BATCH = 320  # permutations drawn at a time, at most


def stability_index(reference: np.ndarray, current: np.ndarray, bins: int = PSI_BINS) -> np.ndarray:
    """(features,) the population stability index of each feature: the sum over bins of (q - p) ln(q / p).

    p, q: shares of the reference and of the current sample in bins that hold the reference's quantiles; a feature of at most
    `bins` values has a bin for each of them and one for all others. Half an example is added to every bin, so that an
    empty one counts as rare and not as impossible. It is the symmetrised Kullback-Leibler divergence of the two (in nats),
    0 where the shares agree; practice calls 0.1 a small and 0.25 a large change (Siddiqi 2006).
    """
    old, new = _columns(reference), _columns(current)
    return np.array([_feature_index(old[:, j], new[:, j], bins) for j in range(old.shape[1])])


def class_stability_index(reference: np.ndarray, current: np.ndarray, num_classes: int) -> float:
    """The same for predicted or true classes, (n,) int64 in [0, num_classes), with a bin a class."""
    return index_of_counts(*(np.bincount(labels, minlength=num_classes) for labels in (reference, current)))


def index_of_counts(reference: np.ndarray, current: np.ndarray) -> float:
    """The population stability index of two tables of counts (bins,), half an example added to each bin."""
    old, new = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (reference, current))
    return float(((new - old) * np.log(new / old)).sum())


def _feature_index(reference: np.ndarray, current: np.ndarray, bins: int) -> float:
    values = np.unique(reference)
    if len(values) <= bins:
        places = [np.searchsorted(values, sample).clip(max=len(values) - 1) for sample in (reference, current)]
        known = [values[place] == sample for place, sample in zip(places, (reference, current), strict=True)]
        numbers = [np.where(there, place, len(values)) for place, there in zip(places, known, strict=True)]
        return class_stability_index(numbers[0], numbers[1], len(values) + 1)
    edges = np.unique(np.quantile(reference, np.arange(1, bins) / bins))
    old, new = (np.searchsorted(edges, sample, side="left") for sample in (reference, current))
    return class_stability_index(old, new, len(edges) + 1)


def wasserstein(reference: np.ndarray, current: np.ndarray, scaled: bool = True) -> np.ndarray:
    """(features,) the 1-Wasserstein distance of each feature: how far its mass was moved, on average.

    scaled: in standard deviations of the reference (a feature that was constant there stays in its own unit).
    """
    from scipy.stats import wasserstein_distance

    old, new = _columns(reference), _columns(current)
    moved = np.array([wasserstein_distance(old[:, j], new[:, j]) for j in range(old.shape[1])])
    spread = old.std(axis=0)
    return moved / np.where(spread > 0, spread, 1.0) if scaled else moved


def data_drift(reference: np.ndarray, current: np.ndarray, bins: int = PSI_BINS) -> dict[str, np.ndarray]:
    """The columns of a data-drift report, a row a feature: `feature`, `stability_index`, `wasserstein` (scaled)."""
    index = stability_index(reference, current, bins)
    return {
        "feature": np.arange(len(index)),
        "stability_index": index,
        "wasserstein": wasserstein(reference, current),
    }


def kolmogorov_smirnov(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, float]:
    """(features,) the two-sample statistic of each feature, and the p-value of the largest, Bonferroni over the features.

    With tied values the p-value is an upper bound.
    """
    from scipy.stats import ks_2samp

    old, new = _columns(reference), _columns(current)
    statistics = _largest_gaps(old, new)
    worst = int(statistics.argmax())
    # The p-value depends on the sizes and the statistic alone, so that of the largest statistic is the smallest.
    method = "exact" if len(old) * len(new) <= 1_000_000 else "asymp"
    smallest = float(ks_2samp(old[:, worst], new[:, worst], method=method).pvalue)
    return statistics, min(1.0, smallest * len(statistics))


def _largest_gaps(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(features,) sup |F_old - F_new| of each column."""
    pooled = np.concatenate([old, new])
    order = np.argsort(pooled, axis=0, kind="stable")
    steps = np.where(order < len(old), 1 / len(old), -1 / len(new))
    gaps = np.abs(np.cumsum(steps, axis=0))
    values = np.take_along_axis(pooled, order, axis=0)
    gaps[:-1][values[:-1] == values[1:]] = 0.0  # inside a run of ties neither distribution function is complete
    largest: np.ndarray = gaps.max(axis=0)
    return largest


def mean_discrepancy(reference: np.ndarray, current: np.ndarray) -> float:
    """The squared maximum mean discrepancy under a Gaussian kernel (Gretton et al. 2012, JMLR 13, equation 5: biased, >= 0).

    The kernel's width is the median distance of the pooled examples.
    """
    kernel, side = _kernel(reference, current)
    return float(side @ kernel @ side)


def discrepancy_test(reference: np.ndarray, current: np.ndarray, level: float, draw: np.random.Generator) -> bool:
    """Whether a permutation test of the maximum mean discrepancy rejects at `level` that both samples have one law.

    The p-value is (1 + exceedances) / (1 + permutations) with as few permutations as can reject, ceil(1 / level) - 1. It
    stops as soon as too many exceed, which most samples that did not move reach in the first, small batch.
    """
    kernel, side = _kernel(reference, current)
    seen = side @ kernel @ side
    left = math.ceil(1 / level) - 1
    allowed = level * (left + 1) - 1  # exceedances with which the p-value is still at most `level`
    exceeded, batch = 0, 20
    while left > 0:
        shuffled = draw.permuted(np.tile(side, (min(batch, left), 1)), axis=1)  # (batch, n)
        exceeded += int((((shuffled @ kernel) * shuffled).sum(axis=1) >= seen - 1e-12).sum())
        if exceeded > allowed + 1e-9:
            return False
        left, batch = left - len(shuffled), min(2 * batch, BATCH)
    return True


def _kernel(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) the kernel matrix of the pooled examples, and (n,) their weights: 1 / n_old, or -1 / n_new."""
    from scipy.spatial.distance import pdist, squareform

    old, new = _columns(reference), _columns(current)
    squares = pdist(np.concatenate([old, new]), "sqeuclidean")
    positive = squares[squares > 0]
    width = np.median(positive) if len(positive) else 1.0
    side = np.concatenate([np.full(len(old), 1 / len(old)), np.full(len(new), -1 / len(new))])
    return np.exp(-squareform(squares) / (2 * width)), side


def _columns(sample: np.ndarray) -> np.ndarray:
    """(n, features) float64."""
    sample = np.asarray(sample, dtype=np.float64)
    if not len(sample):
        raise ValueError("a distance needs at least one example on each side")
    return sample.reshape(len(sample), -1)
