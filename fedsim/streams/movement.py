"""How far what clients see has moved since a stream began: a data-drift report, window of rounds by window of rounds.

Each window of examples is held against the first one in which anything came, feature by feature, label and prediction too.
Pictures and long rows are told by the means of a few regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from fedsim.streams.distances import PSI_BINS, index_of_counts, stability_index, wasserstein

SMALL, LARGE = 0.1, 0.25
"""What practice calls a small and a large change of the population stability index (Siddiqi 2006, Credit Risk Scorecards)."""

MOST_FEATURES = 64
"""Of a row, that are told one by one."""

REGIONS, PARTS = 4, 16
"""Of a picture along each side, and of a longer row, whose means stand for what is in them."""


def described(x: Tensor) -> tuple[np.ndarray, list[str]]:
    """(n, features) float64 of preprocessed inputs x (n, ...), and what the features are called; none of whole numbers.

    Of a row of at most MOST_FEATURES numbers each is a feature; of others the means over PARTS stretches of the last dimension,
    or over REGIONS x REGIONS fields of the last two, and over all dimensions before those.
    """
    if not x.is_floating_point():
        return np.empty((len(x), 0)), []
    if x.ndim == 2 and x.shape[1] <= MOST_FEATURES:
        return x.double().cpu().numpy(), [f"feature {number}" for number in range(x.shape[1])]
    if x.ndim <= 3:
        rows = x.double().reshape(len(x), -1, x.shape[-1]).mean(1)  # (n, last)
        parts = functional.adaptive_avg_pool1d(rows, PARTS)
        return parts.cpu().numpy(), [f"part {number + 1} of {PARTS}" for number in range(PARTS)]
    pictures = x.double().reshape(len(x), -1, *x.shape[-2:]).mean(1)  # (n, height, width)
    fields = functional.adaptive_avg_pool2d(pictures, REGIONS).flatten(1)
    places = range(REGIONS)
    return fields.cpu().numpy(), [f"field {row + 1},{column + 1}" for row in places for column in places]


def spaced(count: int, most: int) -> np.ndarray:
    """(min(count, most),) places 0 .. count - 1, evenly spread."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.empty(0, int)
    )


def expected_index(reference: int, current: int, bins: int = PSI_BINS) -> float:
    """The population stability index that chance alone gives samples of these sizes from one distribution, in the mean.

    (bins - 1) (1 / reference + 1 / current), since it is then nearly that multiple of chi-squared (Yurdakul 2018, "Statistical
    properties of population stability index", dissertation, Western Michigan University).
    """
    return (bins - 1) * (1 / reference + 1 / current)


class Movement:
    """Windows against the first: rows of data_drift.parquet."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def features(self, last: int, names: Sequence[str], reference: np.ndarray, current: np.ndarray) -> None:
        """Take two samples (n, features) and (m, features), the newer one of a window whose last round is `last`."""
        index, moved = stability_index(reference, current), wasserstein(reference, current)
        chance = expected_index(len(reference), len(current))
        for name, one, distance in zip(names, index.tolist(), moved.tolist(), strict=True):
            self._row(last, name, one, distance, chance, len(current))

    def classes(self, last: int, name: str, reference: np.ndarray, current: np.ndarray) -> None:
        """Take two tables of counts (classes,)."""
        chance = expected_index(int(reference.sum()), int(current.sum()), len(reference))
        self._row(last, name, index_of_counts(reference, current), np.nan, chance, int(current.sum()))

    def _row(self, last: int, name: str, index: float, moved: float, chance: float, examples: int) -> None:
        self._rows.append(
            {
                "round": last,
                "feature": name,
                "stability_index": index,
                "by_chance": chance,
                "wasserstein": moved,
                "examples": examples,
            }
        )

    def table(self) -> dict[str, Any]:
        """Columns of data_drift.parquet, a row a window and feature.

        round: the window's last. stability_index: of the feature, see `fedsim.streams.distances`; by_chance: what it would be on
        average had nothing moved. wasserstein: in standard deviations of the first window, null of classes. examples: compared.
        """
        import pyarrow as pa

        names = ("round", "feature", "stability_index", "by_chance", "wasserstein", "examples")
        kinds = (pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.float64(), pa.int64())
        return {
            name: pa.array([row[name] for row in self._rows], kind, from_pandas=True)
            for name, kind in zip(names, kinds, strict=True)
        }
