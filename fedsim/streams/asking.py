"""Which labels a client asks for, where labels come only when they are paid for: the parts `labels=...`.

A device decides when a row comes, with the model that it has then and has not trained on that row. What it decides depends on
(seed, client, position), on that model and on what this client saw before; on no other client.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedsim.checks import require_choice, require_number
from fedsim.fleet.draws import uniforms
from fedsim.types import FedsimError

MEASURES = ("margin", "confidence", "entropy")


class Purse(NamedTuple):
    """What a client carries on from row to row. threshold: of certainty, below which it asks. credit: labels that it may buy."""

    threshold: float = 1.0
    credit: float = 0.0


class Labels:
    """Base class, and `labels=all`: every label is told, when the stream has it come. kind: the part's name.

    asks: whether labels come only when they are asked for. budget: share of a client's arrivals whose label it buys.
    looks: whether the choice follows from the model's answers.
    """

    kind = "all"
    asks = False
    looks = False
    budget = 1.0

    def ask(
        self, seed: int, client: int, positions: np.ndarray, answers: np.ndarray, factor: float, purse: Purse
    ) -> tuple[np.ndarray, Purse]:
        """(n,) bool: which labels of the rows at positions (n,), in the order in which they come, are bought; and the new purse.

        answers: (n, classes) the model's probabilities; (n, 0) where nobody looks. factor: by which the budget is raised for now.
        """
        return np.ones(len(positions), bool), purse

    def check(self, task: str) -> None:
        """Raises FedsimError where rows of this task have no such labels."""


class AllLabels(Labels):
    """`labels=all`."""


class Budgeted(Labels):
    """Base class of those that ask."""

    asks = True

    def __init__(self, budget: float) -> None:
        self.budget = require_number("labels.budget", budget, above=0, high=1)


class RandomLabels(Budgeted):
    """`labels=random`: a coin for each row, of chance `budget`; the share bought is the budget on average."""

    kind = "random"

    def __init__(self, budget: float = 0.1) -> None:
        super().__init__(budget)

    def ask(
        self, seed: int, client: int, positions: np.ndarray, answers: np.ndarray, factor: float, purse: Purse
    ) -> tuple[np.ndarray, Purse]:
        """See Labels."""
        draws = uniforms(seed, "label coin", np.full(len(positions), client), positions)
        return draws < min(1.0, self.budget * factor), purse


class UncertainLabels(Budgeted):
    """`labels=uncertainty`: labels of rows of which the model is not certain, by a threshold that follows the stream.

    Variable uncertainty with randomisation (Zliobaite, Bifet, Pfahringer and Holmes 2014, doi 10.1109/TNNLS.2012.2236570, figures
    5 and 6): ask where certainty < threshold * eta with eta ~ N(1, spread^2), lower the threshold by the share `step` after asking
    and raise it by as much after not. Because of eta some rows that the model is sure of are asked for too, without which a drift
    where it is sure would never be noticed. Where the paper estimates spending by a fading mean, which lets a young stream
    overspend, a client here never buys more than `budget` times what has come to it; what it has not spent it may spend later.

    measure: certainty in [0, 1]: `confidence`, the largest probability, as in the paper; `margin`, less the second largest;
    `entropy`, 1 - entropy / log(classes).
    """

    kind = "uncertainty"
    looks = True

    def __init__(self, budget: float = 0.1, measure: str = "margin", step: float = 0.01, spread: float = 1.0) -> None:
        super().__init__(budget)
        self.measure = require_choice("labels.measure", measure, MEASURES)
        self.step = require_number("labels.step", step, above=0, below=1)
        self.spread = require_number("labels.spread", spread, low=0)

    def ask(
        self, seed: int, client: int, positions: np.ndarray, answers: np.ndarray, factor: float, purse: Purse
    ) -> tuple[np.ndarray, Purse]:
        """See Labels."""
        from scipy.special import ndtri

        eta = 1 + self.spread * ndtri(uniforms(seed, "label threshold", np.full(len(positions), client), positions))
        sure, asked, (threshold, credit) = certainty(answers, self.measure), np.zeros(len(positions), bool), purse
        for row in range(len(positions)):
            credit += min(1.0, self.budget * factor)
            if credit < 1 - 1e-9:  # ten times a tenth is a hair less than a label
                continue
            asked[row] = sure[row] < threshold * eta[row]
            credit -= asked[row]
            threshold *= 1 - self.step if asked[row] else 1 + self.step
        return asked, Purse(float(threshold), float(credit))

    def check(self, task: str) -> None:
        """See Labels."""
        if task != "classification":
            raise FedsimError(
                f"labels=uncertainty asks where a model is unsure between classes, which a {task} has not; use labels=random"
            )


def certainty(answers: np.ndarray, measure: str) -> np.ndarray:
    """(n,) float64 in [0, 1] of probabilities (n, classes), of which there are two or more. measure: one of MEASURES."""
    answers = np.asarray(answers, np.float64)
    if measure == "entropy":
        from scipy.special import entr

        return np.asarray(1 - entr(answers).sum(1) / np.log(answers.shape[1]))
    ordered = np.sort(answers, axis=1)
    return np.asarray(ordered[:, -1] if measure == "confidence" else ordered[:, -1] - ordered[:, -2])
