"""Test, then train: figures of a stream against river and against hand values; hindsight against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.streams.distances import (
    class_stability_index,
    data_drift,
    discrepancy_test,
    index_of_counts,
    kolmogorov_smirnov,
    mean_discrepancy,
    stability_index,
    wasserstein,
)
from fedsim.streams.prequential import Prequential, in_order
from fedsim.streams.regret import average_forgetting, forgetting, judge_alarms, recoveries, regret
from fedsim.types import FedsimError

ONE = np.array([0])


def rounds_of(draw: np.random.Generator, sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(draw.exponential(size=n), (draw.random(n) < 0.7).astype(float)) for n in sizes]


def fed(prequential: Prequential, losses: np.ndarray, hits: np.ndarray | None) -> dict[str, float | int | None]:
    prequential.update(ONE, np.array([len(losses)]), losses, hits)
    return prequential.columns()


def test_one_clients_stream_is_as_river_has_it() -> None:
    river = pytest.importorskip("river")
    from river import metrics, stats as river_stats, utils  # noqa: I001

    draw = np.random.default_rng(0)
    ours, fading, seen = Prequential(0.97, 50), 0.97, 0
    accuracy, window = metrics.Accuracy(), utils.Rolling(metrics.Accuracy(), window_size=50)
    entropy, absolute = metrics.CrossEntropy(), metrics.MAE()
    faded, faded_absolute, errors = (
        river_stats.EWMean(1 - fading),
        river_stats.EWMean(1 - fading),
        Prequential(0.97, 50),
    )
    first = first_error = math.nan
    for size in (7, 1, 40, 0, 33, 90):
        chance = draw.dirichlet(np.ones(3), size)
        target, guess = draw.integers(3, size=size), chance.argmax(axis=1)
        hits = (target == guess).astype(float)
        losses, distances = -np.log(chance[np.arange(size), target]), np.abs(target - guess).astype(float)
        for i in range(size):
            accuracy.update(int(target[i]), int(guess[i]))
            window.update(int(target[i]), int(guess[i]))
            entropy.update(int(target[i]), dict(enumerate(chance[i].tolist())))
            absolute.update(float(target[i]), float(guess[i]))
            faded.update(hits[i])
            faded_absolute.update(distances[i])
            first, first_error = (hits[i], distances[i]) if seen + i == 0 else (first, first_error)
        seen += size
        told, of_errors = fed(ours, losses, hits), fed(errors, distances, None)
        assert told["cumulative_accuracy"] == pytest.approx(accuracy.get(), abs=1e-9)
        assert told["window_accuracy"] == pytest.approx(window.get(), abs=1e-9)
        assert told["cumulative_loss"] == pytest.approx(entropy.get(), abs=1e-9)
        assert of_errors["cumulative_loss"] == pytest.approx(absolute.get(), abs=1e-9)
        gone = fading**seen  # EWMean begins at its first example, ours at nothing
        assert told["prequential_accuracy"] == pytest.approx((faded.get() - gone * first) / (1 - gone), abs=1e-9)
        expected = (faded_absolute.get() - gone * first_error) / (1 - gone)
        assert of_errors["prequential_loss"] == pytest.approx(expected, abs=1e-9)
        assert of_errors["prequential_accuracy"] is None and of_errors["round_accuracy"] is None
    assert river.__version__


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=1, max_size=5),
    fading=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_many_clients_are_as_the_recursion_has_it(sizes: list[list[int]], fading: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    ours = Prequential(fading, 9)
    whole = [0.0, 0.0, 0.0]
    clients: dict[int, list[float]] = {}
    merged: list[tuple[float, float]] = []
    for counts in sizes:
        order = draw.permutation(4)
        losses, hits = draw.exponential(size=sum(counts)), draw.integers(2, size=sum(counts)).astype(float)
        ours.update(order, np.array(counts), losses, hits)
        ends = np.cumsum(counts)
        for place in np.argsort(order):
            for i in range(ends[place] - counts[place], ends[place]):
                own = clients.setdefault(int(order[place]), [0.0, 0.0, 0.0])
                for sums in (whole, own):
                    sums[:] = [1 + fading * sums[0], hits[i] + fading * sums[1], losses[i] + fading * sums[2]]
                merged.append((hits[i], losses[i]))
        told = ours.columns()
        assert told["arrived"] == sum(counts)
        if not merged:
            assert told["prequential_accuracy"] is None and told["window_loss"] is None
            continue
        assert told["prequential_accuracy"] == pytest.approx(whole[1] / whole[0], abs=1e-9)
        assert told["prequential_loss"] == pytest.approx(whole[2] / whole[0], abs=1e-9)
        assert told["window_accuracy"] == pytest.approx(np.mean([hit for hit, _ in merged[-9:]]))
        assert told["cumulative_loss"] == pytest.approx(np.mean([loss for _, loss in merged]))
    table = ours.client_columns()
    assert table["client"].tolist() == sorted(clients)
    for place, client in enumerate(table["client"].tolist()):
        count, right, lost = clients[client]
        assert table["prequential_accuracy"][place] == pytest.approx(right / count, abs=1e-9)
        assert table["prequential_loss"][place] == pytest.approx(lost / count, abs=1e-9)


def test_a_long_round_fades_without_harm_and_a_round_of_its_own_is_told() -> None:
    draw = np.random.default_rng(1)
    ours = Prequential(0.99, 1000)
    with np.errstate(all="raise", under="ignore"):
        fed(ours, draw.random(200_000), np.zeros(200_000))
        told = fed(ours, np.array([2.0, 4.0]), np.array([1.0, 0.0]))
    assert told["round_accuracy"] == 0.5 and told["round_loss"] == 3.0 and told["arrived"] == 2
    assert told["prequential_accuracy"] == pytest.approx(0.99 / 100)  # S = f * 1 + 0, N = 1 / (1 - f)
    assert fed(ours, np.empty(0), np.empty(0))["round_accuracy"] is None


def test_a_stream_goes_on_from_its_state_bit_by_bit() -> None:
    rounds = rounds_of(np.random.default_rng(2), [30, 50, 20, 44])
    clients = np.array([7, 3, 5])
    whole, half = Prequential(0.9, 25), Prequential(0.9, 25)
    for number, (losses, hits) in enumerate(rounds):
        shares = np.array([len(losses) - 1, 0, 1])
        if number == 2:
            state, half = half.state(), Prequential(0.9, 25)
            half.load_state(state)
        for one in (whole, half):
            one.update(clients, shares, losses, hits)
        assert whole.columns() == half.columns()
    for name, column in whole.client_columns().items():
        np.testing.assert_array_equal(column, half.client_columns()[name])
    with pytest.raises(FedsimError, match="start anew"):
        half.load_state({"total": np.zeros(5)})


def test_what_does_not_fit_is_refused() -> None:
    judged = in_order(np.array([5, 2, 9]), np.array([2, 1, 0]), np.array([1.0, 2.0, 3.0]))
    assert (
        judged.clients.tolist() == [2, 5] and judged.starts.tolist() == [0, 1] and judged.rows[0].tolist() == [3, 1, 2]
    )
    for clients, counts in (([1, 1], [1, 2]), ([1, 2], [1, 1]), ([1], [1, 2])):
        with pytest.raises(ValueError, match="do not fit"):
            in_order(np.array(clients), np.array(counts), np.zeros(3))
    for fading, window in ((0.0, 10), (1.1, 10), (0.9, 0)):
        with pytest.raises(FedsimError, match="evaluation"):
            Prequential(fading, window)


def test_regret_of_online_least_squares_is_against_the_closed_form() -> None:
    draw = np.random.default_rng(3)
    x, played, weights = draw.normal(size=(60, 8, 3)), [], np.zeros(3)  # (rounds, examples, features)
    y = x @ np.array([1.0, -2.0, 0.5]) + draw.normal(size=(60, 8))

    def losses_of(w: np.ndarray) -> np.ndarray:
        return ((x @ w - y) ** 2).sum(axis=1)

    for one, target in zip(x, y, strict=True):
        played.append(((one @ weights - target) ** 2).sum())
        weights = weights - 0.02 * 2 * one.T @ (one @ weights - target)
    flat = x.reshape(-1, 3)
    best, left, *_ = np.linalg.lstsq(flat, y.reshape(-1), rcond=None)
    found = regret(np.array(played), {"offline": best, "final": weights, "zero": np.zeros(3)}, losses_of)
    assert found.best == "offline"
    assert found.series[-1] == pytest.approx(sum(played) - left[0], abs=1e-8)
    smallest = np.minimum.reduce([np.cumsum(losses_of(w)) for w in (best, weights, np.zeros(3))])
    np.testing.assert_allclose(found.series, np.cumsum(played) - smallest)
    with pytest.raises(ValueError, match="needs a loss for each"):
        regret(np.zeros(3), {"final": weights}, losses_of)


def test_recovery_after_drifts_is_as_its_definition_says() -> None:
    accuracy = np.array([0.5, 0.9, 0.9, 0.2, 0.4, 0.95, 0.95, 0.95, 0.3, 0.3, 0.93, 0.93])
    first, second, third = recoveries(accuracy, [9, 4, 11], tolerance=0.05, smoothing=2)
    assert (first.round, first.level, first.lowest) == (4, pytest.approx(0.9), pytest.approx(0.2))
    assert first.rounds == 3  # means of two: 0.2, 0.3, 0.675, 0.95
    assert second.rounds is None and second.level == pytest.approx(0.95)  # the next drift comes first
    assert third.rounds == 0 and third.level == pytest.approx(0.3)  # it never fell
    assert recoveries(accuracy, [1])[0].rounds is None
    gaps = np.array([np.nan, 0.8, np.nan, 0.1, np.nan, np.nan, 0.8])
    assert recoveries(gaps, [4], smoothing=2)[0].rounds == 3


def test_a_gradual_drift_is_recovered_from_after_it_was_felt() -> None:
    accuracy = np.r_[np.full(10, 0.9), np.linspace(0.9, 0.5, 9), np.full(5, 0.9)]
    assert recoveries(accuracy, [11], tolerance=0.02, smoothing=1)[0].rounds == 9


def test_forgetting_by_hand() -> None:
    accuracy = np.array([[0.9, np.nan], [0.6, 0.8], [0.95, 0.3], [0.7, 0.5]])
    expected = np.array([[np.nan, np.nan], [0.3, np.nan], [-0.05, 0.5], [0.25, 0.3]])
    np.testing.assert_allclose(forgetting(accuracy), expected)
    np.testing.assert_allclose(average_forgetting(accuracy, [0, 1, 0, 1]), [np.nan, 0.3, 0.5, 0.25])


def test_alarms_against_the_truth() -> None:
    told = judge_alarms([3, 21, 22, 30, 46], [20, 40, 45], within=5)
    assert told.delays == [1, None, 1] and told.false == 2


def test_stability_index_by_hand_and_as_a_divergence() -> None:
    p, q = np.array([50.5, 30.5, 20.5]) / 101.5, np.array([20.5, 40.5, 40.5]) / 101.5
    by_hand = stats.entropy(p, q) + stats.entropy(q, p)
    counts = np.array([50, 30, 20]), np.array([20, 40, 40])
    assert index_of_counts(*counts) == pytest.approx(by_hand, abs=1e-12)
    labels = [np.repeat(np.arange(3), one) for one in counts]
    assert class_stability_index(*labels, 3) == pytest.approx(by_hand)
    assert stability_index(labels[0], labels[1])[0] == pytest.approx(
        index_of_counts(*(np.append(c, 0) for c in counts))
    )


def test_stability_index_of_shifted_normals_comes_near_the_closed_form() -> None:
    draw = np.random.default_rng(4)
    old, new = draw.normal(size=(40_000, 2)), draw.normal(size=(40_000, 2))
    new[:, 1] += 0.5
    edges = np.r_[-np.inf, stats.norm.ppf(np.arange(1, 10) / 10), np.inf]
    q = np.diff(stats.norm.cdf(edges - 0.5))
    assert stability_index(old, new) == pytest.approx([0.0, ((q - 0.1) * np.log(q / 0.1)).sum()], abs=0.01)
    constant = stability_index(np.zeros(100), np.r_[np.zeros(50), np.full(50, -1.0)])
    assert constant[0] > 1 and stability_index(np.zeros(100), np.zeros(100))[0] == 0


def test_wasserstein_against_closed_forms() -> None:
    draw = np.random.default_rng(5)
    old, new = draw.normal(size=(500, 2)), draw.exponential(size=(500, 2))
    sorted_gap = np.abs(np.sort(old, axis=0) - np.sort(new, axis=0)).mean(axis=0)
    np.testing.assert_allclose(wasserstein(old, new, scaled=False), sorted_gap)
    np.testing.assert_allclose(wasserstein(old, old + 3.0), 3.0 / old.std(axis=0))
    assert wasserstein(np.zeros(4), np.ones(4)) == pytest.approx([1.0])
    assert data_drift(old, new)["wasserstein"] == pytest.approx(sorted_gap / old.std(axis=0))


def test_kolmogorov_smirnov_is_scipys_worst_feature_with_bonferroni() -> None:
    draw = np.random.default_rng(6)
    old = np.column_stack([draw.normal(size=40), draw.integers(3, size=40), draw.normal(size=40)])
    new = np.column_stack([draw.normal(size=25), draw.integers(3, size=25), draw.normal(1.0, 1.0, size=25)])
    each = [stats.ks_2samp(old[:, j], new[:, j], method="exact") for j in range(3)]
    statistics, pvalue = kolmogorov_smirnov(old, new)
    np.testing.assert_allclose(statistics, [one.statistic for one in each])
    assert pvalue == pytest.approx(min(1.0, 3 * min(one.pvalue for one in each)))


def test_mean_discrepancy_by_hand_and_its_test_holds_its_level() -> None:
    # distances 0, 1, 1: the width squared is 1, so k(0, 1) = exp(-1/2), and MMD^2 = 1 + 1 - 2 exp(-1/2)
    assert mean_discrepancy(np.array([0.0, 0.0]), np.array([1.0])) == pytest.approx(2 - 2 * math.exp(-0.5))
    draw = np.random.default_rng(7)
    rejected = [discrepancy_test(draw.normal(size=20), draw.normal(size=15), 0.1, draw) for _ in range(300)]
    assert stats.binomtest(sum(rejected), 300, 0.1).pvalue > 1e-4
    assert discrepancy_test(
        draw.normal(size=(40, 2)), draw.normal(size=(40, 2)) * 4, 0.001, draw
    )  # means alike, spread not
