"""Discrete privacy: rotation, rounding and its sensitivity, the samplers against their laws, and the accounting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, special, stats

from fedsim.privacy import discrete
from fedsim.privacy.accounting import GaussianReleases, spend
from fedsim.privacy.discrete import Words
from fedsim.privacy.discrete_accounting import DiscreteGaussianSum, DiscreteSum, SkellamSum, noise_tail

LEVEL = 1e-6


def words(number: int = 0) -> Words:
    return Words(number.to_bytes(32, "big"))


def fits(drawn: np.ndarray, pmf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Chi-square's p-value of draws against a law on the integers; its tails are pooled where fewer than ten are expected."""
    span = 2 * int(np.abs(drawn).max()) + 50
    support = np.arange(-span, span + 1)
    chances = pmf(support)
    assert abs(chances.sum() - 1) < 1e-9
    kept = np.flatnonzero(chances * len(drawn) >= 10)
    low, high = kept[0], kept[-1] + 1
    counts = np.bincount(drawn + span, minlength=len(support))
    pooled = [np.concatenate([[x[:low].sum()], x[low:high], [x[high:].sum()]]) for x in (counts, chances * len(drawn))]
    keep = pooled[1] > 1e-9
    return float(stats.chisquare(pooled[0][keep], pooled[1][keep] * (pooled[0].sum() / pooled[1][keep].sum())).pvalue)


def discrete_gaussian_pmf(variance: float) -> Callable[[np.ndarray], np.ndarray]:
    far = np.arange(-4000, 4001)
    normal = float(np.exp(-(far**2) / (2 * variance)).sum())
    return lambda x: np.exp(-(x.astype(float) ** 2) / (2 * variance)) / normal


def skellam_pmf(variance: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: special.ive(np.abs(x).astype(float), variance)


# the generator and the samplers


def test_words_are_uniform_and_go_on() -> None:
    one, other = words(), words()
    first = one.words(1000)
    assert np.array_equal(np.concatenate([first, one.words(500)]), other.words(1500))
    assert stats.chisquare(np.bincount(words(1).words(50_000).view(np.uint8), minlength=256)).pvalue > LEVEL


@pytest.mark.parametrize("limit", [1, 3, 6, 1000, 2**40 + 1])
def test_integers_below_a_limit_are_fair(limit: int) -> None:
    drawn = words().below(limit, 60_000)
    assert drawn.min() >= 0 and drawn.max() < limit and len(drawn) > 59_000
    assert stats.kstest((drawn + words(2).uniforms(len(drawn))) / limit, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("variance", [0.05, 0.3, 1.0, 2.5, 60.0, 2500.0])
def test_discrete_gaussian_follows_its_formula(variance: float) -> None:
    drawn = discrete.discrete_gaussian(words(), variance, 200_000)
    assert fits(drawn, discrete_gaussian_pmf(variance)) > LEVEL
    if variance > 1:
        assert fits(drawn, discrete_gaussian_pmf(1.06 * variance)) < LEVEL  # a noise 3% too small would be seen


@pytest.mark.parametrize("variance", [0.05, 0.3, 2.5, 60.0, 999.0, 1000.0, 2500.0])
def test_skellam_follows_its_formula(variance: float) -> None:
    drawn = discrete.skellam(words(), variance, 200_000)
    assert fits(drawn, skellam_pmf(variance)) > LEVEL
    if variance > 1:
        assert fits(drawn, skellam_pmf(1.06 * variance)) < LEVEL


@pytest.mark.parametrize("variance", [1e5, 1e9, 1e14])
@pytest.mark.parametrize("sampler", [discrete.skellam, discrete.discrete_gaussian])
def test_large_noise_is_normal(sampler: Callable[[Words, float, int], np.ndarray], variance: float) -> None:
    drawn = sampler(words(), variance, 100_000).astype(float)
    assert stats.kstest(drawn / math.sqrt(variance), "norm").pvalue > LEVEL
    spread = (drawn**2).sum() / variance
    assert stats.chi2.cdf(spread, len(drawn)) > LEVEL and stats.chi2.sf(spread, len(drawn)) > LEVEL


def test_shares_of_skellam_sum_to_it_exactly() -> None:
    total = sum(discrete.skellam(words(n), 6.0 / 7, 100_000) for n in range(7))
    assert fits(np.asarray(total), skellam_pmf(6.0)) > LEVEL


@pytest.mark.parametrize("mean", [0.01, 0.7, 15.5, 900.0, 1e6, 1e12])
def test_log_poisson_to_thirteen_digits(mean: float) -> None:
    spread = np.linspace(-7, 9, 60) * math.sqrt(mean)
    values = np.unique(np.maximum(mean + spread, 0).astype(np.int64))
    with mpmath.workdps(60):
        exact = [float(k * mpmath.log(mean) - mpmath.mpf(mean) - mpmath.loggamma(k + 1)) for k in values.tolist()]
    assert np.abs(discrete._log_poisson(values, mean) - exact).max() < 2e-13


@pytest.mark.parametrize("variance", [1000.0, 5e4, 1e12])
def test_log_skellam_to_thirteen_digits(variance: float) -> None:
    """Against the characteristic function, inverted by quadrature: exp(v (cos t - 1)) cos(kt) over t."""
    values = [int(far * math.sqrt(variance)) for far in (0, 0.5, 2, 5, 9)]
    with mpmath.workdps(40):
        reach = [n * mpmath.mpf(18) / mpmath.sqrt(variance) / 12 for n in range(13)]
        law = [
            mpmath.quad(lambda t, k=k: mpmath.exp(-2 * variance * mpmath.sin(t / 2) ** 2) * mpmath.cos(k * t), reach)
            for k in values
        ]
        exact = [float(mpmath.log(one / mpmath.pi)) for one in law]
    assert np.abs(discrete._log_skellam(np.array(values, dtype=float), variance) - exact).max() < 2e-13


def test_no_noise_is_no_noise() -> None:
    assert not discrete.skellam(words(), 0.0, 5).any() and not discrete.discrete_gaussian(words(), 0.0, 5).any()
    assert len(discrete.skellam(words(), 1.0, 0)) == 0


# rotation


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100, 1000])
def test_rotation_is_hadamards_and_is_undone(size: int) -> None:
    wide = discrete.padded(size)
    assert wide >= size and wide & (wide - 1) == 0 and wide < 2 * size
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(size, generator=draw, dtype=torch.float64)
    signs = 2.0 * torch.randint(2, (wide,), generator=draw) - 1
    rotated = discrete.rotate(vector, signs)
    filled = np.pad(vector.numpy(), (0, wide - size))
    np.testing.assert_allclose(rotated, linalg.hadamard(wide) @ (filled * signs.numpy()) / math.sqrt(wide), atol=1e-12)
    np.testing.assert_allclose(discrete.rotate_back(rotated, signs)[:size], vector, atol=1e-12)
    assert float(rotated.norm()) == pytest.approx(float(vector.norm()), rel=1e-12)


def test_rotation_flattens_what_stands_out() -> None:
    spike = torch.zeros(4096, dtype=torch.float64)
    spike[7] = 1
    assert float(discrete.rotate(spike, torch.ones(4096)).abs().max()) == pytest.approx(1 / 64)


def test_flattening_is_undone() -> None:
    arrays = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7.0), "c": torch.zeros(0, 2)}
    flat = discrete.flatten(arrays)
    back = discrete.unflatten(torch.cat([flat, torch.ones(1)]), {name: array.shape for name, array in arrays.items()})
    assert list(back) == list(arrays) and all(torch.equal(back[name], array) for name, array in arrays.items())


# rounding and its sensitivity


def test_the_rounded_norm_is_kairouz_and_others_formula() -> None:
    """Against proposition 22 typed anew, with beta = e^-1/2 in it."""
    for norm, d in ((1000.0, 4096), (3.0, 4096), (20.0, 5), (500.0, 2**20)):
        beta = math.exp(-0.5)
        second = norm**2 + d / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(d) / 2)
        assert discrete.rounded_norm(norm, d) == pytest.approx(math.sqrt(min((norm + math.sqrt(d)) ** 2, second)))


@settings(max_examples=60, deadline=None)
@given(
    norm=st.floats(0.1, 200),
    size=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["flat", "spike", "normal"]),
)
def test_a_neighbour_moves_the_sum_by_at_most_the_stated_sensitivity(
    norm: float, size: int, seed: int, kind: str
) -> None:
    """One client's update against zeros, whatever the others send: in L2 and in L1, after rounding."""
    draw = np.random.default_rng(seed)
    raw = {"flat": np.ones(size), "spike": np.eye(1, size)[0], "normal": draw.normal(size=size)}[kind]
    vector = torch.from_numpy(raw * (norm / np.linalg.norm(raw)))
    others = sum(
        discrete.conditional_round(torch.from_numpy(draw.normal(size=size)), norm + 60, words(n)) for n in (1, 2)
    )
    with_it = others + discrete.conditional_round(vector, norm, words(seed))
    without = others + discrete.conditional_round(torch.zeros(size), norm, words(seed))
    moved = (with_it - without).astype(float)
    l2 = discrete.rounded_norm(norm, size)
    assert np.linalg.norm(moved) <= l2 * (1 + 1e-12)
    assert np.abs(moved).sum() <= discrete.rounded_l1(l2, size) * (1 + 1e-12)
    assert np.abs(moved - vector.numpy()).max() <= 1


def test_rounding_keeps_the_mean_and_rejects_what_is_too_long() -> None:
    vector = torch.full((400,), 0.5, dtype=torch.float64)
    drawn = np.array([discrete.conditional_round(vector, float(vector.norm()), words(n)) for n in range(500)])
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)  # the longest are rejected, which takes a little off
    bound = discrete.rounded_norm(float(vector.norm()), 400)
    unconditional = np.array([np.linalg.norm(words(n).uniforms(400) <= 0.5) for n in range(500)])
    assert np.linalg.norm(drawn, axis=1).max() <= bound < unconditional.max()


def test_what_is_longer_than_it_may_be_is_scaled_back() -> None:
    """The sensitivity is enforced on the integers, whatever came in."""
    rounded = discrete.conditional_round(torch.full((64,), 10.0), 8.0, words())
    assert np.linalg.norm(rounded) <= discrete.rounded_norm(8.0, 64)


@pytest.mark.parametrize("bits", [16, 32])
def test_wrapping_is_modulo_two_to_the_bits(bits: int) -> None:
    numbers = np.array([0, -1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), -(2 ** (bits - 1)) - 1, 3 * 2**bits + 5])
    assert discrete.wrap(numbers, bits).tolist() == [
        0,
        -1,
        2 ** (bits - 1) - 1,
        -(2 ** (bits - 1)),
        2 ** (bits - 1) - 1,
        5,
    ]


# accounting


def divergence(log_pmf: np.ndarray, shift: int, order: float) -> float:
    """Renyi divergence of a law on the integers, given as log-chances on a grid, from itself shifted; summed numerically."""
    kept = np.isfinite(log_pmf[shift:]) & np.isfinite(log_pmf[: len(log_pmf) - shift])
    p, q = log_pmf[shift:][kept], log_pmf[: len(log_pmf) - shift][kept]
    return float(special.logsumexp(order * p + (1 - order) * q) / (order - 1))


class Known(SkellamSum):
    """With a sensitivity of our choice, by L1 and L2 of `moved`."""

    moved: tuple[int, ...] = (1,)
    l2 = property(lambda self: math.sqrt(sum(m * m for m in self.moved)))  # type: ignore[assignment]
    l1 = property(lambda self: float(sum(abs(m) for m in self.moved)))  # type: ignore[assignment]


@pytest.mark.parametrize("mu", [1.0, 9.0, 400.0])
@pytest.mark.parametrize("moved", [(1,), (3,), (5, 1, 1, 0), (2, -2)])
def test_the_skellam_curve_is_above_the_divergence_itself(mu: float, moved: tuple[int, ...]) -> None:
    class Case(Known):
        pass

    Case.moved = moved
    grid = np.arange(-int(40 * math.sqrt(mu)) - 50, int(40 * math.sqrt(mu)) + 51)
    with np.errstate(divide="ignore"):
        log_pmf = np.log(special.ive(np.abs(grid).astype(float), mu))
    orders = np.array([2.0, 3.0, 8.0, 20.0])
    exact = np.array([sum(divergence(log_pmf, abs(m), a) for m in moved if m) for a in orders])
    bound = Case(math.sqrt(mu), 1.0, len(moved), 1).rdp(orders)
    assert (bound >= exact).all()
    if mu == 400:
        assert (bound <= 1.08 * exact).all()


@pytest.mark.parametrize("shares", [2, 3, 5])
@pytest.mark.parametrize("deviation", [0.5, 0.7, 1.0])
def test_the_discrete_gaussian_curve_is_above_the_divergence_of_a_sum_of_shares(shares: int, deviation: float) -> None:
    grid = np.arange(-60, 61)
    one = np.exp(-(grid.astype(float) ** 2) / (2 * deviation**2))
    one /= one.sum()
    law = one
    for _ in range(shares - 1):
        law = np.convolve(law, one)
    with np.errstate(divide="ignore"):
        log_pmf = np.log(np.where(law > 1e-250, law, 0))

    class Unit(DiscreteGaussianSum):
        l2 = property(lambda self: 1.0)  # type: ignore[assignment]
        l1 = property(lambda self: 1.0)  # type: ignore[assignment]

    orders = np.array([2.0, 4.0, 8.0])
    bound = Unit(deviation * math.sqrt(shares), 1.0, 1, shares).rdp(orders)
    exact = np.array([divergence(log_pmf, 1, a) for a in orders])
    assert (bound >= exact * (1 - 1e-9)).all()
    assert np.isinf(Unit(0.49 * math.sqrt(shares), 1.0, 1, shares).rdp(orders)).all()


def own_epsilon(mechanism: DiscreteSum, count: int, delta: float) -> float:
    """The conversion of Canonne and others, typed anew, over whole orders."""
    best = math.inf
    for order in range(2, 400):
        rdp = count * float(mechanism.rdp(np.array([float(order)]))[0])
        best = min(best, rdp + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return max(best, 0.0)


@pytest.mark.parametrize("kind", [SkellamSum, DiscreteGaussianSum])
@pytest.mark.parametrize(("z", "count"), [(0.7, 1), (2.0, 20), (5.0, 300)])
def test_epsilon_against_an_independent_computation(kind: type[DiscreteSum], z: float, count: int) -> None:
    mechanism = kind(z, 2000.0, 4096, 7)
    assert spend(mechanism, count, 1e-6).epsilon == pytest.approx(own_epsilon(mechanism, count, 1e-6), rel=1e-6)
    gaussian = spend(GaussianReleases(z, "none"), count, 1e-6)
    assert gaussian.epsilon < spend(mechanism, count, 1e-6).epsilon
    assert spend(mechanism, count, 1e-6).epsilon == pytest.approx(gaussian.by["rdp"], rel=0.05)  # whole orders only


@pytest.mark.parametrize("kind", [SkellamSum, DiscreteGaussianSum])
def test_epsilon_falls_with_noise_and_with_a_finer_grid(kind: type[DiscreteSum]) -> None:
    at = [kind(z, 2000.0, 4096, 7).epsilon(10, 1e-6) for z in (0.0, 0.5, 1.0, 2.0)]
    assert at[0] == math.inf and sorted(at, reverse=True) == at
    grid = [kind(1.0, scale, 4096, 7).epsilon(10, 1e-6) for scale in (50.0, 200.0, 2000.0)]
    assert sorted(grid, reverse=True) == grid and grid[0] > 1.1 * grid[2]
    assert kind(1.0, 2000.0, 4096, 7).epsilon(0, 1e-6) == 0


def test_many_small_shares_cost_the_discrete_gaussian_and_not_skellam() -> None:
    coarse = DiscreteGaussianSum(1.0, 8.0, 64, 4)
    assert replace(coarse, shares=100).epsilon(1, 1e-5) > coarse.epsilon(1, 1e-5)
    assert SkellamSum(1.0, 8.0, 64, 100).epsilon(1, 1e-5) == SkellamSum(1.0, 8.0, 64, 4).epsilon(1, 1e-5)


@pytest.mark.parametrize("variance", [0.5, 30.0, 1e4])
def test_the_noise_stays_within_its_tail(variance: float) -> None:
    """Against the laws' own tails, summed."""
    for chance in (1e-3, 1e-8):
        tail = noise_tail(variance, 100, chance)
        beyond = np.arange(math.floor(tail) + 1, math.floor(tail) + 4000)
        assert 2 * 100 * skellam_pmf(variance)(beyond).sum() <= chance
        assert 2 * 100 * discrete_gaussian_pmf(variance)(beyond).sum() <= chance
