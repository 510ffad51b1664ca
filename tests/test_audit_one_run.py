"""The bound of one run: against closed forms, and against randomised response, which it is exact for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from fedsim.audit.one_run import PLANS, epsilon_lower_bound, one_run_bound, p_value


@pytest.mark.parametrize("canaries", [10, 100, 1000])
def test_all_correct_guesses_give_the_closed_form(canaries: int) -> None:
    # p = q^m with q = 1 / (1 + e^-eps), so that p = 0.05 at q = 0.05^(1/m)
    q = 0.05 ** (1 / canaries)
    assert epsilon_lower_bound(canaries, canaries, canaries, 0.0, 0.95) == pytest.approx(
        math.log(q / (1 - q)), abs=1e-5
    )


def test_half_of_the_guesses_right_shows_nothing() -> None:
    assert epsilon_lower_bound(1000, 1000, 500, 0.0, 0.95) == 0.0
    assert epsilon_lower_bound(1000, 0, 0, 1e-5, 0.95) == 0.0


def test_delta_is_paid_for_as_the_theorem_says() -> None:
    canaries, guesses, correct, epsilon, delta = 40, 30, 25, 0.7, 1e-3
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = [sum(binom.pmf(k, guesses, q) for k in range(correct - i, correct)) / i for i in range(1, correct + 1)]
    expected = sum(binom.pmf(k, guesses, q) for k in range(correct, guesses + 1)) + max(tail) * delta * 2 * canaries
    assert p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, rel=1e-9)
    assert epsilon_lower_bound(1000, 1000, 990, 1e-5, 0.95) < epsilon_lower_bound(1000, 1000, 990, 0.0, 0.95)


def test_the_bound_exceeds_randomised_response_in_at_most_one_of_twenty_runs() -> None:
    draw, epsilon, canaries = np.random.default_rng(1), 1.0, 400
    above, bounds = 0, []
    for _ in range(200):
        included = draw.random(canaries) < 0.5
        truthful = draw.random(canaries) < 1 / (1 + math.exp(-epsilon))
        answers = np.where(truthful, included, ~included).astype(
            float
        )  # scores of 0 and 1: the worst case for the plans' order
        bounds.append(one_run_bound(answers, included, 0.0, 0.95).epsilon)
        above += bounds[-1] > epsilon
    assert above <= 0.05 * 200 + 2 * math.sqrt(200 * 0.05 * 0.95)
    assert np.median(bounds) > 0.5, "a bound that is always 0 would pass too"


def test_the_single_plan_is_nearly_exact_for_randomised_response() -> None:
    draw, epsilon, canaries = np.random.default_rng(2), 1.0, 400
    correct = draw.binomial(canaries, 1 / (1 + math.exp(-epsilon)), size=2000)
    known = {int(v): epsilon_lower_bound(canaries, canaries, int(v), 0.0, 0.95) for v in np.unique(correct)}
    share = np.mean([known[int(v)] > epsilon for v in correct])
    assert 0.02 < share < 0.065  # 5% less what discreteness costs; the upper end is three standard errors above


def test_scores_without_anything_in_them_show_nothing() -> None:
    draw = np.random.default_rng(3)
    found = [one_run_bound(draw.normal(size=500), draw.random(500) < 0.5, 1e-5, 0.95).epsilon for _ in range(100)]
    assert np.mean(np.array(found) > 0) <= 0.05 + 0.045


def test_separated_scores_show_the_most_that_can_be_shown() -> None:
    included = np.random.default_rng(4).permutation(np.arange(1000) < 500)
    bound = one_run_bound(included * 10.0, included, 1e-5, 0.95)
    assert bound.epsilon == bound.most > 4.5
    assert bound.guesses == bound.correct == 900
    each = 1 - 0.05 / len(PLANS)
    assert bound.most == epsilon_lower_bound(1000, 900, 900, 1e-5, each)
