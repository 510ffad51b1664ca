"""Models and strategies that are not ours: what they may hold and do without a wrong result or a riddle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg
from helpers import assert_close, parts, play, run_into, tiny
from torch import Tensor, nn

import fedsim.results.report
from fedsim.algorithms.fedprox import Proximal
from fedsim.data.dataset import Dataset, Examples
from fedsim.rng import generator
from fedsim.training import LocalTraining, Trainer
from fedsim.training.objectives import classification
from fedsim.types import ClientData, FedsimError

OWN = ("model=custom", "client.lr=0.05")


class WithIndex(nn.Module):
    """Holds a constant permutation, as models with position ids do."""

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape[0], num_outputs)
        self.register_buffer("order", torch.arange(input_shape[0]))
        self.register_buffer("positions", torch.arange(500))
        self.register_buffer("mask", torch.ones(input_shape[0], dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, self.order] * self.mask)


class Norm(nn.Sequential):
    """Has BatchNorm."""

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__(nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_outputs))


class Half(nn.Sequential):
    """Calculates in bfloat16."""

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__(nn.Linear(input_shape[0], num_outputs))
        self.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.bfloat16)).float()


class TwoBiases(nn.Module):
    """Both biases have the same gradient, and autograd gives one tensor for them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (self.a + self.b)


class Summed(nn.Module):
    """The gradient of a sum is one number, expanded to the shape of what was summed."""

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape[0], num_outputs)
        self.scale = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + self.scale.sum())


class Bare(FedAvg):
    """Makes its messages itself, and passes the configuration on as it got it."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node_id, MessageType.TRAIN) for node_id in grid.get_node_ids()]


class Fewer(FedAvg):
    """Loses an array."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord(dict(list(arrays.items())[:1])), metrics


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedmedian", "qfedavg"])
def test_whole_numbers_come_back_as_they_were(strategy: str) -> None:
    uneven = ("population.num_clients=7", "grid.chunk_size=1")  # seven weights of a seventh do not add up to one
    made = parts(*OWN, *uneven, "model._target_=test_own_models.WithIndex", f"strategy={strategy}", "rounds=4")
    before = {name: array.clone() for name, array in made.server.state.arrays.items()}
    after = play(made)
    assert after["order"].dtype == torch.int64 and torch.equal(after["order"], before["order"])
    assert torch.equal(after["positions"], before["positions"])
    assert after["mask"].dtype == torch.bool and after["mask"].all()
    assert not torch.equal(after["linear.weight"], before["linear.weight"])


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi", "fedmedian"])
def test_a_model_in_bfloat16_trains(strategy: str) -> None:
    made = parts(*OWN, "model._target_=test_own_models.Half", f"strategy={strategy}", "rounds=2")
    before = made.server.state.arrays["0.weight"].clone()
    after = play(made)["0.weight"]
    assert after.dtype == torch.bfloat16 and not torch.equal(after, before)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg"])
def test_a_server_optimiser_refuses_running_statistics(strategy: str) -> None:
    with pytest.raises(FedsimError, match=rf"strategy={strategy} cannot take BatchNorm .*GroupNorm"):
        parts(*OWN, "model._target_=test_own_models.Norm", f"strategy={strategy}")


def test_a_last_batch_of_one_is_left_out_where_batchnorm_could_not_train_on_it() -> None:
    made = parts(*OWN, "model._target_=test_own_models.Norm", "client.batch_size=2", "population.holdout=0", "rounds=1")
    sizes = made.population.partition.sizes - made.population.holdout_sizes
    assert (sizes % 2 == 1).any() and (sizes > 1).all()  # else the test would show nothing
    play(made)
    assert not made.server.state.failures


def test_gradients_that_share_memory_are_changed_once_each() -> None:
    """Against torch.optim with autograd's own proximal term."""
    torch.manual_seed(0)
    ours, x, y = TwoBiases(), torch.randn(12, 4), torch.randint(0, 3, (12,))
    theirs = TwoBiases()
    theirs.load_state_dict(ours.state_dict())
    settings = LocalTraining(epochs=5, batch_size=None, lr=0.1, weight_decay=0.05, max_grad_norm=0.5)
    trainer = Trainer(ours, classification, settings, Proximal(0.3), 0)
    start = {name: array.clone() for name, array in ours.state_dict().items()}
    (update,) = trainer.train(start, [0], lambda client: ClientData(client, x, y), lambda client: {}, 1)
    anchors = [parameter.detach().clone() for parameter in theirs.parameters()]
    for _ in range(5):
        loss = classification(theirs(x), y)
        for weight, anchor in zip(theirs.parameters(), anchors, strict=True):
            loss = loss + 0.15 * (weight - anchor).square().sum()
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        torch.optim.SGD(theirs.parameters(), 0.1, weight_decay=0.05).step()
    assert_close(update.arrays, dict(theirs.state_dict()), 1e-6)


def test_gradients_of_a_sum_can_be_changed_in_place() -> None:
    made = parts(
        "model=custom", "model._target_=test_own_models.Summed", "strategy=fedprox", "client.weight_decay=0.01"
    )
    scale = play(made)["scale"]
    assert not made.server.state.failures
    assert scale.abs().min() > 0 and torch.allclose(scale, scale[:1].expand(5))


def test_a_strategy_need_not_name_the_round() -> None:
    made = parts("strategy=custom", "strategy._target_=test_own_models.Bare", "rounds=2")
    play(made)
    assert not made.server.state.failures


def test_a_strategy_that_loses_an_array_is_told_so() -> None:
    with pytest.raises(FedsimError, match="gave other arrays than the model's"):
        play(parts("strategy=custom", "strategy._target_=test_own_models.Fewer"))


@pytest.mark.parametrize(
    ("task", "y"),
    [
        ("regression", torch.zeros(6, 1)),
        ("regression", torch.zeros(6, dtype=torch.int64)),
        ("classification", torch.zeros(6, 2, dtype=torch.int64)),
        ("classification", torch.zeros(6)),
        ("next_token", torch.zeros(6, dtype=torch.int64)),
    ],
)
def test_targets_of_another_shape_or_type_are_refused(task: Any, y: Tensor) -> None:
    rows = Examples(torch.zeros(6, 3), y)
    with pytest.raises(FedsimError, match=f"task {task} needs"):
        Dataset("odd", rows, rows, task, () if task == "regression" else ("a", "b"))


def test_only_devices_that_have_trained_are_judged_alone() -> None:
    made = parts("strategy=local_only", "sampler=fixed", "sampler.cohort_size=2", "rounds=1", "evaluation.every=1")
    play(made)
    (row,) = made.server.state.rows
    trained = set(made.server.state.participations)
    assert set(made.server.state.client_metrics) <= trained and row["federated_clients"] <= len(trained) == 2
    assert row["aggregated"] == 0


def test_a_client_that_raises_in_evaluation_silences_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts("rounds=1", "grid.chunk_size=100")
    whole = made.population.holdout_data
    broken = int(made.server.holders[0])

    def holdout_data(client: int) -> ClientData:
        if client == broken:
            raise ValueError("a broken disk")
        return whole(client)

    monkeypatch.setattr(made.population, "holdout_data", holdout_data)
    play(made)
    judged = set(made.server.state.client_metrics)
    assert judged == set(made.server.holders.tolist()) - {broken}
    assert made.server.state.failures == {broken: 1}
    assert "in evaluation, ValueError: a broken disk" in str(made.server.state.first_failure)


def test_the_summary_comes_after_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_report(run_dir: Path, summary: dict[str, Any]) -> None:
        assert not (run_dir / "summary.json").exists()
        raise OSError("the disk is full")

    monkeypatch.setattr(fedsim.results.report, "write_report", write_report)
    with pytest.raises(OSError, match="full"):
        run_into(tmp_path, tiny("rounds=1"))
    assert not (tmp_path / "summary.json").exists()


def test_a_run_stopped_in_its_baselines_goes_on_with_them(tmp_path: Path) -> None:
    from helpers import resume

    cfg = tiny("rounds=2", "baselines=true", "checkpoint.every=1")
    run_into(tmp_path, cfg)
    path = tmp_path / "summary.json"
    first = json.loads(path.read_text())
    assert set(first["baselines"]) == {"central", "local_only"}
    path.write_text(json.dumps({**first, "baselines": {}}))  # as a kill after the run itself leaves it
    again = resume(tmp_path)
    assert again["accuracy"] == first["accuracy"]
    assert again["baselines"]["central"]["accuracy"] == first["baselines"]["central"]["accuracy"]
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pandas()
    assert list(rows["round"]) == [1, 2]
    with pytest.raises(FedsimError, match="finished after 2 rounds"):
        resume(tmp_path)


def test_batches_are_drawn_as_before_where_nothing_is_left_out() -> None:
    from fedsim.training.updates import batches

    settings = LocalTraining(epochs=1, batch_size=4)
    drawn = [batches(9, settings, generator(0, 1, 2, "batches"), smallest) for smallest in (1, 2)]
    kept, short = ([rows.numpy() for rows in found if rows is not None] for found in drawn)
    assert [len(rows) for rows in kept] == [4, 4, 1] and [len(rows) for rows in short] == [4, 4]
    assert all(np.array_equal(a, b) for a, b in zip(kept, short, strict=False))
