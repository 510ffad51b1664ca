"""A lower bound on epsilon from the canaries of one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, theorem 5.2).

Each canary was in or out by a fair coin. Whoever guesses more of the coins than (epsilon, delta) allows has shown that the
mechanism is not (epsilon, delta)-private. Nothing is assumed of the noise, nor that canaries' scores are independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PLANS = ((0.45, 0.45), (1 / 8, 1 / 8), (1 / 8, 0.0), (1 / 40, 0.0))
"""Shares of the canaries guessed in (highest scores) and out (lowest): nearly all (coins are not quite half heads); the clear
ones; where sampling lets few canaries take part, only the clearest ins. Fixed beforehand, and every one pays for the others
(Bonferroni)."""

HIGHEST = 100.0


class OneRun(NamedTuple):
    """epsilon: the lower bound. guesses, correct: of the plan that gave it. most: what all-correct guesses would have shown."""

    epsilon: float
    guesses: int
    correct: int
    most: float


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely at least `correct` of `guesses` are right, at most, if the mechanism is (epsilon, delta)-private."""
    from scipy.stats import binom

    q = 1 / (1 + np.exp(-epsilon))  # the accuracy of randomised response
    beta = float(binom.sf(correct - 1, guesses, q))
    if delta == 0 or correct == 0:
        return beta
    i = np.arange(1, correct + 1)
    alpha = float((np.cumsum(binom.pmf(correct - i, guesses, q)) / i).max())  # P[v > Bin >= v - i] / i
    return min(beta + alpha * delta * 2 * canaries, 1.0)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that so many correct guesses refute at this confidence; 0 where none."""
    error = 1 - confidence
    if guesses == 0 or p_value(canaries, guesses, correct, 0.0, delta) >= error:
        return 0.0
    low, high = 0.0, HIGHEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = p_value(canaries, guesses, correct, middle, delta) < error
        low, high = (middle, high) if refuted else (low, middle)
    return low


def one_run_bound(scores: np.ndarray, included: np.ndarray, delta: float, confidence: float) -> OneRun:
    """The best of the plans' bounds. scores: (canaries,) higher for in; included: (canaries,) bool, the fair coins."""
    canaries, each = len(scores), 1 - (1 - confidence) / len(PLANS)
    order = np.argsort(scores, kind="stable")
    best = OneRun(0.0, 0, 0, 0.0)
    for share_in, share_out in PLANS:
        ins, outs = int(share_in * canaries), int(share_out * canaries)
        guesses = ins + outs
        correct = int(included[order[canaries - ins :]].sum() + (~included[order[:outs]]).sum())
        bound = epsilon_lower_bound(canaries, guesses, correct, delta, each)
        most = max(best.most, epsilon_lower_bound(canaries, guesses, guesses, delta, each))
        best = (OneRun(bound, guesses, correct, most) if bound > best.epsilon or not best.guesses else best)._replace(
            most=most
        )
    return best
