"""Whole runs on streams: test, then train; the same on every grid and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import parts, play, resume, run_into, tiny
from test_resume import model_of

from fedsim.streams.population import StreamedPopulation
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

STREAM = (
    *("streams=poisson", "streams.rate=2", "streams.repeat=true", "streams.memory=reservoir", "streams.memory_size=10"),
    *("streams.label_delay=1", "population.holdout=0", "rounds=8", "drift=sudden", "drift.at=4"),
)


def rounds_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "rounds.parquet").drop(columns=["seconds", "train_seconds"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_into(folder, tiny(*STREAM))


def test_streams_do_not_depend_on_the_grid(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*STREAM, "grid=processes", "grid.workers=2", "grid.chunk_size=3"))
    run_into(tmp_path / "b", tiny(*STREAM, "grid.chunk_size=3"))
    assert model_of(tmp_path) == model_of(tmp_path / "b")
    ours, others = rounds_of(tmp_path), rounds_of(whole[0])
    exact = ["arrived", "drift", "detected", "cohort_size", "num_examples"]
    assert ours[exact].equals(others[exact])


def test_a_stopped_stream_goes_on_with_the_same_bits(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*STREAM, "rounds=3"))
    summary = resume(tmp_path, rounds=8)
    assert model_of(tmp_path) == model_of(whole[0])
    assert rounds_of(tmp_path).equals(rounds_of(whole[0]))
    assert summary["streams"] == whole[1]["streams"]


def test_each_round_is_judged_by_the_model_before_it() -> None:
    """From the clients' own arriving rows and the models after each round, by hand."""
    made = parts(*STREAM)
    population, models = made.population, [made.server.state.arrays]
    assert isinstance(population, StreamedPopulation)
    made.server.on_round = lambda row: models.append(made.server.state.arrays)
    play(made)
    right = count = 0
    for round, row in enumerate(made.server.state.rows, 1):
        hits, losses = [], []
        for client in range(8):
            data = population.arriving_data(client, round)
            if len(data.x) == 0:
                continue
            outputs = torch.nn.functional.linear(
                data.x.flatten(1), *(models[round - 1][name] for name in sorted(models[0], reverse=True))
            )
            hits += (outputs.argmax(1) == data.y).tolist()
            losses += torch.nn.functional.cross_entropy(outputs, data.y, reduction="none").tolist()
        assert row["arrived"] == len(hits)
        if hits:
            assert row["round_accuracy"] == pytest.approx(np.mean(hits))
            assert row["round_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        right, count = right + sum(hits), count + len(hits)
        if count:
            assert row["cumulative_accuracy"] == pytest.approx(right / count)


def test_it_is_rivers_own_on_one_clients_stream() -> None:
    river_metrics, utils = pytest.importorskip("river.metrics"), pytest.importorskip("river.utils")
    made = parts(*STREAM, "population.num_clients=1", "streams.rate=5", "evaluation.window=7")
    population, models = made.population, [made.server.state.arrays]
    assert isinstance(population, StreamedPopulation)
    made.server.on_round = lambda row: models.append(made.server.state.arrays)
    play(made)
    accuracy, window = river_metrics.Accuracy(), utils.Rolling(river_metrics.Accuracy(), 7)
    for round, row in enumerate(made.server.state.rows, 1):
        data = population.arriving_data(0, round)
        if len(data.x):
            weight, bias = (models[round - 1][name] for name in sorted(models[0], reverse=True))
            for truth, guess in zip(
                data.y.tolist(), (data.x.flatten(1) @ weight.T + bias).argmax(1).tolist(), strict=True
            ):
                accuracy.update(truth, guess)
                window.update(truth, guess)
        assert row["cumulative_accuracy"] == pytest.approx(accuracy.get(), abs=1e-9)
        assert row["window_accuracy"] == pytest.approx(window.get(), abs=1e-9)


def test_a_swap_of_labels_costs_accuracy_and_is_written_down(tmp_path: Path) -> None:
    chosen = ("streams=steady", "streams.rate=3", "streams.repeat=true", "population.holdout=0", "rounds=24")
    summary = run_into(tmp_path, tiny(*chosen, "drift=sudden", "drift.at=12", "streams.memory_size=20"))
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    before, after = rounds["round_accuracy"][8:11].mean(), rounds["round_accuracy"][11:13].mean()
    assert after < before - 0.3
    assert rounds["drift"].tolist() == [0.0] * 11 + [1.0] * 13
    (event,) = summary["streams"]["drift"]
    assert (event["round"], event["kind"], event["clients"]) == (12, "label_swap", 8)
    assert rounds["old_concept_accuracy"].iloc[-1] < rounds["accuracy"].iloc[-1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("drift=sudden",), "set streams=steady"),
        (("detector=adwin",), "streams=steady"),
        (("streams=steady", "strategy=central"), "have no streams"),
        (("streams=steady", "strategy=fedavgm", "response=reset"), "a copy of its own"),
        (
            ("streams=steady", "privacy=user", "privacy.noise_multiplier=1", "privacy.delta=0.01", "response=boost"),
            "its epsilon would not hold",
        ),
        (("streams=steady", "strategy=rls"), "set streams.memory=once"),
        (("strategy=rls", "compression=qsgd"), "exact sums"),
        (("strategy=rls", "fleet=phones", "schedule=fedbuff", "sampler=fixed"), "nothing of it can be stale"),
    ],
)
def test_what_makes_no_sense_without_streams_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*overrides)


@pytest.mark.parametrize("schedule", [("schedule=synchronous",), ("schedule=fedbuff", "schedule.buffer=2")])
def test_devices_wait_where_no_label_has_come_yet(schedule: tuple[str, ...], tmp_path: Path) -> None:
    """Labels come a round late, so in the first round nobody trains, and no device is asked."""
    more = "fleet=phones", *schedule, "sampler=fixed", "sampler.cohort_size=4"
    more = *more, "streams=steady", "streams.label_delay=1", "rounds=3"
    run_into(tmp_path, tiny(*more))
    rows = pd.read_parquet(tmp_path / "rounds.parquet")
    assert rows["cohort_size"].tolist()[0] == 0 and (rows["cohort_size"][1:] > 0).all()
    assert rows["aggregated"].tolist()[0] == 0 and rows["aggregated"].tolist()[-1] == 1
