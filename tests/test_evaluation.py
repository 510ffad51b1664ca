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
from torch import Tensor, nn

from fedsim import flower, judging
from fedsim.data.dataset import Dataset, Examples
from fedsim.grids.base import evaluation_chunk
from fedsim.judging import Judge
from fedsim.nodes import Cohort, Nodes
from fedsim.training.evaluation import (
    across_clients,
    expected_calibration_error,
    macro_f1,
    metrics_of,
    mixes_rows,
    predict,
    tally_batches,
)
from fedsim.training.objectives import IGNORED_TARGET, OBJECTIVES
from fedsim.types import ClientData, Params

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
    population.training_data = lambda client, round=1: seen.setdefault(client, original(client))  # type: ignore[method-assign]
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
    assert len(parts("evaluation.clients=3").server.evaluator.choose(np.arange(8), 3, 1)) == 3


def test_without_held_out_rows_there_is_no_federated_accuracy(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny("population.holdout=0"))
    assert summary["federated"] is None and summary["accuracy"] is not None


# The same metrics in one piece, in shards, and client by client


def lines() -> Dataset:
    """Sequences of 5 symbols, of which some are padding throughout."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(0, 6, (120, 5), generator=draw)
    y = (x + torch.randint(0, 2, x.shape, generator=draw)) % 6
    y[torch.rand(y.shape, generator=draw) < 0.3] = IGNORED_TARGET
    y[90:95] = IGNORED_TARGET  # in the test split: a batch without a target
    return Dataset("lines", Examples(x[:80], y[:80]), Examples(x[80:], y[80:]), "next_token", tuple("abcdef"))


def prices() -> Dataset:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(120, 6, generator=draw)
    y = x.sum(1) + torch.randn(120, generator=draw)
    return Dataset("prices", Examples(x[:80], y[:80]), Examples(x[80:], y[80:]), "regression", ())


class Normed(nn.Sequential):
    """With BatchNorm, whose statistics are the server's or (tracked: False) those of whatever batch there is."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, tracked: bool = True) -> None:
        super().__init__(
            nn.Linear(input_shape[0], 5), nn.BatchNorm1d(5, track_running_stats=tracked), nn.Linear(5, num_outputs)
        )


KINDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "normed": ("model=custom", "model._target_=test_evaluation.Normed"),
    "noisy": ("corruption.feature_noise=0.5",),
    "next_token": ("dataset._target_=test_evaluation.lines", "model=lstm", "model.hidden=7"),
    "regression": ("dataset._target_=test_evaluation.prices",),
}


def by_hand(model: nn.Module, x: Tensor, y: Tensor, task: str) -> dict[str, float]:
    """Loss and accuracy, all at once and by torch's own arithmetic."""
    with torch.no_grad():
        outputs = model.eval()(x).double()
    if task == "regression":
        return {"loss": float(nn.functional.mse_loss(outputs.squeeze(1), y.double()))}
    outputs, y = outputs.flatten(0, -2), y.flatten()
    known = y != IGNORED_TARGET
    return {
        "loss": float(nn.functional.cross_entropy(outputs[known], y[known])),
        "accuracy": float((outputs.argmax(1) == y)[known].double().mean()),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_central_evaluation_in_any_number_of_shards_gives_the_same_bits(kind: str) -> None:
    made = parts(*KINDS[kind], "evaluation.batch_size=3", "rounds=1")
    play(made)
    server, arrays, dataset = made.server, made.server.state.arrays, made.population.dataset
    whole = server.judge.central(arrays)
    assert {name: server.state.rows[-1][name] for name in whole} == whole
    for shards in (1, 2, 5, 14, 1000):
        grid = made.grid()
        grid_of = type("Sharded", (type(grid),), {"shards": shards})
        grid.__class__ = grid_of
        assert server.evaluator.on_test_split(grid, arrays) == whole, shards
    assert server.evaluator.on_test_split(Cohort(made.grid(), []), arrays) == whole  # a grid that is not ours: here
    found = predict(made.model, dataset.test.x, dataset.test.y, dataset.task, 3, made.population.preprocess)
    at_once = metrics_of(found, dataset.num_outputs)
    assert {n: v for n, v in at_once.items() if v} == pytest.approx({n: v for n, v in whole.items() if v}, rel=1e-12)
    for name, value in by_hand(made.model, dataset.test.x, dataset.test.y, dataset.task).items():
        assert whole[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("number", [1, 2, 3, 8, 13, 14, 99])
def test_shards_are_whole_batches_and_all_rows_once(number: int) -> None:
    shards = parts("evaluation.batch_size=3").server.judge.shards(number)  # of 40 test rows
    assert [row for start, stop in shards for row in range(start, stop)] == list(range(40))
    assert len(shards) == min(number, 14) and all(start % 3 == 0 for start, _ in shards)
    assert max(stop - start for start, stop in shards) <= 3 * -(-14 // len(shards))


def test_workers_share_the_evaluation_and_agree_to_the_bit() -> None:
    options = ("evaluation.batch_size=3", "population.holdout=0.4", "rounds=2")
    rows = {}
    for workers in (0, 1, 3):
        made = parts(*options, *(("grid=processes", f"grid.workers={workers}") if workers else ()))
        grid = made.grid()
        try:
            made.server.run(grid)
        finally:
            grid.close()
        rows[workers] = [{k: v for k, v in row.items() if "seconds" not in k} for row in made.server.state.rows]
    assert rows[0] == rows[1] == rows[3] and rows[0][-1]["ece"] is not None


def test_a_shard_goes_to_a_node_and_to_no_client() -> None:
    made = parts("evaluation.batch_size=3", "rounds=1")
    grid, told, seen = made.grid(), [], []
    run_chunks = grid.run_chunks
    grid.on_progress = lambda done, asked: told.append((done, asked))
    grid.run_chunks = lambda chunks: (seen.extend(chunks), run_chunks(chunks))[1]  # type: ignore[method-assign]
    made.server.evaluator.on_test_split(grid, made.server.state.arrays)
    assert not told and [message.metadata.message_type for message in seen] == [flower.EVALUATE_SHARD]
    assert sorted(seen[0].content) == ["arrays", "config"]


def test_a_shard_that_a_node_cannot_do_is_done_by_the_server() -> None:
    made = parts("evaluation.batch_size=3")
    whole = made.server.judge.central(made.server.state.arrays)
    grid = made.grid()
    grid.run_chunks = lambda chunks: (flower.failure_reply(one, "no room") for one in chunks)  # type: ignore
    assert made.server.evaluator.on_test_split(grid, made.server.state.arrays) == whole
    made.population.dataset.test.y.fill_(3)  # there are 3 classes
    with pytest.raises((RuntimeError, IndexError), match="index 3 is out of bounds"):
        made.server.evaluator.on_test_split(made.grid(), made.server.state.arrays)


def test_a_large_split_costs_a_small_reply() -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(50_000, 2, generator=draw), torch.randint(0, 10, (50_000,), generator=draw)
    tally = tally_batches(nn.Linear(2, 10), x, y, "classification", 10, 128)
    assert sum(sums.nbytes for sums in tally) < 100_000 and tally.size.sum() == 50_000


@pytest.mark.parametrize("kind", KINDS)
def test_clients_judged_together_are_judged_as_one_by_one(kind: str) -> None:
    made = parts(*KINDS[kind], "population.holdout=0.4", "population.num_clients=20", "rounds=1")
    play(made)
    state, population, task = made.server.state, made.population, made.population.dataset.task
    made.model.load_state_dict(state.arrays)
    assert len(state.client_metrics) == 20
    for client, found in state.client_metrics.items():
        data = population.holdout_data(client)
        assert found["num-examples"] == int((data.y != IGNORED_TARGET).sum())
        expected = by_hand(made.model, data.x, data.y, task)
        assert {name: found[name] for name in found if name != "num-examples"} == pytest.approx(
            expected, rel=1e-6, abs=1e-6
        )


def test_federated_evaluation_does_not_depend_on_the_chunks_of_training() -> None:
    found = []
    for size in (1, 3, 8):
        made = parts(f"grid.chunk_size={size}", "population.num_clients=40", "population.holdout=0.5")
        server = made.server
        _, judged = server.evaluator.row(made.grid(), Nodes(), 1, server.state.arrays, None, server.interruptible)
        found.append(judged.metrics)
    assert found[0] == found[1] == found[2] and list(found[0]) == list(range(40))
    assert [evaluation_chunk(asked) for asked in (1, 16, 17, 1000)] == [1, 1, 2, 63]


def judge_all(judge: Judge, received: Params) -> tuple[dict[int, dict[str, float]], dict[int, str]]:
    rows, failures = judge.clients(range(8), received, lambda client: received, "holdout")
    return rows, dict(failures)


def test_whose_data_raise_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts("population.holdout=0.4")
    judge, received = made.server.judge, made.server.state.arrays
    whole, nobody = judge_all(judge, received)
    assert len(whole) == 8 and not nobody
    original = made.population.holdout_data

    def holdout_data(client: int) -> ClientData:
        if client == 2:
            raise OSError("its disk is gone")
        data = original(client)
        return data._replace(y=data.y + 3) if client == 5 else data  # classes that the model does not know

    monkeypatch.setattr(made.population, "holdout_data", holdout_data)
    rows, failures = judge_all(judge, received)
    assert sorted(failures) == [2, 5] and list(rows) == [0, 1, 3, 4, 6, 7]
    assert failures[2] == "in evaluation, OSError: its disk is gone" and "out of bounds" in failures[5]
    assert all(rows[client] == pytest.approx(whole[client], abs=1e-6) for client in rows)


def test_packs_are_bounded_and_lose_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts("population.holdout=0.4", "evaluation.batch_size=5")  # 6 held-out rows each
    whole = judge_all(made.server.judge, made.server.state.arrays)
    monkeypatch.setattr(judging, "SECTION", 2)
    packs = []
    together = Judge._together
    monkeypatch.setattr(
        Judge, "_together", lambda self, pack, failed: (packs.append(len(pack)), together(self, pack, failed))[1]
    )
    rows, failures = judge_all(made.server.judge, made.server.state.arrays)
    assert packs == [2, 2, 2, 2] and not failures
    monkeypatch.setattr(judging, "PACK_BYTES", 1)
    assert judge_all(made.server.judge, made.server.state.arrays)[0].keys() == rows.keys() and packs[4:] == [1] * 8
    assert all(rows[client] == pytest.approx(whole[0][client], abs=1e-6) for client in range(8))


def test_a_model_that_mixes_rows_is_judged_client_by_client() -> None:
    population, model = parts("population.holdout=0.4").population, Normed((6,), 3, tracked=False)
    assert mixes_rows(model) and not mixes_rows(Normed((6,), 3))
    rows, failures = judge_all(Judge(model, population, 128), dict(model.state_dict()))
    assert len(rows) == 8 and not failures
    for client, found in rows.items():
        data = population.holdout_data(client)
        assert found["loss"] == pytest.approx(by_hand(model, data.x, data.y, "classification")["loss"], abs=1e-6)


def test_clients_with_models_of_their_own_are_judged_on_these() -> None:
    made = parts("strategy=local_only", "population.holdout=0.4", "rounds=1")
    grid = made.grid()
    made.server.run(grid)
    for client, found in made.server.state.client_metrics.items():
        made.model.load_state_dict(grid.states.committed[client])
        data = made.population.holdout_data(client)
        expected = by_hand(made.model, data.x, data.y, "classification")
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


class Viewing(nn.Module):
    """A model of one's own that takes the layout of its pictures for granted; `limit`: of examples, beyond which it raises."""

    def __init__(self, limit: int = 1000) -> None:
        super().__init__()
        self.conv, self.head, self.limit = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 36, 4), limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise RuntimeError("too many")
        return self.head(self.conv(x).view(len(x), -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_pictures_changes_nothing_that_counts(channels: int) -> None:
    from fedsim.models import CNN

    x, y = torch.randn(20, channels, 28, 28), torch.randint(0, 4, (20,))
    model = CNN((channels, 28, 28), 4, channels=[4, 6], hidden=8).eval()
    layouts = []
    model.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].stride()[1]))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y, reduction="none")
    found = predict(model, x, y, "classification", 8)
    assert torch.allclose(found.loss, expected, rtol=0, atol=1e-6)
    assert layouts == [28 * 28, 1, 1, 1]


def test_a_model_that_views_its_pictures_is_given_them_as_they_are() -> None:
    model, x, y = Viewing().eval(), torch.randn(20, 2, 6, 6), torch.randint(0, 4, (20,))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y, reduction="none")
    assert torch.equal(predict(model, x, y, "classification", 20).loss, expected)
    with pytest.raises(RuntimeError, match="too many"):
        predict(Viewing(limit=5), x, y, "classification", 20)


def test_speed_is_of_training_alone(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny("rounds=3"))
    table = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert all(0 < alone < whole for alone, whole in zip(table["train_seconds"], table["seconds"], strict=True))
    assert summary["train_seconds"] == pytest.approx(sum(table["train_seconds"]))
    assert summary["client_rounds_per_second"] == pytest.approx(24 / summary["train_seconds"])


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
