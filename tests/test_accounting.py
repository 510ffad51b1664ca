"""Epsilons: against dp_accounting composed here by hand, against closed forms, and by laws that any accountant must keep."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
    SingleEpochTreeAggregationDpEvent,
    ZCDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fedsim.privacy.accountants import ADJACENCIES, pld_epsilon
from fedsim.privacy.accounting import (
    GaussianReleases,
    affordable,
    as_text,
    epsilons_after,
    solve,
    solve_many,
    spend,
)
from fedsim.types import FedsimError

ADD, REPLACE, ZERO = (
    NeighboringRelation.ADD_OR_REMOVE_ONE,
    NeighboringRelation.REPLACE_ONE,
    NeighboringRelation.REPLACE_SPECIAL,
)


def poisson(z: float, rate: float, adjacency: str = "add-or-remove-one") -> GaussianReleases:
    return GaussianReleases(z, "poisson", rate=rate, adjacency=adjacency)


def everyone(z: float, adjacency: str = "add-or-remove-one") -> GaussianReleases:
    return GaussianReleases(z, "none", adjacency=adjacency)


def fixed(z: float, cohort: int, population: int, adjacency: str = "replace-one") -> GaussianReleases:
    return GaussianReleases(z, "fixed", population=population, cohort=cohort, adjacency=adjacency)


# Independent answers. Each is a function of delta.
Answer = Callable[[float], float]


def by_pld(event: DpEvent, count: int, relation: NeighboringRelation = ADD) -> Answer:
    return lambda delta: PLDAccountant(relation).compose(event, count).get_epsilon(delta)


def by_rdp(event: DpEvent, count: int, relation: NeighboringRelation = ADD) -> Answer:
    return lambda delta: RdpAccountant(neighboring_relation=relation).compose(event, count).get_epsilon(delta)


def where(delta_at: Callable[[float], float], delta: float) -> float:
    return brentq(lambda epsilon: delta_at(epsilon) - delta, 0, 700, xtol=1e-13) if delta_at(0) > delta else 0.0


def by_gdp(mu: float) -> Answer:
    """Gaussian DP in closed form (Balle and Wang 2018, arXiv 1805.06530, Theorem 8)."""
    return lambda delta: where(lambda e: ndtr(-e / mu + mu / 2) - math.exp(e + log_ndtr(-e / mu - mu / 2)), delta)


def by_mixtures(z: float, rate: float, other: float) -> Answer:
    """One release: noise around (0 or 1) against noise around (0 or `other`), where the second is drawn with `rate`."""

    def ratio(y: float) -> float:
        one, two = (np.logaddexp(math.log1p(-rate), math.log(rate) + (m * y - m**2 / 2) / z**2) for m in (1.0, other))
        return one - two

    def delta_at(e: float) -> float:
        y = brentq(lambda y: ratio(y) - e, -60, 60 + 800 * z**2, xtol=1e-14)
        upper = (1 - rate) * ndtr(-y / z) + rate * ndtr((1 - y) / z)
        lower = (1 - rate) * ndtr(-y / z) + rate * ndtr((other - y) / z)
        return upper - math.exp(e) * lower

    return lambda delta: where(delta_at, delta)


def sampled(z: float, rate: float) -> DpEvent:
    return PoissonSampledDpEvent(rate, GaussianDpEvent(z))


def drawn(z: float, cohort: int, population: int) -> DpEvent:
    return SampledWithoutReplacementDpEvent(population, cohort, GaussianDpEvent(z))


SETTINGS: list[tuple[GaussianReleases, int, float, Answer]] = [
    # no sampling: composed Gaussians are one Gaussian
    (everyone(1.0), 1, 1e-5, by_gdp(1.0)),
    (everyone(1.0), 10, 1e-5, by_gdp(math.sqrt(10))),
    (everyone(5.0), 60, 1e-5, by_gdp(math.sqrt(60) / 5)),
    (everyone(20.0), 2000, 1e-6, by_gdp(math.sqrt(2000) / 20)),
    (everyone(3.0), 10, 1e-2, by_gdp(math.sqrt(10) / 3)),
    (everyone(3.0), 10, 1e-10, by_gdp(math.sqrt(10) / 3)),
    (everyone(0.2), 4, 1e-5, by_gdp(10.0)),
    (everyone(50.0), 3, 0.3, lambda delta: 0.0),
    (everyone(5.0, "replace-one"), 60, 1e-5, by_gdp(2 * math.sqrt(60) / 5)),
    (everyone(40.0, "replace-one"), 300, 1e-6, by_gdp(2 * math.sqrt(300) / 40)),
    (everyone(5.0, "zero-out"), 60, 1e-5, by_gdp(math.sqrt(60) / 5)),
    (everyone(5.0), 60, 1e-5, by_pld(GaussianDpEvent(5.0), 60)),
    (everyone(5.0, "replace-one"), 60, 1e-5, by_pld(GaussianDpEvent(5.0), 60, REPLACE)),
    # Poisson: one release by the two mixtures, more by PLD
    (poisson(1.0, 0.1), 1, 1e-5, by_mixtures(1.0, 0.1, 0.0)),
    (poisson(1.5, 0.02), 1, 1e-4, by_mixtures(1.5, 0.02, 0.0)),
    (poisson(2.0, 0.5), 1, 1e-6, by_mixtures(2.0, 0.5, 0.0)),
    (poisson(1.0, 0.1, "replace-one"), 1, 1e-5, by_mixtures(1.0, 0.1, -1.0)),
    (poisson(3.0, 0.5, "replace-one"), 1, 1e-6, by_mixtures(3.0, 0.5, -1.0)),
    (poisson(2.2, 0.03), 60, 1e-5, by_pld(sampled(2.2, 0.03), 60)),
    (poisson(2.2, 0.03), 60, 1e-8, by_pld(sampled(2.2, 0.03), 60)),
    (poisson(4.0, 0.2), 100, 1e-4, by_pld(sampled(4.0, 0.2), 100)),
    (poisson(3.0, 0.05), 5 * 20 * 4, 1e-5, by_pld(sampled(3.0, 0.05), 400)),  # 20 rounds of 5 epochs of 4 steps
    (poisson(2.5, 0.05), 1 * 10 * 20, 1e-5, by_pld(sampled(2.5, 0.05), 200)),  # 10 rounds of 1 epoch of 20 steps
    (poisson(4.0, 0.3), 2000, 1e-6, by_pld(sampled(4.0, 0.3), 2000)),
    (poisson(1.0, 1e-4), 1000, 1e-6, by_pld(sampled(1.0, 1e-4), 1000)),
    (poisson(0.8, 1e-6), 10, 1e-9, by_pld(sampled(0.8, 1e-6), 10)),
    (poisson(2.2, 0.03, "replace-one"), 60, 1e-5, by_pld(sampled(2.2, 0.03), 60, REPLACE)),
    (poisson(3.0, 0.2, "replace-one"), 50, 1e-6, by_pld(sampled(3.0, 0.2), 50, REPLACE)),
    (poisson(2.2, 0.03, "zero-out"), 60, 1e-5, by_pld(sampled(2.2, 0.03), 60, ZERO)),
    (poisson(5.0, 1.0), 60, 1e-5, by_gdp(math.sqrt(60) / 5)),
    (poisson(5.0, 0.999999), 20, 1e-5, by_gdp(math.sqrt(20) / 5)),
    (poisson(5.0, 1.0, "replace-one"), 60, 1e-5, by_gdp(2 * math.sqrt(60) / 5)),
    # fixed: RDP with half the noise where it is the smaller, else no amplification
    (fixed(3.0, 10, 100), 50, 1e-5, by_rdp(drawn(1.5, 10, 100), 50, REPLACE)),
    (fixed(3.0, 10, 100), 50, 1e-8, by_rdp(drawn(1.5, 10, 100), 50, REPLACE)),
    (fixed(2.0, 5, 1000), 300, 1e-5, by_rdp(drawn(1.0, 5, 1000), 300, REPLACE)),
    (fixed(8.0, 50, 100), 2000, 1e-6, by_gdp(2 * math.sqrt(2000) / 8)),
    (fixed(10.0, 90, 100), 10, 1e-5, by_gdp(2 * math.sqrt(10) / 10)),
    (fixed(5.0, 100, 100), 30, 1e-5, by_gdp(2 * math.sqrt(30) / 5)),
    (fixed(5.0, 10, 100, "add-or-remove-one"), 30, 1e-5, by_gdp(2 * math.sqrt(30) / 5)),
    (fixed(5.0, 10, 100, "zero-out"), 30, 1e-5, by_gdp(math.sqrt(30) / 5)),
    # nothing released, or no noise
    (poisson(1.0, 0.1), 0, 1e-5, lambda delta: 0.0),
    (fixed(1.0, 10, 100), 0, 1e-5, lambda delta: 0.0),
    (everyone(0.0), 0, 1e-5, lambda delta: 0.0),
    (poisson(0.0, 0.1), 3, 1e-5, lambda delta: math.inf),
    (fixed(0.0, 10, 100), 1, 1e-5, lambda delta: math.inf),
    (everyone(0.0, "replace-one"), 1, 1e-5, lambda delta: math.inf),
]


@pytest.mark.parametrize(("mechanism", "count", "delta", "answer"), SETTINGS)
def test_epsilon_is_what_others_find(mechanism: GaussianReleases, count: int, delta: float, answer: Answer) -> None:
    ours, theirs = spend(mechanism, count, delta), answer(delta)
    assert ours.epsilon == pytest.approx(theirs, rel=2e-5, abs=1e-9)
    assert epsilons_after(mechanism, [count], delta) == [ours.epsilon]
    known = [epsilon for epsilon in ours.by.values() if epsilon is not None]
    assert min(known) == ours.epsilon
    assert set(ours.by) == {"pld", "rdp", "prv"}


def test_there_are_enough_settings() -> None:
    assert len({(mechanism, count, delta) for mechanism, count, delta, _ in SETTINGS}) >= 30


def test_what_stands_beside_the_tightest_bound() -> None:
    beside = spend(poisson(2.2, 0.03), 60, 1e-5)
    assert beside.accountant == as_text("pld")
    assert beside.by["rdp"] == pytest.approx(by_rdp(sampled(2.2, 0.03), 60)(1e-5), rel=1e-9)
    beside = spend(fixed(3.0, 10, 100), 50, 1e-5)
    assert beside.accountant == as_text("rdp")
    assert beside.by["pld"] == pytest.approx(by_gdp(2 * math.sqrt(50) / 3)(1e-5), rel=1e-5)
    assert beside.by["prv"] is None
    assert spend(poisson(2.2, 0.03, "replace-one"), 60, 1e-5).by["rdp"] is None
    assert spend(everyone(5.0, "replace-one"), 60, 1e-5).by["rdp"] == pytest.approx(
        by_rdp(GaussianDpEvent(2.5), 60)(1e-5), rel=1e-9
    )


@pytest.mark.parametrize(("z", "rate", "count"), [(1.0, 0.01, 300), (2.0, 0.3, 20), (5.0, 0.999, 20)])
def test_prv_is_near_pld_and_rdp_above(z: float, rate: float, count: int) -> None:
    by = spend(poisson(z, rate), count, 1e-5).by
    assert by["pld"] is not None and by["rdp"] is not None and by["prv"] is not None
    assert by["prv"] == pytest.approx(by["pld"], rel=0.05)
    assert by["rdp"] > by["pld"]


@pytest.mark.parametrize(("z", "rate", "count"), [(0.02, 0.9, 500), (1.0, 1e-9, 10), (1e-4, 0.5, 2000), (1e5, 0.5, 3)])
def test_extremes_give_a_bound_and_no_crash(z: float, rate: float, count: int) -> None:
    spent = spend(poisson(z, rate), count, 1e-5)
    assert not math.isnan(spent.epsilon) and spent.epsilon >= 0
    prv = spent.by["prv"]
    assert prv is None or math.isfinite(prv)
    if z < 1:  # the largest of `count` plain Gaussians' losses is above this
        assert spent.epsilon > count * rate**2 / (2 * z**2) / 10


@pytest.mark.parametrize(("cohort", "count", "z"), [(100, 10, 5.0), (50, 10, 5.0), (10, 50, 3.0)])
def test_half_the_noise_goes_to_rdp_sampling_without_replacement(cohort: int, count: int, z: float) -> None:
    ours = spend(fixed(z, cohort, 100), count, 1e-5).by["rdp"]
    wrong = by_rdp(drawn(z, cohort, 100), count, REPLACE)(1e-5)
    assert ours is not None and ours > 1.5 * wrong
    # One pair of neighbours: all others send 0, and one client changes from C to -C.
    pair = by_pld(sampled(z, cohort / 100), count, REPLACE)(1e-5)
    assert ours > pair
    assert cohort < 100 or wrong < 0.6 * pair  # the wrong way claims less than that pair loses


def test_pld_under_replace_one_is_not_doubled_twice() -> None:
    right = spend(everyone(10.0, "replace-one"), 20, 1e-5).epsilon
    assert right == pytest.approx(by_gdp(2 * math.sqrt(20) / 10)(1e-5), rel=1e-5)
    twice = by_pld(GaussianDpEvent(10.0 / 2), 20, REPLACE)(1e-5)
    never = by_pld(GaussianDpEvent(10.0), 20, ADD)(1e-5)
    assert never < 0.5 * right < right < 0.5 * twice


def test_one_more_client_in_a_fixed_cohort_takes_the_place_of_another() -> None:
    """One client with -C; then another with C joins, and the cohort of one holds either. Plain noise z would claim too little."""

    def lost(epsilon: float) -> float:
        y = (epsilon + math.log(2)) / 2  # half N(-1, 1) and half N(1, 1), against N(-1, 1)
        return (ndtr(-1 - y) + ndtr(1 - y)) / 2 - math.exp(epsilon) * ndtr(-1 - y) if epsilon > 0 else 1.0

    delta = 1e-5
    assert lost(spend(everyone(1.0), 1, delta).epsilon) > 100 * delta
    assert lost(spend(fixed(1.0, 1, 2, "add-or-remove-one"), 1, delta).epsilon) <= delta


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_full_rate_is_no_sampling(adjacency: str) -> None:
    assert spend(poisson(3.0, 1.0, adjacency), 40, 1e-5) == spend(everyone(3.0, adjacency), 40, 1e-5)


def test_a_run_costs_its_rounds_and_not_one() -> None:
    """Trap 1: an engine that is made anew every round reports a round's epsilon for the whole run."""
    mechanism = poisson(2.2, 0.03)
    one, all_rounds = spend(mechanism, 1, 1e-5).epsilon, spend(mechanism, 60, 1e-5).epsilon
    assert all_rounds > 1.3 * one
    assert all_rounds == pytest.approx(PLDAccountant().compose(sampled(2.2, 0.03), 60).get_epsilon(1e-5), rel=1e-9)
    assert solve(mechanism, 60, 2.0, 1e-5) > 1.05 * solve(mechanism, 1, 2.0, 1e-5)  # and its mirror image


@pytest.mark.parametrize("sampling", ["shuffled", "epochs", "all", ""])
def test_no_amplification_by_shuffling(sampling: str) -> None:
    with pytest.raises(
        FedsimError, match=r"^sampling=.* use poisson or fixed, or none, which claims no amplification$"
    ):
        GaussianReleases(1.0, sampling, rate=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"rate": 0.0},
        {"rate": 1.1},
        {"adjacency": "replace-special"},
        {"sampling": "fixed"},
        {"sampling": "fixed", "population": 5, "cohort": 6},
    ],
)
def test_impossible_mechanisms_are_refused(wrong: dict[str, float | str | int]) -> None:
    with pytest.raises(FedsimError):
        replace(poisson(1.0, 0.1), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 2.0])
def test_delta_is_a_probability(delta: float) -> None:
    for count in (0, 5):
        with pytest.raises(FedsimError, match=r"privacy\.delta"):
            spend(everyone(1.0), count, delta)


noise = st.floats(2, 8)
rates = st.sampled_from([1e-3, 0.02, 0.3])
few = settings(max_examples=5, deadline=None, derandomize=True)


@few
@given(noise, rates, st.integers(1, 100), st.integers(1, 100))
def test_more_releases_cost_more(z: float, rate: float, count: int, more: int) -> None:
    first, last = epsilons_after(poisson(z, rate), [count, count + more], 1e-6)
    assert 0 < first < last


@few
@given(noise, st.floats(1.05, 3), rates, st.integers(1, 100))
def test_more_noise_costs_less(z: float, factor: float, rate: float, count: int) -> None:
    assert epsilons_after(poisson(z, rate), [count], 1e-6) > epsilons_after(poisson(z * factor, rate), [count], 1e-6)


@few
@given(noise, rates, st.integers(1, 100), st.floats(1e-9, 1e-6), st.floats(1.5, 100))
def test_a_larger_delta_costs_less(z: float, rate: float, count: int, delta: float, factor: float) -> None:
    mechanism = poisson(z, rate)
    assert epsilons_after(mechanism, [count], delta) > epsilons_after(mechanism, [count], delta * factor)


@few
@given(noise, rates, st.integers(1, 300), st.sampled_from([2, 5, 10, 20, 50]))
def test_a_wider_grid_never_gives_less(z: float, rate: float, count: int, width: int) -> None:
    """What a search on wide grids rests on: its noise is enough for the finest grid too."""
    events = poisson(z, rate).events(count)
    fine = pld_epsilon(events, "add-or-remove-one", 1e-5)
    assert pld_epsilon(events, "add-or-remove-one", 1e-5, width) >= fine * (1 - 1e-7)


SOLVED = [
    (poisson(1.0, 0.01), 60, 0.7, 1e-5),
    (poisson(1.0, 0.1), 2000, 2.0, 1e-6),
    (poisson(9.0, 0.02), 5, 0.5, 1e-3),
    (poisson(1.0, 1e-3), 1000, 0.1, 1e-6),
    (poisson(1.0, 0.02, "replace-one"), 60, 1.0, 1e-5),
    (everyone(1.0), 100, 0.5, 1e-5),
    (everyone(0.0, "replace-one"), 1, 30.0, 1e-5),
    (fixed(1.0, 10, 100), 50, 4.0, 1e-5),
    (fixed(1.0, 80, 100), 5, 1.0, 1e-5),
    (fixed(1.0, 8, 1000), 4, 0.11, 2.8e-8),  # by an order of RDP that a search on few does not try
]


@pytest.mark.parametrize(("mechanism", "count", "epsilon", "delta"), SOLVED)
def test_the_noise_solved_for_is_enough_and_hardly_more(
    mechanism: GaussianReleases, count: int, epsilon: float, delta: float
) -> None:
    z = solve(mechanism, count, epsilon, delta)
    found, less = (replace(mechanism, noise_multiplier=z * part) for part in (1, 0.999))
    assert 0.998 * epsilon < epsilons_after(found, [count], delta)[0] <= epsilon
    assert epsilons_after(less, [count], delta)[0] > epsilon
    most = affordable(found, epsilon, delta, 2 * count + 1)
    after = epsilons_after(found, [most, most + 1], delta)
    assert count <= most < 2 * count + 1
    assert after[0] <= epsilon < after[1]


def test_the_noise_of_many_classes_is_found_in_seconds() -> None:
    """Eight clients with examples of their own number: rates and steps differ."""
    cases = [(poisson(1.0, 32 / examples), 20 * (examples // 32)) for examples in range(100, 1700, 200)]
    started = time.process_time()
    noises = solve_many([*cases, cases[0]], 4.0, 1e-5)
    assert time.process_time() - started < 7
    assert len(noises) == 9 and noises[-1] == noises[0]
    assert noises[:8] == sorted(noises[:8], reverse=True)
    for (mechanism, count), z in list(zip(cases, noises, strict=False))[::3]:
        assert 0.998 * 4 < epsilons_after(replace(mechanism, noise_multiplier=z), [count], 1e-5)[0] <= 4


def test_limits_of_solving() -> None:
    assert solve(poisson(1.0, 0.1), 0, 1.0, 1e-5) == 0
    with pytest.raises(FedsimError, match=r"privacy\.epsilon=1e-12 is below what any noise can give"):
        solve(everyone(1.0), 10**6, 1e-12, 1e-12)
    with pytest.raises(FedsimError, match=r"privacy\.epsilon"):
        solve(everyone(1.0), 1, 0.0, 1e-5)
    assert affordable(everyone(0.0), 5.0, 1e-5, 10) == 0
    assert affordable(everyone(1.0), 5.0, 1e-5, 0) == 0


@dataclass(frozen=True)
class Tree:
    """Steps of one tree, each client once; composed over trees."""

    noise_multiplier: float
    steps: int
    adjacency: str = "zero-out"
    accountants: tuple[str, ...] = ("rdp",)

    def events(self, count: int) -> DpEvent:
        return SelfComposedDpEvent(SingleEpochTreeAggregationDpEvent(self.noise_multiplier, self.steps), count)


@dataclass(frozen=True)
class Concentrated:
    """zCDP, as discrete noise has it; the events are an unhashable list."""

    noise_multiplier: float
    adjacency: str = "replace-one"
    accountants: tuple[str, ...] = ("rdp",)

    def events(self, count: int) -> DpEvent:
        return ComposedDpEvent([ZCDpEvent(rho=2 / self.noise_multiplier**2)] * count)


@dataclass(frozen=True)
class Exact:
    """A closed form of its own, tighter than RDP."""

    noise_multiplier: float
    adjacency: str = "add-or-remove-one"
    accountants: tuple[str, ...] = ("rdp", "exact")

    def events(self, count: int) -> DpEvent:
        return SelfComposedDpEvent(GaussianDpEvent(self.noise_multiplier), count)

    def epsilon(self, count: int, delta: float) -> float:
        return by_gdp(math.sqrt(count) / self.noise_multiplier)(delta)


def test_other_mechanisms_are_accounted_by_what_they_name() -> None:
    tree = spend(Tree(4.0, 100), 3, 1e-5)
    assert tree.epsilon == pytest.approx(
        by_rdp(GaussianDpEvent(4.0 / math.sqrt(7)), 3)(1e-5), rel=1e-9
    )  # 7 nodes hold a step
    assert (tree.accountant, tree.by["pld"], tree.by["prv"]) == (as_text("rdp"), None, None)
    discrete = spend(Concentrated(10.0), 5, 1e-5)
    assert discrete.epsilon == pytest.approx(by_rdp(GaussianDpEvent(10.0 / 2), 5)(1e-5), rel=1e-9)
    exact = spend(Exact(5.0), 60, 1e-5)
    assert exact.epsilon == pytest.approx(by_gdp(math.sqrt(60) / 5)(1e-5), rel=1e-12)
    assert (
        exact.accountant == "exact, in closed form"
        and exact.by["rdp"] is not None
        and exact.by["exact"] == exact.epsilon
    )


@pytest.mark.parametrize("mechanism", [Tree(1.0, 100), Concentrated(1.0), Exact(1.0)])
def test_other_mechanisms_are_solved_for(mechanism: Tree | Concentrated | Exact) -> None:
    z = solve(mechanism, 3, 2.0, 1e-5)
    assert 0.998 * 2 < spend(replace(mechanism, noise_multiplier=z), 3, 1e-5).epsilon <= 2


def test_accountants_are_named_with_their_versions() -> None:
    from importlib.metadata import version

    assert as_text("pld") == f"PLD, dp-accounting {version('dp-accounting')}"
    assert as_text("rdp") == f"RDP, dp-accounting {version('dp-accounting')}"
    assert as_text("prv") == f"PRV, opacus {version('opacus')}"


def test_orders_left_out_are_not_warned_of_and_other_warnings_are() -> None:
    class Keep(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.said.append(record.getMessage())

    logger, keep = logging.getLogger("absl"), Keep()
    filters = list(logger.filters)
    logger.addHandler(keep)
    try:
        spend(poisson(2.0, 0.501), 7, 1e-5)
        assert keep.said == []
        by_rdp(sampled(2.0, 0.501), 7)(1e-5)
        assert any("_compute_log_a_frac failed" in said for said in keep.said)  # so there was something to silence
    finally:
        logger.removeHandler(keep)
    assert logger.filters == filters
