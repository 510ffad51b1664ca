"""Can it be told from the loss that an example was trained on? The simplest attack, as one number with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Z95 = 1.959964


class Attack(NamedTuple):
    """auc: 0.5 is guessing, 1 tells all apart. low, high: 95% interval. members, others: examples of each kind."""

    auc: float
    low: float
    high: float
    members: int
    others: int


def loss_attack(members: np.ndarray, others: np.ndarray) -> Attack:
    """Threshold the loss (Yeom et al. 2018, arXiv 1709.01604): the chance that a member's is below a non-member's.

    members, others: (n,), (m,) losses, at least one each; one that is not finite counts as the largest. The interval is
    Hanley and McNeil's (Radiology 143, 1982, eq. 1).
    """
    members, others = (np.nan_to_num(losses, nan=np.inf, posinf=np.inf) for losses in (members, others))
    ordered = np.sort(others)
    below, up_to = np.searchsorted(ordered, members, "left"), np.searchsorted(ordered, members, "right")
    n, m = len(members), len(others)
    auc = float(np.mean((m - up_to) + 0.5 * (up_to - below)) / m)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    half = Z95 * math.sqrt(max(variance, 0.0))
    return Attack(auc, max(auc - half, 0.0), min(auc + half, 1.0), n, m)
