"""Test, then train: how good a model is on the examples that come next, before it learns from them.

The order of a stream is that of its rounds, and within a round clients ascending, each client's examples as they came. So
the figures do not depend on which worker judged whom. Three memories (Gama, Sebastiao and Rodrigues 2013, "On evaluating
stream learning algorithms", doi 10.1007/s10994-012-5320-9): of everything, of the last `window` examples, and fading,
S_i = x_i + f S_{i-1} and N_i = 1 + f N_{i-1}, whose ratio S_i / N_i forgets example by example.

river.stats.EWMean(1 - f) begins at the first example instead of at nothing: with m_i for it, S_i / N_i = (m_i - f^i x_1) /
(1 - f^i). The two are the same once f^i is nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fedsim.checks import require_int, require_number
from fedsim.types import FedsimError

_COUNT, _HITS, _LOSS, _FADED_COUNT, _FADED_HITS, _FADED_LOSS = range(6)
"""Columns of the sums of one stream."""


class Judged(NamedTuple):
    """A round's judged examples in the order of the stream.

    clients: (k,) ascending int64, each once; starts: (k,) int64, where each one's examples begin; rows: the columns asked for.
    """

    clients: np.ndarray
    starts: np.ndarray
    rows: list[np.ndarray]


def in_order(clients: np.ndarray, counts: np.ndarray, *columns: np.ndarray) -> Judged:
    """Put columns (n, ...), whose rows are `counts` (k,) of each of the clients (k,) in turn, in the order of the stream.

    Clients without examples are left out. Raises ValueError where counts and columns differ, or a client comes twice.
    """
    clients, counts = np.asarray(clients, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    wrong = [len(column) for column in columns if len(column) != counts.sum()]
    if clients.shape != counts.shape or wrong or len(np.unique(clients)) < len(clients):
        raise ValueError(
            f"{len(clients)} clients of {counts.sum()} examples do not fit columns of {[len(c) for c in columns]}"
        )
    order = np.argsort(np.repeat(clients, counts), kind="stable")
    by_client = np.argsort(clients)
    by_client = by_client[counts[by_client] > 0]
    starts = np.cumsum(counts[by_client]) - counts[by_client]
    return Judged(clients[by_client], starts, [np.asarray(column)[order] for column in columns])


class Prequential:
    """Accuracy and loss of a stream that is judged before it is learnt; state is plain numbers and arrays."""

    def __init__(self, fading: float = 0.99, window: int = 1000) -> None:
        """fading: f, the weight of an example against the one after it (1: nothing fades). window: examples.

        Raises FedsimError where either is out of range.
        """
        self.fading = require_number("evaluation.fading", fading, above=0, high=1)
        self.window = require_int("evaluation.window", window, low=1)
        self._total, self._round = np.zeros(6), np.zeros(6)
        self._last = np.empty((0, 2))  # (at most window, 2): hit and loss
        self._clients, self._sums = np.empty(0, dtype=np.int64), np.empty((0, 6))

    def update(self, clients: np.ndarray, counts: np.ndarray, losses: np.ndarray, hits: np.ndarray | None) -> None:
        """Take a round's examples: `counts` (k,) of each of the clients (k,) in turn.

        losses: (n,); hits: (n,) 0 or 1, None where nothing can be right or wrong (a regression). A loss that is not a
        number, of a model that blew up, stays in the fading and cumulative loss for ever, as it should; not in the window.
        """
        hits = np.full(len(losses), np.nan) if hits is None else hits
        judged = in_order(clients, counts, np.asarray(hits, np.float64), np.asarray(losses, np.float64))
        rows = np.stack(judged.rows, axis=1)  # (n, 2)
        self._round = np.zeros(6)
        if not len(rows):
            return
        self._round = _sums(rows, np.zeros(1, dtype=np.int64), self.fading)[0]
        self._total = _joined(self._total, self._round, self.fading)
        self._last = np.concatenate([self._last, rows[-self.window :]])[-self.window :]
        self._take(judged.clients, _sums(rows, judged.starts, self.fading))

    def _take(self, clients: np.ndarray, sums: np.ndarray) -> None:
        """Join sums (k, 6) of the clients (k,) with what these had before."""
        known = np.union1d(self._clients, clients)
        if len(known) > len(self._clients):
            grown = np.zeros((len(known), 6))
            grown[np.searchsorted(known, self._clients)] = self._sums
            self._clients, self._sums = known, grown
        rows = np.searchsorted(known, clients)
        self._sums[rows] = _joined(self._sums[rows], sums, self.fading)

    def columns(self) -> dict[str, float | int | None]:
        """Of the newest round, for rounds.parquet: None where nothing came, or for accuracy where there is none.

        prequential: fading; window: the last examples; cumulative: all so far; round: this round's arrivals alone.
        """
        hit, loss = self._last.mean(axis=0) if len(self._last) else (math.nan, math.nan)
        return {
            "prequential_accuracy": _share(self._total, _FADED_HITS, _FADED_COUNT),
            "prequential_loss": _share(self._total, _FADED_LOSS, _FADED_COUNT),
            "window_accuracy": _known(float(hit)) if len(self._last) else None,
            "window_loss": float(loss) if len(self._last) else None,
            "cumulative_accuracy": _share(self._total, _HITS, _COUNT),
            "cumulative_loss": _share(self._total, _LOSS, _COUNT),
            "round_accuracy": _share(self._round, _HITS, _COUNT),
            "round_loss": _share(self._round, _LOSS, _COUNT),
            "arrived": int(self._round[_COUNT]),
        }

    def client_columns(self) -> dict[str, np.ndarray]:
        """Of every client that was judged, ascending: `client`, `judged` examples, cumulative and fading figures, (k,) each."""
        count, faded = self._sums[:, _COUNT], self._sums[:, _FADED_COUNT]
        return {
            "client": self._clients.copy(),
            "judged": count.astype(np.int64),
            "cumulative_accuracy": self._sums[:, _HITS] / count,
            "cumulative_loss": self._sums[:, _LOSS] / count,
            "prequential_accuracy": self._sums[:, _FADED_HITS] / faded,
            "prequential_loss": self._sums[:, _FADED_LOSS] / faded,
        }

    def state(self) -> dict[str, np.ndarray]:
        """All that later figures depend on."""
        return {
            "total": self._total.copy(),
            "round": self._round.copy(),
            "last": self._last.copy(),
            "clients": self._clients.copy(),
            "sums": self._sums.copy(),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave. Raises FedsimError where it is something else."""
        try:
            self._total, self._round = (
                np.array(state[name], dtype=np.float64).reshape(6) for name in ("total", "round")
            )
            self._last = np.array(state["last"], dtype=np.float64).reshape(-1, 2)[-self.window :]
            self._clients = np.array(state["clients"], dtype=np.int64).reshape(-1)
            self._sums = np.array(state["sums"], dtype=np.float64).reshape(len(self._clients), 6)
        except (KeyError, ValueError) as error:
            raise FedsimError(
                "the checkpoint's prequential figures are not as fedsim writes them; start anew"
            ) from error


def _sums(rows: np.ndarray, starts: np.ndarray, fading: float) -> np.ndarray:
    """(k, 6) the sums of each segment of rows (n, 2), which begin at `starts` (k,).

    An example weighs f to the number of those after it in its segment, which may run down to zero and does no harm.
    """
    ends = np.append(starts[1:], len(rows))
    later = np.repeat(ends, ends - starts) - 1 - np.arange(len(rows))  # (n,)
    weights = np.power(fading, later)
    table = np.column_stack([np.ones(len(rows)), rows, weights, weights[:, None] * rows])  # (n, 6)
    return np.add.reduceat(table, starts, axis=0)


def _joined(before: np.ndarray, after: np.ndarray, fading: float) -> np.ndarray:
    """Sums (..., 6) of a stream followed by another: only the fading half of the first gives way."""
    kept = np.ones_like(before)
    kept[..., _FADED_COUNT:] = np.power(fading, after[..., _COUNT])[..., None]
    joined: np.ndarray = before * kept + after
    return joined


def _share(sums: np.ndarray, part: int, whole: int) -> float | None:
    return _known(float(sums[part] / sums[whole]), part) if sums[whole] else None


def _known(value: float, part: int = _HITS) -> float | None:
    """An accuracy that is no number is one that does not exist; a loss stays what it is."""
    return None if math.isnan(value) and part in (_HITS, _FADED_HITS) else value
