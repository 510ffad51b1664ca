"""Metrics against other people's arithmetic; who is judged on what; the two baselines."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import parts, play, run_into, same_bits, tiny, tiny_dataset
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import nn

from fedsim.training.evaluation import across_clients, expected_calibration_error, macro_f1, metrics_of, predict
from fedsim.training.objectives import IGNORED_TARGET, OBJECTIVES

LABELS = st.integers(2, 6).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=60)
    )
)

pytestmark = pytest.mark.usefixtures("no_pictures")


@given(LABELS)
def test_macro_f1_is_scikit_learns(case: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = case
    target, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert macro_f1(target, predicted, classes) == pytest.approx(
        f1_score(target, predicted, average="macro"), abs=1e-12
    )


def test_calibration_error_by_hand() -> None:
    # Two bins: (0, 0.5] holds 0.3 and 0.5, (0.5, 1] holds 0.6, 0.9 and 1.0; a border belongs to the lower bin.
    confidence = torch.tensor([0.3, 0.5, 0.6, 0.9, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, False, False, True, True])
    low = 2 / 5 * abs(0.5 - (0.3 + 0.5) / 2)
    high = 3 / 5 * abs(2 / 3 - (0.6 + 0.9 + 1.0) / 3)
    assert expected_calibration_error(correct, confidence, bins=2) == pytest.approx(low + high)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=80))
def test_calibration_error_bin_by_bin(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([c for c, _ in pairs], dtype=np.float32), np.array([ok for _, ok in pairs])
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence.astype(np.float64) > low) & (confidence.astype(np.float64) <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].astype(np.float64).mean())
            expected += inside.mean() * gap
    on_an_edge = np.isclose(confidence[:, None], edges[None], atol=1e-7).any()
    if not on_an_edge:  # rounding decides there
        assert expected_calibration_error(torch.from_numpy(correct), torch.from_numpy(confidence)) == pytest.approx(
            expected, abs=1e-6
        )


def test_across_clients_by_hand() -> None:
    values = [0.9, 0.1, 0.5, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4, 1.0, 0.0]  # eleven: a tenth is two, rounded up
    spread = across_clients(values)
    assert spread == pytest.approx({"mean": 0.5, "std": float(np.std(values)), "worst10": 0.05, "best10": 0.95})
    assert across_clients([0.25]) == {"mean": 0.25, "std": 0.0, "worst10": 0.25, "best10": 0.25}


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    test = tiny_dataset().test
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    with torch.no_grad():
        logits = model[0](test.x)  # evaluation mode: no dropout
    for batch_size in (1, 7, 512):
        found = predict(model.train(), test.x, test.y, "classification", batch_size)
        metrics = metrics_of(found, 3)
        assert metrics["accuracy"] == float((logits.argmax(1) == test.y).double().mean())
        assert metrics["loss"] == pytest.approx(float(OBJECTIVES["classification"](logits, test.y)), abs=1e-6)
        assert found.row.tolist() == list(range(len(test)))


def test_padding_counts_in_no_metric_and_no_loss() -> None:
    model = nn.Embedding(5, 5)  # (b, length) -> (b, length, 5)
    x = torch.tensor([[0, 1, 2], [3, 4, 0]])
    y = torch.tensor([[1, 2, IGNORED_TARGET], [4, IGNORED_TARGET, IGNORED_TARGET]])
    found = predict(model, x, y, "next_token", 1)
    assert found.row.tolist() == [0, 0, 1] and found.target is not None and found.target.tolist() == [1, 2, 4]
    logits = model(x)[y != IGNORED_TARGET].detach()
    expected = nn.functional.cross_entropy(logits, torch.tensor([1, 2, 4]))
    assert metrics_of(found, 5)["loss"] == pytest.approx(float(expected), abs=1e-6)
    assert float(OBJECTIVES["next_token"](model(x), y).detach()) == pytest.approx(float(expected), abs=1e-6)


def test_regression_has_a_loss_and_nothing_else() -> None:
    model = nn.Linear(2, 1)
    x, y = torch.randn(9, 2), torch.randn(9)
    metrics = metrics_of(predict(model, x, y, "regression", 4), 1)
    assert metrics["loss"] == pytest.approx(float((model(x).squeeze(1) - y).square().mean().detach()), abs=1e-6)
    assert metrics["accuracy"] is metrics["macro_f1"] is metrics["ece"] is None


def test_a_diverged_model_has_no_loss() -> None:
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    test = tiny_dataset().test
    assert metrics_of(predict(model, test.x, test.y, "classification", 8), 3)["loss"] is None


# Held-out rows


def test_held_out_rows_never_train(tmp_path: Path) -> None:
    overrides = ["population.holdout=0.3", "partition=quantity"]
    made = parts(*overrides)
    population, seen = made.population, {}
    original = population.training_data
    population.training_data = lambda client: seen.setdefault(client, original(client))  # type: ignore[method-assign]
    play(made)
    train = population.dataset.train
    everything = []
    for client in range(8):
        rows, held = population.rows(client)
        assert len(held) == int((len(rows) + len(held)) * 0.3) and not set(rows) & set(held)
        assert torch.equal(seen[client].x, train.x[rows]) and torch.equal(
            population.holdout_data(client).x, train.x[held]
        )
        everything += [*rows, *held]
    assert sorted(everything) == list(range(len(train)))
    run_into(tmp_path, tiny(*overrides))
    table = pq.read_table(tmp_path / "lineage.parquet")
    assert table.schema.metadata[b"fingerprint"].decode() == population.dataset.fingerprint
    for client, lineage in enumerate(table.to_pylist()):
        rows, held = population.rows(client)
        assert lineage == {"client": client, "rows": rows.tolist(), "holdout_rows": held.tolist()}


def test_clients_are_judged_on_their_own_held_out_rows() -> None:
    made = parts("population.holdout=0.4", "rounds=1")
    play(made)
    trainer, state = made.trainer, made.server.state
    by_hand = {}
    for client in range(8):
        data = made.population.holdout_data(client)
        trainer.model.load_state_dict(state.arrays)
        with torch.no_grad():
            by_hand[client] = float((trainer.model.eval()(data.x).argmax(1) == data.y).double().mean())
    assert {c: m["accuracy"] for c, m in state.client_metrics.items()} == pytest.approx(by_hand)
    assert state.rows[-1]["federated_accuracy"] == pytest.approx(np.mean(list(by_hand.values())))
    assert state.rows[-1]["federated_accuracy_worst10"] == pytest.approx(min(by_hand.values()))


def test_evaluation_follows_its_plan() -> None:
    made = parts("evaluation.every=2", "evaluation.clients=3", "rounds=5")
    play(made)
    judged = [row["accuracy"] is not None for row in made.server.state.rows]
    assert judged == [False, True, False, True, True]
    assert all(
        (row["federated_loss"] is not None) == due for row, due in zip(made.server.state.rows, judged, strict=True)
    )
    assert len(parts("evaluation.clients=3").server._choose(np.arange(8), 3, 1)) == 3


def test_without_held_out_rows_there_is_no_federated_accuracy(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny("population.holdout=0"))
    assert summary["federated"] is None and summary["accuracy"] is not None


# Baselines


def test_central_pools_exactly_the_union_of_the_clients_training_rows() -> None:
    made, apart = parts("strategy=central", "population.holdout=0.25"), parts("population.holdout=0.25")
    assert made.population.num_clients == 1 and made.population.num_holders == 8
    pooled = made.population.training_data(0)
    own = [apart.population.training_data(client) for client in range(8)]
    assert torch.equal(pooled.x, torch.cat([data.x for data in own]))
    assert torch.equal(pooled.y, torch.cat([data.y for data in own]))
    held = torch.cat([apart.population.holdout_data(client).x for client in range(8)])
    assert not {row.numpy().tobytes() for row in pooled.x} & {row.numpy().tobytes() for row in held}
    play(made)
    assert [row["cohort_size"] for row in made.server.state.rows] == [1, 1]
    assert len(made.server.state.client_metrics) == 8  # judged on every client's held-out rows


def test_local_models_differ_and_the_servers_never_changes() -> None:
    made = parts("strategy=local_only", "rounds=3")
    before = {name: array.clone() for name, array in made.server.state.arrays.items()}
    grid = made.grid()
    made.server.run(grid)
    assert same_bits(made.server.state.arrays, before)
    states = grid.states.committed
    assert sorted(states) == list(range(8))
    assert all(not same_bits(states[a], states[b]) for a in range(8) for b in range(a))
    assert made.server.state.rows[-1]["loss"] < made.server.state.rows[0]["loss"]


def test_a_local_model_is_that_clients_own_training_alone() -> None:
    made = parts("strategy=local_only", "rounds=3", "population.holdout=0")
    grid = made.grid()
    start = {name: array.clone() for name, array in made.server.state.arrays.items()}
    made.server.run(grid)
    alone = parts("population.holdout=0")
    arrays = start
    for round in (1, 2, 3):
        (update,) = alone.trainer.train(arrays, [5], alone.population.training_data, lambda client: {}, round)
        arrays = {name: array.clone() for name, array in update.arrays.items()}  # type: ignore[union-attr]
    assert same_bits(arrays, grid.states.committed[5])


def test_baselines_are_runs_inside_the_run(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny("baselines=true"))
    assert summary["baselines"].keys() == {"central", "local_only"}
    for name, figures in summary["baselines"].items():
        alone = parts(f"strategy={name}")
        play(alone)
        last = alone.server.state.rows[-1]
        assert figures["accuracy"] == last["accuracy"] and figures["loss"] == last["loss"]
        assert (tmp_path / "baselines" / name / "summary.json").is_file()
