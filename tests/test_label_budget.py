"""Labels that clients buy: which ones, how many, by which model; the same on every grid and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from helpers import parts, resume, run_into, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binom, entropy
from test_online_runs import rounds_of
from test_resume import model_of

from fedsim import flower
from fedsim.client import ContextStates, make_client_app
from fedsim.data.dataset import Dataset
from fedsim.fleet.draws import uniforms
from fedsim.plan import warnings_of
from fedsim.results.label_words import came_words
from fedsim.streams.arrivals import Steady, Unstreamed
from fedsim.streams.asking import AllLabels, Purse, RandomLabels, UncertainLabels, certainty
from fedsim.streams.cleaning import ConfidentLearning
from fedsim.streams.guessing import PseudoLabels
from fedsim.streams.notes import from_state
from fedsim.streams.population import StreamedPopulation
from fedsim.streams.quality import Quality
from fedsim.streams.responses import AskForLabels
from fedsim.streams.stream import Stream
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

STREAM = (
    *("streams=poisson", "streams.rate=4", "streams.repeat=true", "streams.memory_size=10", "population.holdout=0"),
    *("rounds=8", "labels=uncertainty", "labels.budget=0.3"),
)


def answers_of(seed: int, rows: int, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


# Which rows


def test_certainty_by_hand() -> None:
    answers = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.0, 1.0, 0.0]])
    assert certainty(answers, "confidence") == pytest.approx([0.7, 1 / 3, 1])
    assert certainty(answers, "margin") == pytest.approx([0.5, 0, 1])
    assert certainty(answers, "entropy") == pytest.approx([1 - entropy(row, base=3) for row in answers])


@pytest.mark.parametrize("measure", ["margin", "confidence", "entropy"])
def test_the_threshold_follows_the_stream_as_in_the_paper(measure: str) -> None:
    """Against the paper's figure 6, written once more as it stands, with the whole budget to spend."""
    answers, positions = answers_of(0, 300), np.arange(300)
    asked, purse = UncertainLabels(1.0, measure, 0.05, 0.5).ask(3, 7, positions, answers, 1.0, Purse())
    theta, expected = 1.0, []
    for position in range(300):
        draw = uniforms(3, "label threshold", np.array([7]), np.array([position]))[0]
        sure = certainty(answers[position : position + 1], measure)[0]
        expected.append(bool(sure < theta * (1 + 0.5 * ndtri(draw))))
        theta = theta * 0.95 if expected[-1] else theta * 1.05
    assert asked.tolist() == expected and 50 < sum(expected) < 250
    assert purse.threshold == pytest.approx(theta, rel=1e-12)


def test_without_chance_the_least_certain_are_asked_for() -> None:
    answers = np.array([[0.9, 0.1], [0.55, 0.45], [0.8, 0.2], [0.51, 0.49]])
    asked, _ = UncertainLabels(1.0, spread=0.0).ask(0, 0, np.arange(4), answers, 1.0, Purse(threshold=0.5))
    assert asked.tolist() == [False, True, False, True]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1), st.integers(0, 5), st.integers(1, 120), st.floats(1, 4))
def test_no_more_than_the_budget_of_what_came_is_ever_bought(
    budget: float, seed: int, rows: int, factor: float
) -> None:
    asked, _ = UncertainLabels(budget).ask(seed, 1, np.arange(rows), answers_of(seed, rows), factor, Purse())
    share = min(1.0, budget * factor)
    assert (np.cumsum(asked) <= share * np.arange(1, rows + 1) + 1e-6).all()


@pytest.mark.parametrize("labels", [RandomLabels(0.3), UncertainLabels(0.3)])
def test_rows_may_come_in_any_pieces(labels: Any) -> None:
    answers, positions = answers_of(1, 90), np.arange(90)
    whole, end = labels.ask(0, 5, positions, answers, 1.0, Purse())
    purse, pieces = Purse(), []
    for part in (slice(0, 1), slice(1, 40), slice(40, 40), slice(40, 90)):
        asked, purse = labels.ask(0, 5, positions[part], answers[part], 1.0, purse)
        pieces.append(asked)
    assert np.concatenate(pieces).tolist() == whole.tolist()
    assert purse == pytest.approx(end)


def test_a_coin_buys_its_budget_on_average() -> None:
    asked, _ = RandomLabels(0.2).ask(0, 0, np.arange(20_000), np.empty((20_000, 0)), 1.0, Purse())
    assert binom.ppf(5e-7, 20_000, 0.2) <= asked.sum() <= binom.isf(5e-7, 20_000, 0.2)
    raised, _ = RandomLabels(0.2).ask(0, 0, np.arange(2_000), np.empty((2_000, 0)), 3.0, Purse())
    assert (raised >= asked[:2_000]).all() and binom.ppf(5e-7, 2_000, 0.6) <= raised.sum() <= binom.isf(
        5e-7, 2_000, 0.6
    )


def test_memory_holds_rows_that_were_asked_for_and_no_others() -> None:
    asked, guessed = np.array([0, 3, 4, 9]), np.array([1, 9])
    for memory, expected in (("window", [3, 4, 9]), ("all", [0, 3, 4, 9])):
        stream = Stream(Steady(rate=5.0, memory=memory, memory_size=3), 0, np.array([50]))
        assert stream.held(0, 2, asked).tolist() == expected
    stream = Stream(Steady(rate=5.0, memory="once", label_delay=1.0), 0, np.array([50]))
    came = stream.came(0, np.arange(10))
    assert stream.held(0, 2, asked).tolist() == [p for p in asked.tolist() if came[p] == 1]  # a round later
    both = sorted({p for p in asked.tolist() if came[p] == 1} - {1, 9} | {p for p in (1, 9) if came[p] == 2})
    assert stream.held(0, 2, asked, guessed).tolist() == both
    assert stream.waiting(0, 2, asked).tolist() == [p for p in asked.tolist() if came[p] == 2]
    assert stream.is_labelled(0, np.arange(10), 2, asked).tolist() == [p in asked and came[p] == 1 for p in range(10)]


# Whole runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_into(folder, tiny(*STREAM))


def test_what_was_bought_is_counted(whole: tuple[Path, dict[str, Any]]) -> None:
    rounds, streams = rounds_of(whole[0]), whole[1]["streams"]
    bought, came = rounds["labels_asked"], rounds["arrived"].cumsum()
    assert (
        (bought.diff().dropna() >= 0).all() and (bought <= 0.3 * came).all() and bought.iloc[-1] > 0.15 * came.iloc[-1]
    )
    assert streams["labels_asked"] == streams["labels_known"] == bought.iloc[-1]
    assert streams["labels_missing"] == streams["examples_arrived"] - bought.iloc[-1]
    assert whole[1]["failures"]["count"] == 0
    assert "by uncertainty on a budget of 30.0%" in came_words(streams)


def test_what_is_bought_does_not_depend_on_the_grid(tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    run_into(tmp_path, tiny(*STREAM, "grid=processes", "grid.workers=2", "grid.chunk_size=3"))
    run_into(tmp_path / "b", tiny(*STREAM, "grid.chunk_size=3"))
    assert model_of(tmp_path) == model_of(tmp_path / "b")
    exact = ["labels_asked", "arrived", "cohort_size", "num_examples"]
    assert rounds_of(tmp_path)[exact].equals(rounds_of(whole[0])[exact])


@pytest.mark.parametrize("more", [(), ("detector=page_hinkley", "detector.margin=0", "response=ask_for_labels")])
def test_a_stopped_run_goes_on_with_the_same_bits(more: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("river")
    run_into(tmp_path / "whole", tiny(*STREAM, *more))
    run_into(tmp_path / "a", tiny(*STREAM, *more, "rounds=3"))
    summary = resume(tmp_path / "a", rounds=8)
    assert model_of(tmp_path / "a") == model_of(tmp_path / "whole")
    assert rounds_of(tmp_path / "a").equals(rounds_of(tmp_path / "whole"))
    assert summary["streams"]["labels_asked"] == rounds_of(tmp_path / "whole")["labels_asked"].iloc[-1]


def test_labels_are_bought_by_the_model_before_the_round() -> None:
    """Every choice of every client once more, from the models after each round and the part itself."""
    made = parts(*STREAM)
    population, models = made.population, [made.server.state.arrays]
    assert isinstance(population, StreamedPopulation)
    made.server.on_round = lambda row: models.append(made.server.state.arrays)
    grid = made.grid()
    made.server.run(grid)
    for client in range(8):
        purse, bought = Purse(), []
        for round in range(1, 9):
            data, positions = population.arriving_data(client, round), population.stream.arriving(client, round)
            if not len(positions):
                continue
            weight, bias = (models[round - 1][name] for name in sorted(models[0], reverse=True))
            answers = (data.x.flatten(1) @ weight.T + bias).softmax(1).numpy()
            asked, purse = population.quality.labels.ask(0, client, positions, answers, 1.0, purse)
            bought += positions[asked].tolist()
        notes = from_state(grid.states.committed[client], 3)
        assert notes.asked.tolist() == bought and notes.seen.size == 0
        data, counts = population.learning_data(client, 8, notes)
        assert (len(data.x), counts) == (min(10, len(bought)), {})


@pytest.mark.parametrize("memory", ["once", "reservoir", "all"])
def test_only_who_has_bought_something_trains(memory: str, tmp_path: Path) -> None:
    chosen = ("labels=random", "labels.budget=0.1", "streams.rate=1", f"streams.memory={memory}")
    stream = [one for one in STREAM if not one.startswith("labels")]
    summary = run_into(tmp_path, tiny(*stream, *chosen))
    rounds = rounds_of(tmp_path)
    assert summary["failures"]["count"] == 0 and 0 < rounds["cohort_size"].max() < 8
    fresh = rounds["labels_asked"].diff().fillna(rounds["labels_asked"].iloc[0])
    if memory == "once":
        assert rounds["num_examples"].tolist() == fresh.tolist()
    if memory == "all":
        assert rounds["num_examples"].tolist() == rounds["labels_asked"].tolist()


def test_a_real_node_takes_notes_in_its_own_context() -> None:
    """The two messages of a round as Flower would send them to one device, beside a simulated run's first round."""
    made = parts(*STREAM, "rounds=1")
    app, model = make_client_app(made.devices), flower.to_record(made.server.state.arrays)
    flower.enter_runtime()
    asked, grid = [], made.grid()
    contexts = [flower.node_context(0) for _ in range(8)]
    for client, context in enumerate(contexts):
        context.node_config["partition-id"] = client
        content = RecordDict({flower.ARRAYS: model, flower.CONFIG: ConfigRecord({"server-round": 1, "fold": ""})})
        message = Message(content, client, flower.EVALUATE_STREAM)
        flower.stamp(message, 1)
        metrics = app(message, context).content[flower.METRICS]
        asked.append(int(metrics["labels-asked"]))
    made.server.run(grid)
    for client, context in enumerate(contexts):
        own, theirs = from_state(ContextStates(context).get(client), 3), from_state(grid.states.committed[client], 3)
        assert own.asked.tolist() == theirs.asked.tolist() and len(own.asked) == asked[client]
        assert own.purse == theirs.purse
    assert made.server.state.rows[0]["labels_asked"] == sum(asked) > 0


def test_labels_that_nobody_knows_are_bought_in_vain(tmp_path: Path) -> None:
    told = run_into(tmp_path, tiny(*STREAM, "streams.label_missing=0.5"))["streams"]
    assert 0 < told["labels_known"] < told["labels_asked"]
    assert "of them in vain" in came_words(told)


def test_a_budget_that_buys_nothing_is_warned_of() -> None:
    told = warnings_of(parts("streams=steady", "streams.rate=2", "rounds=5", "labels=random", "labels.budget=0.05"))
    assert any(one.startswith("labels.budget=0.05 of what comes in 5 rounds is 0.5 labels") for one in told)
    assert not warnings_of(parts("streams=steady", "streams.rate=2", "rounds=5", "labels=random", "labels.budget=0.2"))


def test_a_regression_buys_labels_by_chance(tmp_path: Path) -> None:
    chosen = ("dataset._target_=test_label_budget.tiny_regression", "labels=random", "labels.budget=0.5")
    stream = [one for one in STREAM if not one.startswith("labels")]
    summary = run_into(tmp_path, tiny(*stream, *chosen, "client.lr=0.01"))
    assert summary["streams"]["labels_asked"] > 0 and summary["failures"]["count"] == 0


def tiny_regression() -> Dataset:
    import dataclasses

    from helpers import tiny_dataset

    found = tiny_dataset()
    train, test = (dataclasses.replace(split, y=split.x[:, 0].clone()) for split in (found.train, found.test))
    return Dataset("tiny", train, test, "regression", ())


# Answers to drift, privacy, and what makes no sense


def test_after_an_alarm_the_budget_is_raised_for_a_while() -> None:
    response = AskForLabels(factor=4.0, rounds=3, cool_down=5)
    factors = []
    for round in range(1, 12):
        factors.append(response.budget(round))
        response.hear(round, round in (3, 5, 9))
    assert factors == [1, 1, 1, 4, 4, 4, 1, 1, 1, 4, 4]
    other = AskForLabels(factor=4.0, rounds=3, cool_down=5)
    other.load_state(response.state())
    assert other.budget(12) == 4 and other.budget(13) == 1


def test_an_alarm_buys_more_labels(tmp_path: Path) -> None:
    pytest.importorskip("river")
    chosen = ("streams=steady", "streams.rate=6", "streams.repeat=true", "population.holdout=0", "rounds=24")
    drift = ("drift=sudden", "drift.at=12", "streams.memory_size=20", "detector=adwin", "labels=random")
    run_into(tmp_path, tiny(*chosen, *drift, "labels.budget=0.3", "response=ask_for_labels", "response.rounds=5"))
    rounds = rounds_of(tmp_path)
    alarm = int(rounds["round"][rounds["detected"] > 0].iloc[0])
    fresh = rounds["labels_asked"].diff()
    assert alarm >= 12
    assert (
        fresh[alarm : alarm + 5].mean() > 2 * fresh[: alarm - 1].mean()
    )  # the entry of a round is one less than its number


def test_a_promise_to_clients_covers_what_they_choose_of_their_own(tmp_path: Path) -> None:
    private = ("privacy=user", "privacy.noise_multiplier=1", "privacy.delta=0.01", "sampler=poisson")
    with_labels = run_into(tmp_path, tiny(*STREAM, *private, "sampler.cohort_size=4"))
    without = [one for one in STREAM if not one.startswith("labels")]
    plain = run_into(tmp_path / "b", tiny(*without, *private, "sampler.cohort_size=4"))
    assert with_labels["epsilon"] == plain["epsilon"] is not None
    assert (rounds_of(tmp_path)["cohort_size"] == rounds_of(tmp_path / "b")["cohort_size"]).all()


def test_who_takes_part_under_a_local_promise_tells_nothing_of_rows(tmp_path: Path) -> None:
    private = ("privacy=local", "privacy.noise_multiplier=1", "privacy.delta=0.01")
    few = [one for one in STREAM if not one.startswith("labels")]
    summary = run_into(tmp_path, tiny(*few, *private, "labels=uncertainty", "labels.budget=0.01"))
    rounds = rounds_of(tmp_path)
    assert rounds["labels_asked"].iloc[-1] == 0 and summary["epsilon"] is not None
    assert (rounds["cohort_size"].iloc[2:] == 8).all()  # though none of them has a label


@pytest.mark.parametrize(
    "quality",
    [
        Quality(labels=RandomLabels()),
        Quality(labels=UncertainLabels()),
        Quality(unlabelled=PseudoLabels()),
        Quality(cleaning=ConfidentLearning()),
    ],
)
def test_a_promise_to_examples_does_not_cover_what_one_does_to_others(quality: Quality) -> None:
    with pytest.raises(FedsimError, match="privacy=example does not cover"):
        quality.check(Steady(), "classification", by_example=True)


def test_what_does_nothing_is_never_refused() -> None:
    Quality(AllLabels()).check(Unstreamed(), "next_token", by_example=True)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("labels=random",), "labels=random is of rows that come as a stream; set streams=steady"),
        (("streams=steady", "labels=random", "streams.label_delay=2"), "set streams.label_delay=0"),
        (("streams=steady", "labels=uncertainty", "labels.budget=0"), "labels.budget=0 is out of range"),
        (("streams=steady", "labels=uncertainty", "labels.measure=margins"), r"did you mean margin\?"),
        (
            ("streams=steady", "labels=uncertainty", "dataset._target_=test_label_budget.tiny_regression"),
            "use labels=random",
        ),
        (
            ("streams=steady", "labels=random", "privacy=example", "privacy.epsilon=4"),
            "labels=random decides which rows are learnt",
        ),
        (("streams=steady", "response=ask_for_labels"), "set labels=uncertainty"),
        (("streams=steady", "labels=random", "evaluation.regret=[offline]"), "trains on every label that comes"),
        (("streams=steady", "labels=random", "response=ask_for_labels", "response.factor=0.5"), "at least 1"),
        (
            (
                *("streams=steady", "labels=random", "privacy=user", "privacy.noise_multiplier=1"),
                *("privacy.delta=0.01", "response=ask_for_labels"),
            ),
            "its epsilon would not hold",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*overrides)


def test_a_strategy_with_arrays_of_its_own_may_still_ask_for_labels() -> None:
    made = parts("streams=steady", "labels=random", "response=ask_for_labels", "strategy=fedavgm")
    assert made.server.online is not None and made.server.online.response.kind == "ask_for_labels"
