"""What a stream's models are held against, and what is said of it in the end: against scikit-learn, hand values and a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, config, parts, play, resume, run_into, tiny
from test_online_runs import rounds_of
from test_resume import model_of

from fedsim.fleet.hardware import Hardware
from fedsim.fleet.prediction import Asked, prediction_costs
from fedsim.fleet.work import count_prediction
from fedsim.results.finished import read_run
from fedsim.results.movement import movement_rows, movement_words
from fedsim.results.pictures.movement import data_drift
from fedsim.results.pictures.stream import stream, stream_clients
from fedsim.results.stream_words import compared_rows, prediction_rows, stream_words
from fedsim.streams.distances import index_of_counts, stability_index
from fedsim.streams.movement import LARGE, Movement, described, expected_index, spaced
from fedsim.streams.population import StreamedPopulation
from fedsim.streams.verdict import verdict
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

STREAM = (
    *("streams=poisson", "streams.rate=2", "streams.repeat=true", "streams.memory=reservoir", "streams.memory_size=10"),
    *("streams.label_delay=1", "population.holdout=0", "rounds=9", "drift=sudden", "drift.at=5"),
)
HELD = ("evaluation.regret=[fixed,offline]", "evaluation.regret_every=3", "evaluation.data_drift=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_into(folder, tiny(*STREAM, *HELD))


# Regret


def test_what_a_run_is_held_against_changes_nothing_of_it(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*STREAM))
    ours, held = rounds_of(tmp_path), rounds_of(whole[0])
    assert model_of(tmp_path) == model_of(whole[0])
    assert held[ours.columns].equals(ours)
    assert not {"regret_fixed", "regret_offline", "offline_accuracy"} & set(ours)
    assert not (tmp_path / "data_drift.parquet").exists()


def test_killed_and_resumed_it_is_the_same_to_the_last_bit(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*STREAM, *HELD, "rounds=5"))
    summary = resume(tmp_path, rounds=9)
    assert rounds_of(tmp_path).equals(rounds_of(whole[0]))
    assert summary["streams"] == whole[1]["streams"]
    moved = [pd.read_parquet(folder / "data_drift.parquet") for folder in (tmp_path, whole[0])]
    assert moved[0].equals(moved[1]) and len(moved[0])
    own = [pd.read_parquet(folder / "clients.parquet") for folder in (tmp_path, whole[0])]
    assert own[0].equals(own[1])


def test_it_does_not_depend_on_the_grid(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run_into(tmp_path / "a", tiny(*STREAM, *HELD, "grid=processes", "grid.workers=2", "grid.chunk_size=3"))
    run_into(tmp_path / "b", tiny(*STREAM, *HELD, "grid.chunk_size=3"))
    ours, others = rounds_of(tmp_path / "a"), rounds_of(tmp_path / "b")
    assert ours.equals(others)
    assert ours["offline_loss"].equals(
        rounds_of(whole[0])["offline_loss"]
    )  # whatever the chunks of the run's own training


def test_regret_against_the_offline_model_is_that_of_its_losses_by_hand() -> None:
    """Which offline model judges which round, from the models themselves and the clients' own rows."""
    made = parts(*STREAM, "streams.label_delay=0", *HELD)
    population, online = made.population, made.server.online
    assert isinstance(population, StreamedPopulation) and online is not None and online.comparators is not None
    offline = []
    made.server.on_round = lambda row: offline.append(online.comparators._offline)  # type: ignore[union-attr]
    play(made)
    assert all(torch.equal(offline[0][name], made.server.online.start[name]) for name in offline[0])  # type: ignore[union-attr]
    changes = [r + 1 for r in range(1, 9) if offline[r] is not offline[r - 1]]
    assert changes == [2, 4, 7]  # after round 1, and after every third
    total = 0.0
    for row in made.server.state.rows:
        weight, bias = (offline[row["round"] - 1][name] for name in sorted(offline[0], reverse=True))
        for client in range(8):
            data = population.arriving_data(client, row["round"])
            if len(data.x):
                outputs = torch.nn.functional.linear(data.x.flatten(1), weight, bias)
                total -= float(torch.nn.functional.cross_entropy(outputs, data.y, reduction="sum"))
        total += row["round_loss"] * row["arrived"] if row["arrived"] else 0.0
        assert row["regret_offline"] == pytest.approx(total, rel=1e-4, abs=1e-4)


def test_the_best_fixed_model_is_as_good_as_scikit_learns_in_hindsight() -> None:
    """On a convex loss the best fixed model is known: multinomial logistic regression on all that came."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    made = parts(
        *("streams=steady", "streams.rate=4", "population.holdout=0", "rounds=3", "evaluation.regret=[fixed]"),
        *("evaluation.regret_epochs=400", "evaluation.regret_lr=0.3", "+dataset.noise=3"),
    )
    population = made.population
    assert isinstance(population, StreamedPopulation)
    play(made)
    rows, online = made.server.state.rows, made.server.online
    assert online is not None and rows[-1]["regret_fixed"] is None
    online.in_hindsight(rows, made.server.state.arrays)
    came = [population.arriving_data(client, round) for round in (1, 2, 3) for client in range(8)]
    x, y = torch.cat([data.x.flatten(1) for data in came]).numpy(), torch.cat([data.y for data in came]).numpy()
    best = linear_model.LogisticRegression(C=1e6, max_iter=10_000, tol=1e-10).fit(x, y)
    loss = -best.predict_log_proba(x)[np.arange(len(y)), y].sum()
    played = sum(row["round_loss"] * row["arrived"] for row in rows)
    assert online.comparators is not None and online.comparators.best == "all"
    assert played - loss > 1
    assert rows[-1]["regret_fixed"] == pytest.approx(played - float(loss), abs=0.02 * float(loss))
    assert rows[-1]["regret_fixed"] <= played - loss + 1e-3  # no fixed model loses less than the best


def test_online_gradient_descents_regret_grows_slower_than_time() -> None:
    """Zinkevich 2003, theorem 1, on a convex loss: regret within a multiple of the root of the rounds."""
    made = parts(
        *("streams=steady", "streams.rate=1", "streams.repeat=true", "streams.memory=once", "population.holdout=0"),
        *("strategy=fedogd", "client.batch_size=null", "client.lr=0.3", "rounds=64", "evaluation.every=64"),
        *("evaluation.regret=[fixed]", "evaluation.regret_epochs=20"),
    )
    play(made)
    rows = made.server.state.rows
    assert made.server.online is not None
    made.server.online.in_hindsight(rows, made.server.state.arrays)
    regret = np.array([row["regret_fixed"] for row in rows])
    assert regret[-1] > 0 and regret[-1] / 64 < 0.5 * regret[7] / 8


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("evaluation.regret=[fixed]",),
            "evaluation.regret and evaluation.data_drift are of runs whose data come as streams",
        ),
        (("evaluation.data_drift=5",), "evaluation.data_drift=null"),
        (("streams=steady", "evaluation.regret=[best]"), "evaluation.regret=best"),
        (("streams=steady", "evaluation.data_drift=0"), "evaluation.data_drift=0"),
        (("streams=steady", "evaluation.regret_every=0"), "evaluation.regret_every=0"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*overrides)


def test_a_model_to_compare_with_that_blows_up_is_a_sentence() -> None:
    made = parts(*STREAM, "evaluation.regret=[offline]", "evaluation.regret_every=3", "evaluation.regret_lr=1e40")
    with pytest.raises(FedsimError, match=r"lower evaluation\.regret_lr"):
        play(made)


def test_baselines_are_held_against_nothing(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*STREAM, *HELD, "rounds=2", "baselines=[central]"))
    assert summary["baselines"]["central"]["loss"] > 0


# Forgetting


def columns(**named: list[float]) -> dict[str, np.ndarray]:
    found = {name: np.array(values, dtype=float) for name, values in named.items()}
    return {"round": np.arange(1.0, len(next(iter(found.values()))) + 1), **found}


def test_forgetting_is_that_of_the_concepts_that_were_before() -> None:
    nan = np.nan
    old, new = [0.5, nan, 0.9, 0.7, 0.6], [0.1, nan, 0.2, 0.8, 0.85]
    there = columns(old_concept_accuracy=old, new_concept_accuracy=new, concept=[0, 0, 0, 1, 1])
    events = [{"round": 4}]
    assert verdict(there, events).forgetting == pytest.approx(0.9 - 0.6)
    back = columns(
        old_concept_accuracy=[*old, 0.9], new_concept_accuracy=[*new, 0.3], concept=[0, 0, 0, 1, 1, 0]
    )  # of the new concept, which is the old one now
    assert verdict(back, events).forgetting == pytest.approx(0.85 - 0.3)
    still = columns(old_concept_accuracy=[0.5, 0.6], new_concept_accuracy=[0.1, 0.1], concept=[0, 0])
    assert verdict(still, []).forgetting is None and verdict(columns(detected=[0, 0]), []).forgetting is None


def test_a_drift_that_is_never_recovered_from_counts_as_all_the_rounds_there_were() -> None:
    there = columns(round_accuracy=[0.8] * 6 + [0.2] * 4 + [0.8] * 10 + [0.1] * 5, detected=[0] * 25)
    found = verdict(there, [{"round": 7}, {"round": 21}])
    assert [one.rounds for one in found.recoveries] == [8, None]
    assert found.recovery_rounds(25) == pytest.approx((8 + 5) / 2)


def test_a_run_tells_the_accuracy_in_both_concepts_and_what_was_forgotten(whole: tuple[Path, dict[str, Any]]) -> None:
    rounds, streams = rounds_of(whole[0]), whole[1]["streams"]
    concept, accuracy = rounds["concept"].to_numpy(), rounds["accuracy"].to_numpy()
    assert concept.tolist() == [0] * 4 + [1] * 5
    both = rounds[["old_concept_accuracy", "new_concept_accuracy"]].to_numpy()
    np.testing.assert_array_equal(accuracy, both[np.arange(9), concept.astype(int)])
    assert streams["forgetting"] == pytest.approx(both[:8, 0].max() - both[8, 0])


# Clients


def test_each_clients_own_figures_are_written_down(whole: tuple[Path, dict[str, Any]]) -> None:
    made = parts(*STREAM)
    population = made.population
    assert isinstance(population, StreamedPopulation)
    clients = pd.read_parquet(whole[0] / "clients.parquet")
    came = np.array([sum(len(population.arriving_data(c, r).x) for r in range(1, 10)) for c in range(8)])
    assert clients["judged"].fillna(0).tolist() == came.tolist()
    rounds = rounds_of(whole[0])
    right = (clients["cumulative_accuracy"] * clients["judged"]).sum() / clients["judged"].sum()
    assert right == pytest.approx(rounds["cumulative_accuracy"].iloc[-1])
    worst = clients["prequential_accuracy"].min()
    assert whole[1]["streams"]["clients_worst10"] == pytest.approx(worst)  # a tenth of eight is one
    run = read_run(whole[0])
    assert "at the median of 8 clients" in " ".join(stream_words(run)) and stream_clients(run) is not None


def test_without_streams_these_columns_are_there_and_empty(tmp_path: Path) -> None:
    run_into(tmp_path, tiny())
    clients = pd.read_parquet(tmp_path / "clients.parquet")
    assert clients[["judged", "prequential_accuracy", "cumulative_loss"]].isna().all(axis=None)


# Data drift


def test_rows_and_pictures_become_features() -> None:
    rows, names = described(torch.arange(12.0).reshape(2, 6))
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]] and names[5] == "feature 5"
    picture = torch.zeros(1, 2, 8, 8)
    picture[0, :, :2, 6:] = torch.tensor([1.0, 3.0])[:, None, None]
    fields, names = described(picture)
    assert fields.shape == (1, 16) and fields[0, names.index("field 1,4")] == 2 and fields.sum() == 2
    assert described(torch.zeros(3, 100))[0].shape == (3, 16) and described(torch.zeros(3, 9, 200))[0].shape == (3, 16)
    assert described(torch.zeros(3, 5, dtype=torch.int64))[1] == []
    assert (
        spaced(5, 9).tolist() == [0, 1, 2, 3, 4] and spaced(100, 3).tolist() == [0, 50, 99] and len(spaced(0, 3)) == 0
    )


def test_what_chance_alone_gives_is_what_samples_of_one_distribution_have() -> None:
    draw = np.random.default_rng(0)
    found = [stability_index(draw.normal(size=(400, 5)), draw.normal(size=(300, 5))).mean() for _ in range(60)]
    assert np.mean(found) == pytest.approx(expected_index(400, 300), rel=0.1)


def test_windows_are_held_against_the_first_one(whole: tuple[Path, dict[str, Any]]) -> None:
    table = pd.read_parquet(whole[0] / "data_drift.parquet")
    assert sorted(set(table["round"])) == [4, 6, 8]  # of two rounds, the last one not whole
    assert list(dict.fromkeys(table["feature"])) == [*(f"feature {n}" for n in range(6)), "label", "prediction"]
    population = parts(*STREAM).population
    assert isinstance(population, StreamedPopulation)

    def there(rounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        came = [population.arriving_data(client, round) for round in rounds for client in range(8)]
        return torch.cat([data.x for data in came]).numpy(), torch.cat([data.y for data in came]).numpy()

    (x, y), (new_x, new_y) = there((1, 2)), there((5, 6))
    rows = table[table["round"] == 6].set_index("feature")
    np.testing.assert_allclose(rows["stability_index"].iloc[:6], stability_index(x, new_x))
    label = index_of_counts(np.bincount(y, minlength=3), np.bincount(new_y, minlength=3))
    assert rows.loc["label", "stability_index"] == pytest.approx(label) and np.isnan(rows.loc["label", "wasserstein"])
    assert rows.loc["prediction", "examples"] == len(new_x) == rows.loc["label", "examples"]


def test_inputs_that_move_are_told_and_what_stays_is_not(tmp_path: Path) -> None:
    chosen = ("streams=steady", "streams.rate=8", "streams.repeat=true", "population.holdout=0", "rounds=20")
    drift = ("drift=sudden", "drift.at=11", "drift.kind=brightness", "drift.strength=3")
    run_into(tmp_path, tiny(*chosen, *drift, "evaluation.data_drift=5"))
    table = pd.read_parquet(tmp_path / "data_drift.parquet").pivot(
        index="feature", columns="round", values="stability_index"
    )
    features = [name for name in table.index if name.startswith("feature")]
    assert (table.loc[features, 10] < LARGE).all() and (table.loc[features, [15, 20]] > LARGE).all(axis=None)
    assert table.loc["label"].max() < LARGE
    run = read_run(tmp_path)
    words = " ".join(movement_words(run))
    assert "first in the window that ended with round 15" in words and "Siddiqi 2006" in words
    assert movement_rows(run)[0][4] == "15" and data_drift(run) is not None


def test_without_a_report_nothing_is_said_of_data_drift(tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*STREAM, "rounds=2"))
    run = read_run(tmp_path)
    assert movement_words(run) == [] and movement_rows(run) == [] and data_drift(run) is None
    assert Movement().table()["round"].to_pylist() == []


def test_the_report_tells_what_the_run_was_held_against(whole: tuple[Path, dict[str, Any]]) -> None:
    run = read_run(whole[0])
    words, rows = " ".join(stream_words(run)), compared_rows(run)
    assert [row[0] for row in rows] == [
        "This run",
        "The best fixed model in hindsight",
        "A model trained anew, in one place, on all so far",
    ]
    assert (
        "one trained in one place on all that came" in words
        and "lost least over all rounds" in words
        and "every 3 rounds" in words
    )
    figure = stream(run)
    assert figure is not None and "best fixed model (fading)" in [text.get_text() for text in figure.legends[0].texts]
    text = (whole[0] / "report.html").read_text()
    assert "Regret an example" in text and "What moved most" in text


def test_a_regression_is_judged_and_held_against_others_too(tmp_path: Path) -> None:
    chosen = ("dataset=river_streams", "dataset.stream=Friedman", "streams=steady", "rounds=6", "model=linear")
    try:
        cfg = config(*TINY[2:], *chosen, *HELD, "partition=iid")
        summary = run_into(tmp_path, cfg)
    except FedsimError as error:
        pytest.skip(str(error))
    assert summary["streams"]["regret_offline"] is not None


# What predictions cost


def test_a_forward_pass_is_counted_by_the_example() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3, bias=False))
    assert count_prediction(model, torch.zeros(4, 6)) == 2 * (6 * 5 + 5 * 3)


def test_what_predictions_cost_is_as_by_hand() -> None:
    """Two devices; 30 and 10 examples in 3 and 1 rounds of 100 s; the second had to be sent the model once."""
    one = np.ones(2)
    hardware = Hardware(
        kind=np.zeros(2, np.int64),
        flops=np.array([1e6, 2e6]),
        memory=one,
        down=np.array([1000.0, 500.0]),
        up=np.array([100.0, 50.0]),
        latency=np.array([0.1, 0.2]),
        compute_watts=np.array([2.0, 4.0]),
        down_watts=np.array([1.0, 3.0]),
        up_watts=np.array([5.0, 6.0]),
        battery=one,
        charge_watts=one,
        failures=0 * one,
    )
    asked = Asked(np.array([30.0, 10.0]), np.array([3.0, 1.0]), np.array([0.0, 1.0]), 1e4, 2000.0, 20.0, 100.0)
    found = prediction_costs(asked, hardware)
    online = {
        "seconds": (30 * 0.01 + 10 * 0.005) / 40,
        "joules": 30 * 0.01 * 2 + 10 * 0.005 * 4 + (0.2 + 2000 / 500) * 3,
        "bytes": 2000,
    }
    assert found["online"] == pytest.approx(online)
    assert found["device_batch"] == pytest.approx({**online, "seconds": online["seconds"] + 50})
    up = [3 * 0.1 + 30 * 20 / 100, 0.2 + 10 * 20 / 50]
    down = [3 * 0.1 + 30 * 4 / 1000, 0.2 + 10 * 4 / 500]
    server = {
        "seconds": (30 * (up[0] + down[0]) / 3 + 10 * (up[1] + down[1])) / 40 + 50,
        "joules": up[0] * 5 + up[1] * 6 + down[0] * 1 + down[1] * 3,
        "bytes": 40 * 24,
    }
    assert found["server_batch"] == pytest.approx(server)


def test_a_run_on_phones_tells_what_its_predictions_would_cost(tmp_path: Path) -> None:
    there = ("streams=steady", "streams.rate=2", "streams.repeat=true", "population.holdout=0", "rounds=9")
    phones = (*there, "fleet=phones", "sampler=fixed", "sampler.cohort_size=2", "sampler.fraction=null")
    summary = run_into(tmp_path / "whole", tiny(*phones))
    told = summary["prediction"]
    assert told["online"]["seconds"] < told["server_batch"]["seconds"] and told["online"]["bytes"] > 0
    run_into(tmp_path / "part", tiny(*phones, "rounds=4"))
    assert resume(tmp_path / "part", rounds=9)["prediction"] == told
    rows = prediction_rows(read_run(tmp_path / "whole"))
    assert [row[0] for row in rows] == [
        "On the device, as each comes",
        "On the device, once a round",
        "Sent to the server, once a round",
    ]
    everybody = run_into(tmp_path / "all", tiny(*there, "fleet=phones", "availability=always", "sampler=all"))
    assert everybody["prediction"]["online"]["bytes"] == 0  # all train, and have the model


def test_without_a_fleet_predictions_cost_nothing_that_is_known(whole: tuple[Path, dict[str, Any]]) -> None:
    assert whole[1]["prediction"] is None and prediction_rows(read_run(whole[0])) == []


# Detectors on clients


def test_detectors_on_clients_vote_in_a_run_and_go_on_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("river")
    stream = (
        "streams=steady",
        "streams.rate=4",
        "streams.repeat=true",
        "streams.memory_size=20",
        "population.holdout=0",
    )
    watch = ("detector=page_hinkley", "detector.where=clients", "detector.hand=4", "detector.votes=0.5")
    drift = ("drift=sudden", "drift.at=20", "rounds=32", "evaluation.every=32")
    summary = run_into(tmp_path / "whole", tiny(*stream, *watch, *drift))
    assert summary["streams"]["false_alarms"] == 0 and summary["streams"]["detection_delay"] < 6
    run_into(tmp_path / "part", tiny(*stream, *watch, *drift, "rounds=21"))
    again = resume(tmp_path / "part", rounds=32)
    assert again["streams"]["detection_delay"] == summary["streams"]["detection_delay"]
    assert rounds_of(tmp_path / "part")["detected"].tolist() == rounds_of(tmp_path / "whole")["detected"].tolist()
