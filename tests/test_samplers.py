"""Laws of the cohort: who is drawn, how many, and how often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import parts, run_into, same_bits, tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.samplers import AllSampler, FixedSampler, PoissonSampler
from fedsim.types import FedsimError

SAMPLERS = st.one_of(
    st.builds(FixedSampler, cohort_size=st.integers(1, 20)),
    st.builds(FixedSampler, fraction=st.floats(0.001, 1)),
    st.builds(PoissonSampler, cohort_size=st.integers(1, 20)),
    st.builds(PoissonSampler, fraction=st.floats(0.001, 1)),
    st.builds(AllSampler),
)
LEVEL = 1e-6
"""Chance of a false alarm of a statistical test here; seeds are fixed, so what passes once passes always."""

pytestmark = pytest.mark.usefixtures("no_pictures")


@given(SAMPLERS, st.integers(0, 2**40), st.integers(1, 10**6), st.integers(20, 500))
def test_a_cohort_is_sorted_distinct_in_range_and_repeats(sampler, seed: int, round: int, num_clients: int) -> None:
    cohort = sampler.cohort(seed, round, num_clients)
    assert cohort.dtype == np.int64 and (np.diff(cohort) > 0).all()
    assert len(cohort) == 0 or (cohort[0] >= 0 and cohort[-1] < num_clients)
    assert np.array_equal(cohort, sampler.cohort(seed, round, num_clients))
    if sampler.kind == "all":
        assert np.array_equal(cohort, np.arange(num_clients))
    if sampler.kind == "fixed":
        wanted = sampler.cohort_size or sampler.fraction * num_clients
        assert len(cohort) == max(1, int(wanted + 0.5)) == sampler.expected_size(num_clients)


def test_the_default_cohort_is_ten_or_all() -> None:
    assert len(FixedSampler().cohort(0, 1, 100)) == 10 and len(FixedSampler().cohort(0, 1, 4)) == 4


@pytest.mark.parametrize("num_clients", [50, 1_000_000])
def test_poisson_sizes_are_binomial(num_clients: int) -> None:
    rounds, mean = 4000, 5
    sizes = np.array([len(PoissonSampler(cohort_size=mean).cohort(3, r, num_clients)) for r in range(rounds)])
    law = stats.binom(num_clients, mean / num_clients)
    z = stats.norm.isf(LEVEL / 2)
    assert abs(sizes.mean() - law.mean()) < z * law.std() / rounds**0.5
    fourth = law.stats(moments="k") + 3
    assert abs(sizes.var() - law.var()) < z * law.var() * ((fourth - 1) / rounds) ** 0.5
    assert sizes.min() == 0  # an empty cohort has a chance of 0.5% here, so 4,000 rounds have some


@pytest.mark.parametrize(
    "sampler", [FixedSampler(cohort_size=7), PoissonSampler(fraction=0.2)], ids=["fixed", "poisson"]
)
def test_every_client_is_drawn_alike(sampler) -> None:
    cohorts = [sampler.cohort(1, round, 35) for round in range(4000)]
    counts = np.bincount(np.concatenate(cohorts), minlength=35)
    assert stats.chisquare(counts).pvalue > LEVEL


@pytest.mark.parametrize(
    "sampler", [FixedSampler(cohort_size=7), PoissonSampler(fraction=0.2)], ids=["fixed", "poisson"]
)
def test_pairs_are_drawn_as_if_independent(sampler) -> None:
    """A sampler that drew runs of neighbours would pass the test of single clients."""
    together = np.zeros((35, 35))
    for round in range(4000):
        cohort = sampler.cohort(1, round, 35)
        together[np.ix_(cohort, cohort)] += 1
    assert stats.chisquare(together[np.triu_indices(35, 1)]).pvalue > LEVEL


def test_an_empty_round_keeps_the_arrays_and_still_writes_a_row(tmp_path: Path) -> None:
    overrides = ["sampler=poisson", "sampler.fraction=0.000001", "rounds=3", "strategy=fedadam"]
    made = parts(*overrides)
    before = {name: array.clone() for name, array in made.server.state.arrays.items()}
    made.server.run(made.grid())
    assert same_bits(before, made.server.state.arrays)
    summary = run_into(tmp_path, tiny(*overrides))
    table = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert table["cohort_size"] == [0, 0, 0] and table["bytes_up"] == [0, 0, 0] and table["train_loss"] == [None] * 3
    assert summary["accuracy"] is not None and summary["client_rounds_per_second"] in (0, None)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(FedsimError, match=r"sampler\.cohort_size=9 is larger"):
        FixedSampler(cohort_size=9).cohort(0, 1, 8)
    with pytest.raises(FedsimError, match="exclude each other"):
        PoissonSampler(cohort_size=2, fraction=0.5)
