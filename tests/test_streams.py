"""Streams: what comes when, against the laws of scipy and counts by hand; every answer the same whoever asks, and when."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.partition import Partition
from fedsim.data.population import Population
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.streams import memory, order, stream
from fedsim.streams.account import describe, warnings
from fedsim.streams.arrivals import Arrivals, Bursts, DayNight, Poisson, Steady, Unstreamed
from fedsim.streams.poisson import poisson_quantile
from fedsim.streams.population import StreamedPopulation
from fedsim.streams.schedules import Undrifted
from fedsim.streams.stream import NEVER, Stream
from fedsim.types import FedsimError

LEVEL = 1e-6  # seeds are fixed: a test that passes keeps passing

KINDS: dict[str, Arrivals] = {
    "steady": Steady(rate=2.3, spread=0.5, join=4),
    "poisson": Poisson(rate=3, spread=1.0),
    "bursts": Bursts(rate=4, burst_chance=0.2, burst_size=15, start=3),
    "day and night": DayNight(rate=5, period=6, depth=1, join=7),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def begun(arrivals: Arrivals, clients: int = 30, rows: int = 10**6, seed: int = 0) -> Stream:
    return Stream(arrivals, seed, np.full(clients, rows))


def assert_law(counts: Any, chances: Any) -> None:
    """Chi-square: so many of each kind as the chances say."""
    counts, chances = np.asarray(counts, float), np.asarray(chances, float)
    assert counts.sum() > 0 and chances.sum() == pytest.approx(1)
    assert stats.chisquare(counts, chances * counts.sum()).pvalue > LEVEL, (counts, chances * counts.sum())


def assert_numbers(drawn: np.ndarray, chance_of: Any, most: int) -> None:
    """Whole numbers follow a law; those from `most` on are taken together."""
    chances = np.array([chance_of(k) for k in range(most)])
    counts = np.bincount(np.minimum(drawn, most), minlength=most + 1)
    assert_law(counts, [*chances, 1 - chances.sum()])


# How many come


@pytest.mark.parametrize("mean", [0.0, 1e-9, 0.3, 5.0, 31.9, 32.0, 32.1, 100.0, 1e4, 1e6])
def test_poisson_numbers_are_scipys(mean: float) -> None:
    draws = np.concatenate([np.random.default_rng(0).random(300), [2.0**-54, 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53]])
    found = poisson_quantile(draws, np.full(len(draws), mean))
    expected = np.maximum(stats.poisson.ppf(draws, mean), 0) if mean else np.zeros(len(draws))
    far = draws > 1 - 1e-12  # there the two sum the tail by different roundings
    np.testing.assert_array_equal(found[~far], expected[~far])
    assert (np.abs(found[far] - expected[far]) <= 1 + mean / 100).all()


def test_each_number_has_its_own_mean() -> None:
    means, draws = np.array([0.5, 40.0, 3.0, 0.0, 500.0]), np.full(5, 0.7)
    assert poisson_quantile(draws, means).tolist() == [1, 43, 4, 0, 512]  # scipy.stats.poisson.ppf(0.7, means)


def test_poisson_arrivals_follow_their_law_in_every_round() -> None:
    made = begun(Poisson(rate=3), clients=20_000)
    first, second = (made.counts(round) - made.counts(round - 1) for round in (1, 7))
    for drawn in (first, second):
        assert_numbers(drawn, lambda k: stats.poisson.pmf(k, 3), 9)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04  # five deviations
    assert_numbers(made.counts(4), lambda k: stats.poisson.pmf(k, 12), 22)


def test_bursts_are_a_mixture_with_the_stated_mean() -> None:
    chance, size = 0.2, 6.0
    base = 3 / (1 - chance + chance * size)
    drawn = begun(Bursts(rate=3, burst_chance=chance, burst_size=size), clients=20_000).counts(1)

    def law(k: int) -> float:
        return float((1 - chance) * stats.poisson.pmf(k, base) + chance * stats.poisson.pmf(k, base * size))

    assert sum(k * law(k) for k in range(200)) == pytest.approx(3)
    assert_numbers(drawn, law, 15)


def test_day_and_night_follow_the_sine_and_zones_even_it_out() -> None:
    for round in (3, 9):
        drawn = begun(DayNight(rate=4, period=12, depth=0.5, zones=0), clients=10_000)
        drawn = drawn.counts(round) - drawn.counts(round - 1)
        mean = 4 * (1 + 0.5 * math.sin(2 * math.pi * round / 12))
        assert_numbers(drawn, lambda k, mean=mean: stats.poisson.pmf(k, mean), 12)
    spread = begun(DayNight(rate=4, period=12, depth=0.5), clients=40_000)
    for round in (3, 9):
        drawn = spread.counts(round) - spread.counts(round - 1)
        assert abs(drawn.mean() - 4) < 5 * math.sqrt((4 + (4 * 0.5) ** 2 / 2) / 40_000)


@pytest.mark.parametrize("rate", [5.0, 0.3, 2.75])
def test_steady_is_the_rate_to_within_one(rate: float) -> None:
    made = begun(Steady(rate=rate), clients=500)
    for round in (1, 2, 10, 37):
        counts = made.counts(round)
        assert (np.abs(counts - rate * round) < 1).all()
        assert counts.mean() == pytest.approx(rate * round, abs=0.1)
    if rate == 5:
        assert (np.diff(made.course(3, 20)) == 5).all()


def test_rates_are_lognormal_with_the_stated_mean() -> None:
    rates = Poisson(rate=7, spread=0.8).rates(0, 20_000)
    assert stats.kstest((np.log(rates) - math.log(7) + 0.8**2 / 2) / 0.8, "norm").pvalue > LEVEL
    assert rates.mean() == pytest.approx(7, rel=0.05)


def test_clients_join_evenly_and_nothing_comes_before() -> None:
    made = begun(Steady(rate=2, start=3, join=4), clients=10_000)
    assert_law(np.bincount(made.starts)[3:], [1 / 5] * 5)
    for round in range(1, 9):
        np.testing.assert_array_equal(made.counts(round) > 0, made.starts <= round)
    late = int(np.argmax(made.starts))
    assert made.course(late, 9).tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 4, 6]


# The same whoever asks


@every_kind
def test_one_client_in_all_rounds_agrees_with_all_clients_in_one_round(kind: str) -> None:
    counts = np.stack([begun(KINDS[kind], rows=40).counts(round) for round in range(13)])
    for client in (0, 7, 29):
        np.testing.assert_array_equal(begun(KINDS[kind], rows=40).course(client, 12), counts[:, client])
        fresh = begun(KINDS[kind], rows=40)
        for round in (12, 3, 5):
            expected = np.arange(counts[round - 1, client], counts[round, client])
            np.testing.assert_array_equal(fresh.arriving(client, round), expected)
            assert (fresh.came(client, expected) == round).all()


@every_kind
def test_answers_do_not_depend_on_what_was_asked_before(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = type(KINDS[kind])(rate=2, label_delay=2, label_delay_kind="geometric", label_missing=0.2, memory="reservoir")
    rounds = list(range(15))
    forwards = begun(form)
    expected = [
        (forwards.counts(r), forwards.label_counts(r), forwards.can_train(r), forwards.held(4, r)) for r in rounds
    ]
    monkeypatch.setattr(stream, "KEPT_BYTES", 0)  # next to nothing is kept
    asked = pickle.loads(pickle.dumps(forwards))  # noqa: S301
    for round in [14, 2, 3, 9, 1, 0, 13, 13]:
        found = (asked.counts(round), asked.label_counts(round), asked.can_train(round), asked.held(4, round))
        for one, other in zip(found, expected[round], strict=True):
            np.testing.assert_array_equal(one, other)


def test_seeds_and_clients_differ() -> None:
    one, other = (begun(Poisson(), seed=seed).counts(20) for seed in (0, 1))
    assert (one != other).mean() > 0.8 and len(set(one.tolist())) > 10


# Rows that are used up


def test_rows_are_used_up_or_start_over() -> None:
    sizes = np.array([7, 0, 100])
    once, again = (Stream(Steady(rate=3, repeat=repeat), 0, sizes) for repeat in (False, True))
    assert [once.counts(r).tolist() for r in (0, 2, 3, 4)] == [[0, 0, 0], [6, 0, 6], [7, 0, 9], [7, 0, 12]]
    assert [once.exhausted(r).tolist() for r in (2, 3)] == [[False, True, False], [True, True, False]]
    assert once.arriving(0, 3).tolist() == [6] and once.arriving(0, 4).tolist() == []
    assert again.counts(4).tolist() == [12, 0, 12] and not again.exhausted(9).any()
    assert once.came(0, np.array([0, 6, 7])).tolist() == [1, 3, NEVER]
    assert again.came(0, np.array([8, 3000])).tolist() == [3, 1001] and again.came(1, np.array([0])).tolist() == [NEVER]


# Labels


def test_labels_come_late_or_never() -> None:
    positions = np.arange(20_000)
    fixed = begun(Steady(rate=1000, label_delay=3))
    assert (fixed.labelled(2, positions) == fixed.came(2, positions) + 3).all()
    drawn = begun(Steady(rate=1000, label_delay=1.5, label_delay_kind="geometric", label_missing=0.25))
    known = drawn.labelled(2, positions)
    missing = known == NEVER
    assert stats.binomtest(int(missing.sum()), len(known), 0.25).pvalue > LEVEL
    delays = (known - drawn.came(2, positions))[~missing]
    assert_numbers(delays, lambda k: 0.4 * 0.6**k, 12)


@pytest.mark.parametrize("form", ["all", "window", "reservoir", "decayed", "once"])
@pytest.mark.parametrize("labels", [{}, {"label_delay": 2}, {"label_delay": 1.5, "label_missing": 0.6}])
def test_who_can_train_is_who_holds_something(form: str, labels: dict[str, Any]) -> None:
    kind = "geometric" if "label_missing" in labels else "fixed"
    made = begun(Poisson(rate=0.5, memory=form, memory_size=2, label_delay_kind=kind, **labels))
    for round in (1, 2, 5, 9):
        assert made.can_train(round).tolist() == [len(made.held(client, round)) > 0 for client in range(30)]
        for client in range(30):
            known = made.labelled(client, np.arange(made.counts(round)[client]))
            assert made.label_counts(round)[client] == (known <= round).sum()


# Memory


def test_memory_holds_what_it_should_by_hand() -> None:
    def held(form: str, round: int, **keys: Any) -> list[int]:
        return begun(Steady(rate=3, memory=form, memory_size=4, **keys)).held(0, round).tolist()

    assert held("all", 3) == list(range(9)) and held("all", 3, label_delay=1) == list(range(6))
    assert held("window", 3) == [5, 6, 7, 8] and held("window", 1) == [0, 1, 2]
    assert held("window", 3, label_delay=1) == [2, 3, 4, 5]  # those that wait for their label take no place
    assert held("once", 3) == [6, 7, 8] and held("once", 3, label_delay=2) == [0, 1, 2] and held("once", 0) == []
    assert len(held("reservoir", 30)) == len(held("decayed", 30)) == 4


@pytest.mark.parametrize("form", ["reservoir", "decayed"])
def test_what_has_left_memory_stays_out(form: str) -> None:
    made = begun(Poisson(rate=4, memory=form, memory_size=6, half_life=2))
    for client, round in itertools.product(range(5), range(1, 25)):
        before, now = (set(made.held(client, r).tolist()) for r in (round - 1, round))
        assert now <= before | set(made.arriving(client, round).tolist())


def test_a_reservoir_is_any_subset_alike() -> None:
    made = begun(Steady(rate=1, memory="reservoir", memory_size=2), clients=6000)
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for client in range(6000):
        counts[tuple(made.held(client, 5).tolist())] += 1
    assert_law(list(counts.values()), [1 / 10] * 10)


def test_a_decayed_memory_is_drawn_one_after_the_other_by_weight() -> None:
    made = begun(Steady(rate=1, memory="decayed", memory_size=2, half_life=1.5), clients=6000)
    counts = dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for client in range(6000):
        counts[tuple(made.held(client, 4).tolist())] += 1
    weight = [2 ** -((4 - came) / 1.5) for came in (1, 2, 3, 4)]
    share = [w / sum(weight) for w in weight]
    chances = [share[i] * share[j] / (1 - share[i]) + share[j] * share[i] / (1 - share[j]) for i, j in counts]
    assert_law(list(counts.values()), chances)


def test_a_decayed_memory_does_not_overflow_after_many_half_lives() -> None:
    positions = np.arange(5000)
    draws = memory.priorities(0, 3, positions)
    kept = memory.decayed(positions, positions, draws, 10, 0.01)
    assert kept.tolist() == list(range(4990, 5000))  # a half-life of a hundredth of a round is a window


# Orders


def test_orders_by_time_and_by_chance() -> None:
    assert order.by_time(np.array([5, 3, 5, 1, 3])).tolist() == [3, 1, 4, 0, 2]
    orders = dict.fromkeys(itertools.permutations(range(3)), 0)
    for client in range(6000):
        orders[tuple(order.at_random(0, client, 3).tolist())] += 1
    assert_law(list(orders.values()), [1 / 6] * 6)


def test_times_that_go_back_are_counted_within_clients() -> None:
    time = np.array([3, 1, 2, 0, 0, 5, 4])
    assert order.backwards(time, np.array([0, 3, 3, 5, 7])) == 2  # 3 to 1, and 5 to 4; 2 to 0 is between clients
    assert order.backwards(time[:0], np.array([0, 0])) == 0


@pytest.mark.parametrize(
    ("time", "word"),
    [
        (None, "no time"),
        (np.array([1.0, np.nan]), "NaN"),
        (np.array(["2020-01-01", "NaT"], "datetime64[D]"), "NaN"),
    ],
)
def test_time_that_is_not_there_is_refused(time: np.ndarray | None, word: str) -> None:
    with pytest.raises(FedsimError, match=f"{word}.*streams.order=random"):
        order.require_time(time, "tiny")


# The account


def test_the_account_counts_what_a_loop_counts() -> None:
    sizes = np.array([0, 3, 10, 200, 200, 50])
    keys: dict[str, Any] = {"label_delay": 2.5, "label_delay_kind": "geometric", "label_missing": 0.3, "join": 15}
    made, rounds = Stream(Poisson(rate=2, spread=1, **keys), 3, sizes), 12
    known = missing = late = 0
    for client in range(6):
        when = made.labelled(client, np.arange(made.course(client, rounds)[-1]))
        known, missing = known + int((when <= rounds).sum()), missing + int((when == NEVER).sum())
        late += int(((when > rounds) & (when != NEVER)).sum())
    counts = made.counts(rounds)
    assert missing > 0 and late > 0
    assert describe(made, rounds) == {
        "examples_arrived": int(counts.sum()),
        "labels_known": known,
        "labels_missing": missing,
        "labels_late": late,
        "examples_unused": int((sizes - counts).sum()),
        "clients_without_examples": int((counts == 0).sum()),
        "clients_exhausted": sum(bool(made.counts(rounds - 1)[i] == sizes[i]) for i in range(1, 6)),
    }


def test_warnings_say_what_is_amiss() -> None:
    fine = begun(Steady(rate=3))
    assert warnings(fine, 20) == []
    (short,) = warnings(begun(Steady(rate=3), rows=30), 20)
    assert short.startswith("the rows of 30 of 30 clients") and "streams.repeat=true" in short
    assert warnings(begun(Steady(rate=3), rows=60), 20) == []  # used up in the very last round
    (idle,) = warnings(begun(Steady(rate=3, start=30)), 20)
    assert "nothing ever comes to 30 of 30 clients" in idle
    (mute,) = warnings(begun(Steady(rate=3, label_delay=20)), 20)
    assert "streams.label_delay" in mute


# The population


def dataset(time: np.ndarray | None = None, rows: int = 60) -> Dataset:
    """Inputs that say which row they are of."""
    x = torch.arange(rows, dtype=torch.float32)[:, None]
    y = torch.arange(rows) % 3
    return Dataset("tiny", Examples(x, y, time=time), Examples(x, y), "classification", ("a", "b", "c"))


def streamed(arrivals: Arrivals, time: np.ndarray | None = None, noise: float = 0.0) -> StreamedPopulation:
    partition = Partition(np.array([0, 30, 60]), np.arange(60))
    rest = (dataset(time), partition, Corruption(label_noise=noise), 0.2, 0)
    return StreamedPopulation(*rest, arrivals=arrivals, schedule=Undrifted())


def rows_of(data: Any) -> list[int]:
    return [int(row) for row in data.x[:, 0].tolist()]


def test_every_training_row_comes_once_and_no_held_out_row_does() -> None:
    made = streamed(Poisson(rate=4, memory="all"))
    for client in (0, 1):
        came = [row for round in range(1, 30) for row in rows_of(made.arriving_data(client, round))]
        assert sorted(came) == made.rows(client)[0].tolist() and came != sorted(came)
        assert rows_of(made.training_data(client, 29)) == came
        assert rows_of(made.training_data(client, 3)) == came[: made.stream.counts(3)[client]]
        assert not set(came) & set(rows_of(made.holdout_data(client)))


def test_rows_come_in_the_order_of_time_and_then_start_over() -> None:
    time = np.random.default_rng(0).integers(0, 20, 60)
    made = streamed(Steady(rate=4, order="time", repeat=True, memory="all"), time)
    own = made.rows(1)[0]
    expected = [int(row) for _, row in sorted((time[row], row) for row in own)]
    assert rows_of(made.training_data(1, 12)) == (expected * 2)[:48]
    assert made.describe(12)["rows_back_in_time"] == sum(
        bool(time[i] < time[i - 1]) for client in (range(1, 30), range(31, 60)) for i in client
    )
    with pytest.raises(FedsimError, match=r"streams\.order=random"):
        streamed(Steady(order="time"))


def test_rows_are_spoilt_as_they_are_without_a_stream() -> None:
    made = streamed(Steady(rate=30, memory="all"), noise=0.5)
    still = Population(made.dataset, made.partition, made.corruption, 0.2, 0)
    whole, came = still.training_data(1), made.training_data(1, 1)
    labels = dict(zip(rows_of(whole), whole.y.tolist(), strict=True))
    assert [labels[row] for row in rows_of(came)] == came.y.tolist() and rows_of(whole) != rows_of(came)


def test_another_process_sees_the_same_and_nobody_holds_anything_before() -> None:
    made = streamed(Bursts(rate=3, memory="reservoir", memory_size=5, label_delay=1))
    made.arriving_data(0, 7)
    other = pickle.loads(pickle.dumps(made))  # noqa: S301
    for round in (9, 2):
        one, two = made.training_data(1, round), other.training_data(1, round)
        assert torch.equal(one.x, two.x) and torch.equal(one.y, two.y)
        np.testing.assert_array_equal(made.arrived(round), [len(made.arriving_data(c, round).x) for c in (0, 1)])
        assert made.has_data(round).tolist() == [len(made.training_data(c, round).x) > 0 for c in (0, 1)]
    empty = made.training_data(0, 1)
    assert empty.x.shape == (0, 1) and empty.y.shape == (0,) and not made.has_data(1).any()


# Keys


@pytest.mark.parametrize(
    "keys",
    [
        {"rate": 0},
        {"rate": "many"},
        {"spread": -1},
        {"order": "label"},
        {"memory": "none"},
        {"memory_size": 0},
        {"half_life": 0},
        {"label_delay": -1},
        {"label_delay": 1.5},
        {"label_delay_kind": "normal"},
        {"label_missing": 1.1},
        {"start": 0},
        {"join": -1},
        {"repeat": 1},
        {"burst_chance": 2},
        {"burst_size": 0.5},
    ],
)
def test_impossible_keys_are_refused_by_name(keys: dict[str, Any]) -> None:
    with pytest.raises(FedsimError, match=rf"streams\.{next(iter(keys))}"):
        Bursts(**keys)


def test_a_day_has_a_length_and_a_depth() -> None:
    wrong: list[dict[str, Any]] = [{"period": 0}, {"depth": 1.5}, {"zones": -0.1}]
    for keys in wrong:
        with pytest.raises(FedsimError, match=rf"streams\.{next(iter(keys))}"):
            DayNight(**keys)


def test_the_files_make_their_parts() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf_dir() / "streams").glob("*.yaml")}
    made = {name: type(make(keys, "streams")) for name, keys in files.items()}
    assert made == {
        "none": Unstreamed,
        "steady": Steady,
        "poisson": Poisson,
        "bursts": Bursts,
        "day_night": DayNight,
    }
