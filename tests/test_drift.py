"""Drift: schedules by hand, shifts against torch, scipy and closed forms, and examples moved alike whoever asks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage, stats

from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.partition import Partition
from fedsim.make import make
from fedsim.paths import conf_dir
from fedsim.streams import order
from fedsim.streams.arrivals import Poisson, Steady, Unstreamed
from fedsim.streams.drift import Drift
from fedsim.streams.population import StreamedPopulation, check_streams
from fedsim.streams.schedules import Gradual, Incremental, Recurring, Schedule, Sudden, Undrifted
from fedsim.streams.shifts import KINDS
from fedsim.streams.stream import NEVER
from fedsim.types import FedsimError

LEVEL = 1e-6  # seeds are fixed: a test that passes keeps passing
CLIENTS = 40
NAMES = ("a", "b", "c", "d", "e")


def tabular(task: Any = "classification", rows: int = 50, shape: tuple[int, ...] = (3,)) -> Dataset:
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))
    y: Any = torch.arange(rows) % 5
    if task == "regression":
        y = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    return Dataset("tiny", Examples(x, y), Examples(x, y), task, () if task == "regression" else NAMES)


def text() -> Dataset:
    symbols = torch.arange(80).reshape(10, 8) % 5
    return Dataset("text", Examples(symbols, symbols), Examples(symbols, symbols), "next_token", NAMES)


def drift(schedule: Schedule | Undrifted, data: Dataset | None = None, clients: int = CLIENTS) -> Drift:
    return Drift(schedule, data or tabular(), 0, clients)


def moved(made: Drift, x: Any, y: Any, amount: float = 1.0, client: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return made.apply(x, y, np.full(len(x), amount), client, np.arange(len(x)))


def assert_law(counts: Any, chances: Any) -> None:
    counts, chances = np.asarray(counts, float), np.asarray(chances, float)
    assert counts.sum() > 0 and chances.sum() == pytest.approx(1)
    assert stats.chisquare(counts, chances * counts.sum()).pvalue > LEVEL, (counts, chances * counts.sum())


def assert_rate(hits: torch.Tensor, rate: float) -> None:
    assert stats.binomtest(int(hits.sum()), hits.numel(), rate).pvalue > LEVEL, (hits.double().mean(), rate)


# When, and for whom


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Sudden(at=4), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Gradual(at=4, width=4), [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Incremental(at=2, width=2), [0, 0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Recurring(at=4, period=3), [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]),
        (Recurring(at=[4, 7, 10]), [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]),
        (Recurring(at=[2, 9]), [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
        (Undrifted(), [0] * 12),
    ],
)
def test_amounts_follow_the_schedule(schedule: Any, expected: list[float]) -> None:
    made = drift(schedule)
    assert made.amount(np.full(12, 5), np.arange(1, 13)).tolist() == expected
    assert made.amount(np.arange(CLIENTS), 5).tolist() == [expected[4]] * CLIENTS


@pytest.mark.parametrize(("share", "count"), [(0.25, 10), (0.001, 1), (0.0, 0), (1.0, 40)])
def test_a_group_is_the_first_and_a_few_are_any(share: float, count: int) -> None:
    group, few = (drift(Sudden(at=2, who=who, share=share)).amount(np.arange(CLIENTS), 2) for who in ("group", "few"))
    assert group.tolist() == [1.0] * count + [0.0] * (CLIENTS - count)
    assert few.sum() == count and (few.tolist() != group.tolist()) == (0 < count < CLIENTS)


def test_any_client_is_as_likely_as_another_among_a_few() -> None:
    hits = sum(
        Drift(Sudden(who="few", share=0.3), tabular(), seed, 10).amount(np.arange(10), 99) for seed in range(500)
    )
    assert_law(hits, [0.1] * 10)


def test_staggered_clients_drift_one_after_the_other() -> None:
    made = drift(Sudden(at=5, who="staggered", stagger=3), clients=8000)
    assert_law(np.bincount(made.starts)[5:], [0.25] * 4)
    for round in range(3, 11):
        np.testing.assert_array_equal(made.amount(np.arange(8000), round) == 1, made.starts <= round)
    late = drift(Recurring(at=5, period=4, who="staggered", stagger=3), clients=50)
    for client in range(50):
        turned = late.starts[client] + np.array([-1, 0, 3, 4, 7, 8])
        assert late.amount(np.full(6, client), turned).tolist() == [0, 1, 1, 0, 0, 1]


def test_the_truth_says_what_happens_when_and_to_whom() -> None:
    (event,) = drift(Gradual(at=7, width=5, classes=[0, 3], who="few", share=0.25)).truth(30)
    assert (event["round"], event["until"], event["towards"]) == (7, 12, "new")
    assert (event["form"], event["kind"], event["strength"]) == ("gradual", "label_swap", 1.0)
    assert (event["who"], event["clients"], event["becomes"]) == ("few", 10, {"a": "d", "d": "a"})
    turns = drift(Recurring(at=5, period=10, kind="noise")).truth(26)
    assert [(turn["round"], turn["towards"]) for turn in turns] == [(5, "new"), (15, "old"), (25, "new")]
    assert [turn["round"] for turn in drift(Recurring(at=[3, 9, 20])).truth(10)] == [3, 9]
    staggered = drift(Sudden(at=5, who="staggered", stagger=3))
    (event,) = staggered.truth(30)
    assert (event["round"], event["until"]) == (staggered.starts.min(), staggered.starts.max())
    for nothing in (Undrifted(), Sudden(at=31), Sudden(who="few", share=0.0)):
        assert drift(nothing).truth(30) == []
    assert set(drift(Sudden(at=31)).starts) == {31} and set(drift(Undrifted()).starts) == {NEVER}
    assert drift(Sudden()).concepts == (0.0, 1.0) and drift(Undrifted()).concepts == (0.0,)


# What: labels


def test_classes_change_places() -> None:
    x, y = torch.zeros(10, 3), torch.arange(10) % 5
    same_x, swapped = moved(drift(Sudden(classes=[1, 4])), x, y)
    assert same_x is x and swapped.tolist() == [0, 4, 2, 3, 1] * 2 and y.tolist() == [0, 1, 2, 3, 4] * 2
    assert moved(drift(Sudden(classes=[0, 1, 2])), x, y)[1].tolist() == [1, 2, 0, 3, 4] * 2
    everybody = moved(drift(Sudden()), x, y)[1][:5]
    assert sorted(everybody.tolist()) == [0, 1, 2, 3, 4] and (everybody != y[:5]).all()


def test_a_gradual_drift_is_a_coin_an_example_and_an_incremental_one_is_between() -> None:
    x, y = torch.zeros(20_000, 1), torch.arange(20_000) % 5
    data = tabular(shape=(1,))
    for schedule in (Gradual(), Incremental(), Sudden(strength=0.3)):
        amount, rate = (1.0, 0.3) if isinstance(schedule, Sudden) else (0.3, 0.3)
        assert_rate(moved(drift(schedule, data), x, y, amount)[1] != y, rate)
    brighter = moved(drift(Gradual(kind="brightness", strength=2.0), data), x, y, 0.3)[0]
    assert set(brighter.flatten().tolist()) == {0.0, 2.0}
    assert_rate(brighter == 2, 0.3)
    evenly = moved(drift(Incremental(kind="brightness", strength=2.0), data), x, y, 0.3)[0]
    torch.testing.assert_close(evenly, torch.full_like(x, 0.6))


def test_label_noise_is_a_true_rate_to_each_other_class_alike() -> None:
    x, y = torch.zeros(20_000, 1), torch.arange(20_000) % 5
    noisy = moved(drift(Sudden(kind="label_noise", strength=0.4), tabular(shape=(1,))), x, y, 0.5)[1]
    assert_rate(noisy != y, 0.2)
    steps = torch.bincount((noisy - y)[noisy != y] % 5, minlength=5)
    assert steps[0] == 0
    assert_law(steps[1:], [0.25] * 4)


def test_targets_turn_their_sign() -> None:
    data = tabular("regression")
    made = drift(Incremental(kind="target"), data)
    torch.testing.assert_close(moved(made, data.train.x, data.train.y)[1], -data.train.y)
    assert (moved(made, data.train.x, data.train.y, 0.5)[1] == 0).all()


# What: inputs


def images(height: int, width: int) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    data = tabular(shape=(2, height, width), rows=6)
    return data, data.train.x, data.train.y


def test_a_quarter_and_a_half_turn_are_torchs() -> None:
    data, x, y = images(9, 9)
    for degrees, quarters in ((90, 1), (-90, 3), (180, 2)):
        turned = moved(drift(Sudden(kind="rotation", strength=float(degrees)), data), x, y)[0]
        torch.testing.assert_close(turned, torch.rot90(x, quarters, (-2, -1)), atol=1e-4, rtol=0)
    data, x, y = images(6, 10)
    turned = moved(drift(Sudden(kind="rotation", strength=180.0), data), x, y)[0]
    torch.testing.assert_close(turned, x.flip(-1, -2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(15, 15), (11, 20)])
def test_any_turn_is_scipys(height: int, width: int) -> None:
    data, x, y = images(height, width)
    turned = moved(drift(Incremental(kind="rotation", strength=60.0), data), x, y, 0.5)[0]
    expected = ndimage.rotate(x.double().numpy(), 30, axes=(3, 2), reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(turned.numpy(), expected, atol=1e-4)


def test_noise_is_normal_with_the_stated_deviation() -> None:
    x, y = torch.ones(5000, 4), torch.zeros(5000, dtype=torch.int64)
    data = tabular(shape=(4,))
    noise = (moved(drift(Incremental(kind="noise", strength=3.0), data), x, y, 0.5)[0] - x).numpy()
    assert stats.kstest(noise.ravel() / 1.5, "norm").pvalue > LEVEL
    assert (np.abs(np.corrcoef(noise.T) - np.eye(4)) < 0.08).all()
    other = (moved(drift(Incremental(kind="noise", strength=3.0), data), x, y, 0.5, client=4)[0] - x).numpy()
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.04


# The same whoever asks


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"prior"}))
@pytest.mark.parametrize("form", [Sudden, Gradual, Incremental])
def test_an_example_is_moved_alike_with_whomever_it_comes(kind: str, form: type[Schedule]) -> None:
    data = tabular("regression" if kind == "target" else "classification", shape=(1, 7, 7))
    made, x, y = drift(form(kind=kind), data), data.train.x, data.train.y
    amounts, positions = np.linspace(0, 1, 50), np.arange(50) * 3
    before = x.clone(), y.clone()
    all_x, all_y = made.apply(x, y, amounts, 5, positions)
    some = np.array([44, 3, 17, 30])
    some_x, some_y = made.apply(x[some], y[some], amounts[some], 5, positions[some])
    assert torch.equal(all_x[some], some_x) and torch.equal(all_y[some], some_y)
    assert torch.equal(all_x[0], x[0]) and all_y[0] == y[0] and all_x.dtype == x.dtype and all_y.dtype == y.dtype
    assert not (torch.equal(all_x, x) and torch.equal(all_y, y))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    still_x, still_y = made.apply(x, y, np.zeros(50), 5, positions)
    assert still_x is x and still_y is y


# Which rows come


def first_rows(labels: np.ndarray, weights: Any, clients: int, course: list[int], amounts: list[float]) -> np.ndarray:
    """(clients, course[-1]) rows in the order in which they come."""
    drawn = [
        order.by_weight(0, client, labels, np.array(course), np.array(amounts), weights, again=False)
        for client in range(clients)
    ]
    return np.stack(drawn)


def test_rows_are_drawn_one_after_the_other_by_the_weight_of_then() -> None:
    labels, old, new = np.array([0, 1, 2]), np.array([4.0, 2.0, 1.0]), np.array([1.0, 2.0, 4.0])
    drawn = first_rows(labels, lambda amount: new if amount else old, 6000, [0, 1, 3], [0.0, 1.0])
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for rows in drawn.tolist():
        counts[tuple(rows)] += 1
    chances = [old[i] / 7 * new[j] / (new[j] + new[k]) for i, j, k in counts]  # the first by old weights, then by new
    assert_law(list(counts.values()), chances)


def test_more_rounds_change_no_row_that_has_come_and_each_comes_once() -> None:
    labels = np.arange(60) % 5
    made = drift(Incremental(kind="prior", at=3, width=6))
    course = np.minimum(np.arange(13) * 5, 60)
    amounts = made.amount(np.full(12, 2), np.arange(1, 13))
    whole = order.by_weight(0, 2, labels, course, amounts, made.weights, again=False)
    assert sorted(whole.tolist()) == list(range(60))
    for rounds in range(1, 12):
        for again in (False, True):
            some, all_of = (
                order.by_weight(0, 2, labels, course[: n + 1], amounts[:n], made.weights, again=again)
                for n in (rounds, 12)
            )
            assert some.tolist() == all_of[: len(some)].tolist()


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_classes_come_as_often_as_the_prior_says(amount: float) -> None:
    made = drift(Sudden(kind="prior", strength=8.0))
    weights = made.weights(amount)
    if amount == 0.5:
        np.testing.assert_allclose(weights, (made.weights(0.0) + made.weights(1.0)) / 2)
    else:
        assert weights.max() / weights.min() == pytest.approx(8)
        np.testing.assert_allclose(np.sort(weights), 8.0 ** (np.arange(5) / 4 - 1))
    labels = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    rows = order.by_weight(0, 1, labels, np.array([0, 20_000]), np.array([amount]), made.weights, again=True)
    assert_law(np.bincount(rows, minlength=8), weights[labels] / weights[labels].sum())


# What makes no sense


@pytest.mark.parametrize(
    ("kind", "data", "way_out"),
    [
        ("label_swap", tabular("regression"), "drift.kind=target"),
        ("label_noise", tabular("regression"), "drift.kind=target"),
        ("prior", tabular("regression"), "drift.kind=target"),
        ("target", tabular(), "drift.kind=label_swap"),
        ("target", text(), "drift.kind=label_swap"),
        ("label_swap", text(), "drift.kind="),
        ("rotation", tabular(), "drift.kind=brightness"),
        ("rotation", text(), "drift.kind="),
        ("noise", text(), "drift.kind="),
    ],
)
def test_kinds_that_make_no_sense_for_the_data_are_refused(kind: str, data: Dataset, way_out: str) -> None:
    with pytest.raises(FedsimError, match=way_out):
        drift(Sudden(kind=kind), data)


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        (Sudden, {"kind": "swap"}),
        (Sudden, {"classes": [1]}),
        (Sudden, {"classes": [1, 1]}),
        (Sudden, {"classes": [0, 5]}),
        (Sudden, {"classes": 3}),
        (Sudden, {"classes": [0, 1], "kind": "noise"}),
        (Sudden, {"strength": 1.5}),
        (Sudden, {"strength": 0.5, "kind": "prior"}),
        (Sudden, {"strength": -1.0, "kind": "noise"}),
        (Sudden, {"strength": "much"}),
        (Sudden, {"at": 0}),
        (Sudden, {"at": [3, 4]}),
        (Sudden, {"who": "some"}),
        (Sudden, {"share": 2.0}),
        (Sudden, {"stagger": -1}),
        (Gradual, {"width": 0}),
        (Recurring, {"period": 0}),
        (Recurring, {"at": []}),
        (Recurring, {"at": [5, 3]}),
        (Recurring, {"at": "late"}),
    ],
)
def test_impossible_keys_are_refused_by_name(form: type[Schedule], keys: dict[str, Any]) -> None:
    with pytest.raises(FedsimError, match=rf"drift\.{next(iter(keys))}"):
        drift(form(**keys))


def test_drift_needs_a_stream() -> None:
    with pytest.raises(FedsimError, match="streams=steady"):
        check_streams(Unstreamed(), Sudden())
    check_streams(Unstreamed(), Undrifted())
    check_streams(Steady(), Sudden())


def test_the_files_make_their_parts() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf_dir() / "drift").glob("*.yaml")}
    made = {name: type(make(keys, "drift")) for name, keys in files.items()}
    forms = {"sudden": Sudden, "gradual": Gradual, "incremental": Incremental, "recurring": Recurring}
    assert made == {"none": Undrifted, **forms}


# Within a population


def streamed(schedule: Schedule, **keys: Any) -> StreamedPopulation:
    """Two clients with rows whose first input says which row it is; y is the row's number modulo 5."""
    x, y = torch.arange(400.0)[:, None], torch.arange(400) % 5
    data = Dataset("tiny", Examples(x, y), Examples(x, y), "classification", NAMES)
    partition = Partition(np.array([0, 200, 400]), np.arange(400))
    return StreamedPopulation(data, partition, Corruption(), 0.25, 0, arrivals=Poisson(**keys), schedule=schedule)


def test_memory_keeps_the_concept_in_which_an_example_came() -> None:
    made = streamed(Recurring(at=4, period=3, classes=[0, 1]), rate=6, memory="all")
    swap = torch.tensor([1, 0, 2, 3, 4])
    for client in (0, 1):
        parts = []
        for round in range(1, 11):
            came = made.arriving_data(client, round)
            old = (came.x[:, 0] % 5).long()
            assert torch.equal(came.y, swap[old] if round in (4, 5, 6, 10) else old)
            parts.append(came.y)
            assert torch.equal(made.training_data(client, round).y, torch.cat(parts))


def test_held_out_rows_and_the_test_split_have_concepts_too() -> None:
    made = streamed(Sudden(at=4, classes=[0, 1]), rate=6)
    swap = torch.tensor([1, 0, 2, 3, 4])
    still = made.holdout_data(0)
    assert torch.equal(still.y, made.holdout_data(0, 3).y) and len(still.y) == 50
    assert torch.equal(swap[still.y], made.holdout_data(0, 4).y)
    (x, old), (same, new) = made.test_split(0.0), made.test_split(1.0)
    assert torch.equal(x, made.dataset.test.x) and torch.equal(old, made.dataset.test.y)
    assert torch.equal(x, same) and torch.equal(new, swap[old])


def test_the_test_split_of_a_prior_is_thinned_to_it() -> None:
    made = streamed(Sudden(kind="prior"), rate=6)
    for amount in made.drift.concepts:
        x, y = made.test_split(amount)
        assert torch.equal((x[:, 0] % 5).long(), y) and 0 < len(y) < 400
        weights = made.drift.weights(amount)
        assert_law(np.bincount(y.numpy(), minlength=5), weights / weights.sum())


def test_priors_move_what_comes_and_time_stands_against_it() -> None:
    made = streamed(Sudden(kind="prior", at=11, strength=30.0), rate=3, memory="all")
    assert sorted(made.training_data(0, 500).x[:, 0].tolist()) == made.rows(0)[0].tolist()
    repeated = streamed(Sudden(kind="prior", at=31, strength=30.0), rate=20, repeat=True)
    y = [torch.cat([repeated.arriving_data(0, r).y for r in rounds]) for rounds in (range(1, 31), range(31, 61))]
    own = np.bincount(repeated.rows(0)[0] % 5)
    for labels, amount in zip(y, (0.0, 1.0), strict=True):
        chances = own * repeated.drift.weights(amount)
        assert_law(np.bincount(labels.numpy(), minlength=5), chances / chances.sum())
    rows = Examples(torch.zeros(9, 1), torch.arange(9) % 5, time=np.arange(9))
    data = Dataset("timed", rows, rows, "classification", NAMES)
    with pytest.raises(FedsimError, match=r"streams\.order=random"):
        StreamedPopulation(
            data,
            Partition(np.array([0, 9]), np.arange(9)),
            Corruption(),
            0.0,
            0,
            arrivals=Steady(order="time"),
            schedule=Sudden(kind="prior"),
        )
