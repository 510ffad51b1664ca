"""What canaries showed: one score a canary for the whole run, and some single releases with and without them."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_PAIRS = 20_000
"""Single releases that are kept, of each kind."""


class Scores:
    """Scores in units of the clipping norm: a canary that took part adds 1 to a release's, one that did not adds 0.

    included: (canaries,) bool, the fair coins. releases: how many will share the room for single ones.
    """

    def __init__(self, included: np.ndarray, releases: int = 1) -> None:
        self.included = included
        self.share_room(releases)
        self.total = np.zeros(len(included))
        self.times = np.zeros(len(included), dtype=np.int64)
        self.pairs_in, self.pairs_out = np.zeros(0), np.zeros(0)
        self.releases = 0

    def share_room(self, releases: int) -> None:
        """Keep the room for single releases from being used up by the first of so many."""
        self.quota = max(1, -(-MOST_PAIRS // releases))

    def add(self, scores: np.ndarray, took_part: np.ndarray, draw: np.random.Generator) -> None:
        """One release. scores: (canaries,). took_part: (canaries,) bool. draw: chooses the pairs that are kept."""
        self.total += scores
        self.times += took_part
        self.releases += 1
        order = draw.permutation(len(scores))
        self.pairs_in = self._grown(self.pairs_in, scores[order][took_part[order]])
        self.pairs_out = self._grown(self.pairs_out, scores[order][~took_part[order]])

    def _grown(self, kept: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.concatenate([kept, new[: min(self.quota, MOST_PAIRS - len(kept))]])

    def histogram(self) -> dict[str, Any]:
        """How the scores lie, for the picture: of whole runs by coin, and of single releases by participation."""
        sides = {
            "run": (self.total[self.included], self.total[~self.included]),
            "release": (self.pairs_in, self.pairs_out),
        }
        return {name: _bars(inside, outside) for name, (inside, outside) in sides.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "total": self.total,
            "times": self.times,
            "pairs_in": self.pairs_in,
            "pairs_out": self.pairs_out,
            "releases": self.releases,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.total, self.times = np.array(state["total"], dtype=np.float64), np.array(state["times"], dtype=np.int64)
        self.pairs_in, self.pairs_out = np.array(state["pairs_in"]), np.array(state["pairs_out"])
        self.releases = int(state["releases"])


def _bars(inside: np.ndarray, outside: np.ndarray) -> dict[str, list[float]] | None:
    both = np.concatenate([inside, outside])
    if len(inside) == 0 or len(outside) == 0:
        return None
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1, 51)
    counts = {name: np.histogram(side, edges)[0] for name, side in (("in", inside), ("out", outside))}
    return {"edges": edges.round(6).tolist()} | {name: bars.tolist() for name, bars in counts.items()}
