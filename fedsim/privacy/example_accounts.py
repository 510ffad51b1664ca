"""The accounts of `privacy=example`: clients that are charged alike, since they sample at one rate and make as many steps.

Where more than MAX_ACCOUNTS rates differ, neighbours share an account, which is charged by the largest rate and the most steps
among them: what a client truly spends is then below what is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsim.privacy import accounting
from fedsim.privacy.accounted import Budget
from fedsim.privacy.base import Setting
from fedsim.privacy.budgets import draw_groups
from fedsim.training.dpsgd import expected_batch

MAX_ACCOUNTS = 16
"""By budget group: noise is solved for each."""

NO_ACCOUNT = -1
"""Of a client without examples."""


class Account(NamedTuple):
    """Clients that are accounted alike. rate: of an example in a step. steps: a round."""

    rate: float
    steps: int
    keys: Budget

    def mechanism(self, noise_multiplier: float) -> accounting.GaussianReleases:
        """One step as the accountant sees it."""
        return accounting.GaussianReleases(noise_multiplier, "poisson", rate=self.rate)


def classes(rates: np.ndarray, most: int = MAX_ACCOUNTS) -> np.ndarray:
    """(clients,) a class for each rate: one for each distinct rate, or, where these are more than `most`, neighbours together.

    Classes are chosen so that the largest ratio of two rates in one is as small as can be.
    """
    distinct = np.unique(rates)[::-1]

    def starts(ratio: float) -> np.ndarray:
        found = [distinct[0]]
        for rate in distinct:
            if found[-1] > rate * ratio:
                found.append(rate)
        return np.array(found)

    low, high = 0.0, math.log(distinct[0] / distinct[-1]) + 1e-9
    chosen = starts(1.0) if len(distinct) <= most else starts(math.exp(high))
    for _ in range(40 if len(distinct) > most else 0):
        middle = (low + high) / 2
        found = starts(math.exp(middle))
        low, high, chosen = (low, middle, found) if len(found) <= most else (middle, high, chosen)
    return np.searchsorted(-chosen, -rates, side="right") - 1


def open_accounts(
    setting: Setting, keys: Sequence[Budget], shares: Sequence[float]
) -> tuple[list[Account], np.ndarray]:
    """The accounts, those of one budget group after those of another, and (clients,) the account of each, or NO_ACCOUNT."""
    sizes = setting.num_examples
    holders = np.flatnonzero(sizes > 0)
    rates = np.array([expected_batch(setting.training, int(n)) / int(n) for n in sizes[holders]])
    steps = np.array([setting.training.steps(int(n)) for n in sizes[holders]])
    groups = draw_groups(shares, len(sizes), setting.seed)[holders]
    found: list[Account] = []
    account_of = np.full(len(sizes), NO_ACCOUNT, dtype=np.int64)
    for group, own_keys in enumerate(keys):
        own = np.flatnonzero(groups == group)
        if len(own) == 0:
            continue
        kind = classes(rates[own])
        for one in np.unique(kind):
            members = own[kind == one]
            account_of[holders[members]] = len(found)
            found.append(Account(float(rates[members].max()), int(steps[members].max()), own_keys))
    return found, account_of
