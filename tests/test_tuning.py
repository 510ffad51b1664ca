"""What choosing the best of several private runs costs: by dp-accounting, by the paper's corollaries, and counted out whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant

from fedsim.privacy.accounting import GaussianReleases, renyi, spend
from fedsim.privacy.tuning import Curve, Trials, composed, first_chance, mean_trials, worst
from fedsim.types import FedsimError

MECHANISM = GaussianReleases(1.2, "poisson", 0.02)
SHAPES = (0.0, 0.5, 1.0, 2.0)


def curve(count: int = 300, mechanism: GaussianReleases = MECHANISM) -> Curve:
    found = Curve.of({"renyi": renyi(mechanism, count)})
    assert found is not None
    return found


def chances(trials: Trials, most: int) -> np.ndarray:
    """P[K = k] for k = 0..most, each by its own formula."""
    ks = np.arange(most + 1)
    if trials.distribution == "poisson":
        return np.array([math.exp(-trials.mean + k * math.log(trials.mean) - math.lgamma(k + 1)) for k in ks])
    gamma, eta = trials.gamma, trials.shape
    if eta == 0:
        return np.array([0.0] + [(1 - gamma) ** k / (k * math.log(1 / gamma)) for k in ks[1:]])
    scale = (1 - gamma) ** ks / (gamma**-eta - 1)
    return np.array([0.0] + [scale[k] * np.prod([(i + eta) / (i + 1) for i in range(k)]) for k in ks[1:]])


@pytest.mark.parametrize("mean", [1.5, 10.0, 200.0])
@pytest.mark.parametrize("shape", [None, *SHAPES])
def test_as_dp_accounting_has_it(shape: float | None, mean: float) -> None:
    trials = Trials("poisson", mean) if shape is None else Trials("negative_binomial", mean, shape)
    one = curve()
    event = RepeatAndSelectDpEvent(MECHANISM.events(300), mean, math.inf if shape is None else shape)
    theirs = RdpAccountant(list(one.orders)).compose(event)
    assert trials.selected(one).epsilon(1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)


def test_a_ledgers_curve_is_what_its_epsilon_by_rdp_comes_from() -> None:
    by = spend(MECHANISM, 300, 1e-5).by["rdp"]
    assert by is not None and by <= curve().epsilon(1e-5) <= 1.03 * by  # fewer orders
    assert renyi(GaussianReleases(1.0, "poisson", 0.1, adjacency="replace-one"), 3) is None
    assert renyi(MECHANISM, 0) is None and renyi(GaussianReleases(0.0, "none"), 3) is None and Curve.of({}) is None


@pytest.mark.parametrize("shape", [-0.5, *SHAPES])
def test_the_distribution_is_definition_1(shape: float) -> None:
    trials = Trials("negative_binomial", 4.0, shape)
    found = chances(trials, 4000)
    assert found.sum() == pytest.approx(1, abs=1e-6)
    assert found @ np.arange(len(found)) == pytest.approx(4.0, rel=1e-4)
    assert mean_trials(shape, trials.gamma) >= 4.0 - 1e-9, "rounded to the side of safety"
    assert first_chance(shape, trials.gamma) == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize(
    "trials", [Trials("poisson", 3.0), Trials("negative_binomial", 3.0, 0.0), Trials("negative_binomial", 3.0)]
)
def test_the_number_is_drawn_from_the_distribution(trials: Trials) -> None:
    drawn = np.array([trials.draw(seed) for seed in range(4000)])
    assert trials.draw(7) == trials.draw(7)
    found = np.bincount(drawn, minlength=8)[:8] / len(drawn)
    expected = chances(trials, 7)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / len(drawn))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pure_promise_of_epsilon_becomes_one_of_2_plus_eta_epsilons(shape: float) -> None:
    """Corollary 3: whatever the mean."""
    one = Curve(np.array([2.0, 1e12]), np.array([0.3, 0.3]))
    for mean in (2.0, 50.0):
        assert Trials("negative_binomial", mean, shape).selected(one).divergences[-1] == pytest.approx(
            (2 + shape) * 0.3
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_concentrated_runs_cost_what_corollary_4_says(shape: float) -> None:
    """rho-zCDP runs: rho (l - 1) + log(E K) / (l - 1) + 2 (1 + eta) sqrt(rho log(1 / gamma)) - eta rho, from an order on."""
    rho, trials = 0.1, Trials("negative_binomial", 12.0, shape)
    gamma = trials.gamma
    orders = np.unique([1.5, math.sqrt(math.log(1 / gamma) / rho), 1 + math.sqrt(math.log(12) / rho), 9.0, 40.0])
    found = trials.selected(Curve(orders, rho * orders))
    beside = 2 * (1 + shape) * math.sqrt(rho * math.log(1 / gamma)) - shape * rho
    for order, value in zip(orders, found.divergences, strict=True):
        if order >= 1 + math.sqrt(math.log(12) / rho):
            assert value == pytest.approx(rho * (order - 1) + math.log(12) / (order - 1) + beside, rel=1e-6)


def best_of(one: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The law of the best of K results, counted out: one (results,) from worst to best, number (most + 1,) of K.

    The last entry is that of no trial at all.
    """
    below, law = 0.0, []
    for chance in one:
        law.append(sum(p * ((below + chance) ** k - below**k) for k, p in enumerate(number) if k))
        below += chance
    return np.array([*law, number[0]])


@pytest.mark.parametrize(
    "trials", [Trials("poisson", 5.0), *(Trials("negative_binomial", 5.0, eta) for eta in (-0.5, *SHAPES))]
)
def test_no_choice_among_results_that_can_be_counted_out_tells_more_than_the_bound(trials: Trials) -> None:
    """Ten results in order, on two neighbouring data sets; the divergence of the best's law both ways, against the theorem."""
    draw = np.random.default_rng(5)
    orders = np.array([1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64])

    def divergence(left: np.ndarray, right: np.ndarray, order: float) -> float:
        powers = order * np.log(left) + (1 - order) * np.log(right)
        return float(np.logaddexp.reduce(powers) / (order - 1))

    number = chances(trials, 400)
    nothing = slice(None) if number[0] else slice(-1)
    tightest = math.inf
    for size in (0.05, 0.3, 1.0):
        for _ in range(20):
            left = draw.dirichlet(np.ones(10))
            right = left * np.exp(draw.uniform(-size, size, 10))
            right /= right.sum()
            one = np.array([max(divergence(left, right, order), divergence(right, left, order)) for order in orders])
            bound = trials.selected(Curve(orders, one)).divergences
            chosen = [best_of(law, number)[nothing] for law in (left, right)]
            real = [max(divergence(*chosen, order), divergence(*chosen[::-1], order)) for order in orders]
            assert (np.array(real) <= bound + 1e-9).all()
            tightest = min(tightest, float((bound - real).min()))
    assert tightest < 2, "the bound is of the same size as what it bounds"


def test_several_runs_compose_and_the_worst_of_them_stands_for_all() -> None:
    few, many = curve(10), curve(300)
    assert worst([few, many]).divergences == pytest.approx(many.divergences)
    assert composed([curve(100)] * 3).divergences == pytest.approx(curve(300).divergences)
    trials = Trials("negative_binomial", 10.0, 0.0)
    assert many.epsilon(1e-5) < trials.selected(many).epsilon(1e-5) < composed([many] * 10).epsilon(1e-5)


@pytest.mark.parametrize(
    ("distribution", "mean", "shape", "words"),
    [
        ("geometric", 3.0, 1.0, "trials=geometric"),
        ("negative_binomial", 1.0, 1.0, "the mean of trials=1"),
        ("poisson", 0.0, 1.0, "the mean of trials=0"),
        ("negative_binomial", 3.0, -1.0, "the shape of trials=-1"),
    ],
)
def test_a_number_of_trials_that_cannot_be_drawn_is_refused(
    distribution: str, mean: float, shape: float, words: str
) -> None:
    with pytest.raises(FedsimError, match=words):
        Trials(distribution, mean, shape)
