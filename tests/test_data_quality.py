"""Labels that are wrong, guessed or lacking, and inputs that are missing: by hand, against other libraries, and in whole runs."""

from __future__ import annotations

import builtins
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import parts, resume, run_into, tiny, tiny_dataset
from sklearn.impute import SimpleImputer
from test_online_runs import rounds_of
from test_resume import model_of
from torch import Tensor

from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset, Examples
from fedsim.data.missing import holes, impute
from fedsim.results.label_words import came_words, label_words, missing_words
from fedsim.streams.asking import Purse
from fedsim.streams.cleaning import ConfidentLearning
from fedsim.streams.guessing import LabellingFunctions, PseudoLabels
from fedsim.streams.notes import Notes, as_state, blank, from_state
from fedsim.streams.population import StreamedPopulation
from fedsim.types import FedsimError, MissingPackageError

pytestmark = pytest.mark.usefixtures("no_pictures")

STREAM = (
    *("streams=poisson", "streams.rate=6", "streams.repeat=true", "streams.memory_size=30", "population.holdout=0"),
    *("rounds=8",),
)
CLEANED = (*STREAM, "corruption=label_noise", "corruption.label_noise=0.3", "cleaning=confident", "cleaning.after=2")
GUESSED = (*STREAM, "streams.label_missing=0.7", "unlabelled=pseudo_labels", "unlabelled.confidence=0.8")


# Missing inputs


@pytest.mark.parametrize("shape", [(50, 7), (50, 3, 6), (50, 2, 4, 5)])
def test_the_mean_that_is_filled_in_is_scikit_learns(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, missing = torch.randn(shape, generator=draw), torch.rand(shape, generator=draw) < 0.4
    missing[:, 1] = True  # which no row has
    imputer = SimpleImputer(keep_empty_features=True)
    expected = imputer.fit_transform(x.masked_fill(missing, torch.nan).flatten(1).numpy())
    assert impute(x, missing, "mean").flatten(1).numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(impute(x, missing, "zero"), torch.where(missing, 0, x))


@pytest.mark.parametrize(
    ("shape", "sensors"), [((40, 60), 60), ((40, 30, 8), 30), ((40, 3, 9, 9), 81)], ids=["table", "series", "image"]
)
def test_a_broken_sensor_measures_nothing_in_any_row_or_split(shape: tuple[int, ...], sensors: int) -> None:
    missing = holes(torch.Size(shape), "sensors", 0.3, 0, 5, "train")
    assert torch.equal(missing, holes(torch.Size(shape), "sensors", 0.3, 0, 5, "held-out"))
    assert (missing == missing[0]).all()
    own = missing[0] if len(shape) == 2 else missing[0][:, 0] if len(shape) == 3 else missing[0][0]
    assert own.numel() == sensors and 0.1 * sensors < own.sum() < 0.55 * sensors
    if len(shape) == 3:
        assert (missing[0] == own[:, None]).all()
    if len(shape) == 4:
        assert (missing[0] == own).all()
    assert not torch.equal(missing, holes(torch.Size(shape), "sensors", 0.3, 0, 6, "train"))


def test_values_are_missing_where_they_always_were() -> None:
    """The draws of corruption.missing before it had kinds."""
    from fedsim.rng import generator

    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)) + 5
    spoilt, _ = Corruption(missing=0.3).apply(
        x, torch.zeros(30), client=2, num_clients=4, num_classes=2, seed=9, training=True
    )
    chance = torch.rand(x.shape, generator=generator(9, 0, 2, "corruption/missing/train"))
    assert torch.equal(spoilt, x.masked_fill(chance < 0.3, 0))


def tiny_images() -> Dataset:
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(1, 256, (120, 2, 6, 6), generator=draw, dtype=torch.uint8)
    y = (x[:, 0].float().mean((1, 2)) > 128).long()
    from fedsim.data.dataset import Normalize

    return Dataset(
        "pictures",
        Examples(x[:90], y[:90]),
        Examples(x[90:], y[90:]),
        "classification",
        ("dark", "light"),
        Normalize(0.5, 0.25),
    )


@pytest.mark.parametrize("target", ["helpers.tiny_dataset", "test_data_quality.tiny_images"])
@pytest.mark.parametrize("kind", ["values", "sensors"])
def test_the_model_is_told_which_values_are_missing(target: str, kind: str) -> None:
    chosen = (
        "corruption=missing",
        "corruption.missing=0.4",
        "corruption.indicator=true",
        f"corruption.missing_kind={kind}",
    )
    made = parts(f"dataset._target_={target}", *chosen, "corruption.feature_noise=0.5", "population.holdout=0.2")
    clean = parts(f"dataset._target_={target}", "population.holdout=0.2")
    shape = clean.population.dataset.input_shape
    assert made.population.dataset.input_shape == (2 * shape[0], *shape[1:])
    for data in (made.population.training_data(3), made.population.holdout_data(3)):
        x, marks = data.x.chunk(2, 1)
        assert set(marks.unique().tolist()) == {0.0, 1.0} and torch.equal(x == 0, marks == 1)
    test = made.population.preprocess(made.population.dataset.test.x)
    assert torch.equal(test[:, : shape[0]], clean.population.preprocess(clean.population.dataset.test.x))
    assert (test[:, shape[0] :] == 0).all()


def test_broken_sensors_cost_and_marks_are_learnt_from(tmp_path: Path) -> None:
    chosen = ("corruption=broken_sensors", "corruption.missing=0.5", "rounds=6", "population.holdout=0.2")
    summary = run_into(tmp_path, tiny(*chosen))
    whole = run_into(tmp_path / "b", tiny("rounds=6", "population.holdout=0.2"))
    assert summary["federated"]["accuracy_mean"] < whole["federated"]["accuracy_mean"]
    assert summary["failures"]["count"] == 0 and summary["num_parameters"] > whole["num_parameters"]
    words = "50.0% of the sensors of every client, filled with 0, the mean of the dataset, and marked as missing"
    assert missing_words(summary) == words and missing_words(whole) is None
    assert missing_words({"config": {"corruption": {"missing": 0.1, "imputation": "mean", "noisy_clients": 0.5}}}) == (
        "10.0% of the input values of 50.0% of the clients, filled with the client's own mean"
    )


# Doubting labels


def confident_off_diagonal(labels: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """arXiv 1911.00068, equations 1 and 2, written down as they stand: rows of the confident joint off its diagonal."""
    classes = answers.shape[1]
    thresholds = [answers[labels == j, j].mean() if (labels == j).any() else np.inf for j in range(classes)]
    off = np.zeros(len(labels), bool)
    for row, (label, said) in enumerate(zip(labels, answers, strict=True)):
        above = [j for j in range(classes) if said[j] >= thresholds[j] - 1e-6]
        if above:
            off[row] = max(above, key=lambda j: said[j]) != label
    return off


def noisy_rows(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (300,) of three classes, a fifth of them wrong; probabilities (300, 3) of a model that is often right; truth."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 3, 300)
    logits = draw.normal(0, 1, (300, 3)) + 4 * np.eye(3)[truth]
    answers = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.where(draw.random(300) < 0.2, (truth + 1) % 3, truth)
    return labels, answers, truth


@pytest.mark.parametrize("seed", range(5))
def test_what_looks_wrong_is_what_the_paper_says(seed: int) -> None:
    pytest.importorskip("cleanlab")
    labels, answers, truth = noisy_rows(seed)
    flagged = ConfidentLearning("confident_learning", 0, 1).flag(labels, answers, 1)
    expected = confident_off_diagonal(labels, answers)
    assert (
        flagged == expected
    ).mean() > 0.99  # cleanlab breaks ties between classes above their threshold by its own order
    wrong = labels != truth
    assert flagged[wrong].mean() > 0.8 and wrong[flagged].mean() > 0.8


def test_cleaning_waits_and_never_leaves_nothing() -> None:
    pytest.importorskip("cleanlab")
    labels, answers, _ = noisy_rows(0)
    part = ConfidentLearning(after=3, least=20)
    assert not part.flag(labels, answers, 3).any() and part.flag(labels, answers, 4).any()
    assert not part.flag(labels[:19], answers[:19], 4).any()
    assert not part.flag(np.zeros(30, int), answers[:30], 4).any()
    every = ConfidentLearning("confident_learning", 0, 1)
    assert not every.flag(np.array([0, 1]), np.array([[0.1, 0.9], [0.9, 0.1]]), 1).all()
    assert not part.flag(np.empty(0, int), np.empty((0, 3)), 9).any()


def test_without_cleanlab_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_cleanlab(name: str, *rest: Any) -> Any:
        if name.startswith("cleanlab"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_cleanlab)
    with pytest.raises(MissingPackageError, match=r"pip install 'fedsim-flower\[cleaning\]'"):
        parts(*CLEANED)


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("cleanlab")
    folder = tmp_path_factory.mktemp("cleaned")
    return folder, run_into(folder, tiny(*CLEANED))


def test_what_cleaning_leaves_out_is_judged_by_the_truth(cleaned: tuple[Path, dict[str, Any]]) -> None:
    """The counts once more, from what clients wrote down and the rows before and after their corruption."""
    rounds, told = rounds_of(cleaned[0]), cleaned[1]["streams"]
    assert rounds["rows_cleaned"][:2].tolist() == [0, 0] and rounds["rows_cleaned"].sum() == told["rows_cleaned"] > 0
    assert 0 < told["rows_cleaned_wrong"] <= min(told["rows_cleaned"], told["rows_wrong"])
    made = parts(*CLEANED)
    population, grid = made.population, made.grid()
    assert isinstance(population, StreamedPopulation)
    made.server.run(grid)
    truth = tiny_dataset().train.y.numpy()
    sums = Counter[str]()
    for client in range(8):
        notes = from_state(grid.states.committed[client], 3)
        held = population.stream.held(client, 8)
        assert set(notes.seen) >= set(held) and notes.answers.sum(1) == pytest.approx(
            np.ones(len(notes.seen)), abs=1e-5
        )
        data, counts = population.learning_data(client, 8, notes)
        whole = population.training_data(client, 8)
        rows = population.rows(client)[0][population._places(client, 8, held)]
        wrong = whole.y.numpy() != truth[rows]
        answers = notes.answers[np.searchsorted(notes.seen, held)]
        flagged = population.quality.cleaning.flag(whole.y.numpy(), answers, 8)
        assert torch.equal(data.x, whole.x[~flagged]) and torch.equal(data.y, whole.y[~flagged])
        assert list(counts.values()) == [flagged.sum(), (flagged & wrong).sum(), wrong.sum()]
        sums.update(counts)
    assert sums["rows-cleaned"] == made.server.state.rows[-1]["rows_cleaned"] == rounds["rows_cleaned"].iloc[-1]


@pytest.mark.parametrize("chosen", [CLEANED, GUESSED], ids=["cleaned", "guessed"])
def test_it_does_not_depend_on_the_grid_or_a_kill(chosen: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    run_into(tmp_path / "whole", tiny(*chosen, "grid.chunk_size=3"))
    run_into(tmp_path / "wide", tiny(*chosen, "grid=processes", "grid.workers=2", "grid.chunk_size=3"))
    run_into(tmp_path / "stopped", tiny(*chosen, "grid.chunk_size=3", "rounds=3"))
    summary = resume(tmp_path / "stopped", rounds=8)
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "wide") == model_of(tmp_path / "stopped")
    assert rounds_of(tmp_path / "stopped").equals(rounds_of(tmp_path / "whole"))
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["streams"] == whole["streams"]


def test_a_swap_of_classes_is_true_and_noise_that_comes_is_not() -> None:
    swapped = parts(
        *STREAM, "unlabelled=pseudo_labels", "drift=sudden", "drift.at=2", "drift.kind=label_swap"
    ).population
    noisy = parts(
        *STREAM, "unlabelled=pseudo_labels", "drift=sudden", "drift.at=2", "drift.kind=label_noise", "drift.strength=1"
    ).population
    for population, wrong in ((swapped, 0.0), (noisy, 1.0)):
        assert isinstance(population, StreamedPopulation)
        data, positions = population.arriving_data(1, 3), population.stream.arriving(1, 3)
        truth = population._truth(data, positions, np.full(len(positions), 3))
        assert len(truth) and (truth != data.y.numpy()).mean() == wrong


# Guessing labels


def test_pseudo_labels_are_sure_answers() -> None:
    answers = np.array([[0.96, 0.04], [0.5, 0.5], [0.04, 0.96], [0.95, 0.05]])
    assert PseudoLabels(0.95).guess(torch.zeros(4, 1), answers, 2).tolist() == [0, -1, 1, 0]
    assert PseudoLabels(0.95).guess(torch.zeros(0, 1), np.empty((0, 2)), 2).tolist() == []


def fixed(votes: list[int]) -> Any:
    return lambda x: torch.tensor(votes[: len(x)])


def test_functions_are_outvoted() -> None:
    votes = [[0, 1, 2, -1, 0, -1], [0, 1, 1, -1, 1, 2], [1, -1, 0, -1, -1, -1]]
    found = LabellingFunctions([fixed(own) for own in votes]).guess(torch.zeros(6, 2), np.empty((6, 0)), 3)
    expected = []
    for column in zip(*votes, strict=True):
        first = Counter(vote for vote in column if vote >= 0).most_common(2)
        decided = len(first) == 1 or (len(first) == 2 and first[0][1] > first[1][1])
        expected.append(first[0][0] if decided else -1)
    assert found.tolist() == expected == [0, 1, -1, -1, -1, 2]


@pytest.mark.parametrize(
    "votes", [torch.tensor([0, 3]), torch.tensor([0, -2]), torch.tensor([0.0, 1.0]), torch.tensor([0])]
)
def test_a_function_that_gives_no_labels_is_told_of(votes: Tensor) -> None:
    with pytest.raises(
        FedsimError, match=r"unlabelled\.functions must give a whole number for each row, from 0 to 2, or -1"
    ):
        LabellingFunctions([lambda x: votes]).guess(torch.zeros(2, 1), np.empty((2, 0)), 3)


def wrong_of_some(x: Tensor) -> Tensor:
    """A labelling function that gives no labels where the first row is as it is for some clients."""
    return torch.zeros(len(x)).long() if len(x) and x[0, 0] > 0 else torch.full((len(x),), 7)


def wrong_of_all(x: Tensor) -> Tensor:
    return torch.full((len(x),), 7)


def test_a_function_that_raises_is_a_failure_of_its_client_and_a_sentence_where_it_is_all_of_them(
    tmp_path: Path,
) -> None:
    chosen = ("streams.label_missing=0.5", "unlabelled=labelling_functions", "grid.chunk_size=2")
    target = "unlabelled.functions=[{_target_: test_data_quality.NAME, _partial_: true}]"
    summary = run_into(tmp_path, tiny(*STREAM, *chosen, target.replace("NAME", "wrong_of_some")))
    assert summary["failures"]["count"] > 0 and "wrong_of_some of unlabelled" in summary["failures"]["first_reason"]
    assert rounds_of(tmp_path)["labels_guessed"].iloc[-1] > 0
    with pytest.raises(FedsimError, match=r"all clients to whom anything came in round 1 failed.*wrong_of_all"):
        run_into(tmp_path / "b", tiny(*STREAM, *chosen, target.replace("NAME", "wrong_of_all")))


def largest_of_three(x: Tensor) -> Tensor:
    """A labelling function: the class that a nearest-centre rule knows of three features, where it is clear."""
    return torch.where(x[:, 0] > 0, 0, -1)


def test_clients_without_any_label_learn_from_functions(tmp_path: Path) -> None:
    functions = "unlabelled.functions=[{_target_: test_data_quality.largest_of_three, _partial_: true}]"
    chosen = ("streams.label_missing=1", "unlabelled=labelling_functions", functions)
    summary = run_into(tmp_path, tiny(*STREAM, *chosen, "grid.chunk_size=3"))
    run_into(tmp_path / "wide", tiny(*STREAM, *chosen, "grid.chunk_size=3", "grid=processes", "grid.workers=2"))
    assert model_of(tmp_path) == model_of(tmp_path / "wide")
    told = summary["streams"]
    assert told["labels_known"] == 0 and 0 < told["labels_guessed"] < told["examples_arrived"]
    assert rounds_of(tmp_path)["labels_guessed"].iloc[-1] == told["labels_guessed"]
    assert rounds_of(tmp_path)["num_examples"].iloc[-1] > 0 and summary["failures"]["count"] == 0
    assert "rows without a label were learnt with a guess (labelling functions)" in label_words(told)[0]


def test_guesses_are_those_of_the_model_before_the_round_and_give_way_to_labels() -> None:
    chosen = (
        *STREAM,
        "streams.label_delay=2",
        "unlabelled=pseudo_labels",
        "unlabelled.confidence=0.7",
        "streams.memory=all",
    )
    made = parts(*chosen)
    population, models = made.population, [made.server.state.arrays]
    assert isinstance(population, StreamedPopulation)
    made.server.on_round = lambda row: models.append(made.server.state.arrays)
    grid = made.grid()
    made.server.run(grid)
    guessed = right = 0
    for client in range(8):
        expected: dict[int, int] = {}
        for round in range(1, 9):
            data, positions = population.arriving_data(client, round), population.stream.arriving(client, round)
            weight, bias = (models[round - 1][name] for name in sorted(models[0], reverse=True))
            answers = (data.x.flatten(1) @ weight.T + bias).softmax(1)
            for position, answer, y in zip(positions.tolist(), answers, data.y.tolist(), strict=True):
                if answer.max() >= 0.7:
                    expected[position] = int(answer.argmax())
                    right += int(expected[position] == y)
        notes = from_state(grid.states.committed[client], 3)
        assert dict(zip(notes.guessed.tolist(), notes.guesses.tolist(), strict=True)) == expected
        guessed += len(expected)
        came = population.stream.came(client, np.arange(population.stream.counts(8)[client]))
        used = [p for p in range(len(came)) if came[p] <= 6 or p in expected]
        data, _ = population.learning_data(client, 8, notes)
        labels = population.training_data(client, 10).y.tolist()  # by when all labels of these have come
        assert data.y.tolist() == [labels[p] if came[p] <= 6 else expected[p] for p in used]
    told = made.server.online.describe(made.server.state.rows) if made.server.online else {}
    assert (told["labels_guessed"], told["guesses_right"]) == (guessed, right) and guessed > 0


# What a device keeps, and what is said of it


def test_notes_are_kept_as_they_are_and_alike_in_shape() -> None:
    draw = np.random.default_rng(0)
    notes = Notes(
        np.array([0, 5]),
        np.array([1, 7, 8]),
        np.array([2, 0, 1]),
        np.arange(9),
        draw.random((9, 3)).astype(np.float32),
        Purse(0.7, 2.5),
    )
    state = as_state(notes)
    assert all(name.startswith("stream/") for name in state) and state["stream/seen"].shape == (16,)
    for kept, own in zip(from_state(state, 3), notes, strict=True):
        assert np.array_equal(kept, own)
    for kept, own in zip(from_state(as_state(blank(3)), 3), from_state({}, 3), strict=True):
        assert np.array_equal(kept, own)
    fewer = as_state(notes._replace(asked=notes.asked[:1]))
    assert {name: array.shape for name, array in fewer.items()} == {name: array.shape for name, array in state.items()}


def test_what_an_algorithm_keeps_lies_beside_the_notes(tmp_path: Path) -> None:
    chosen = (
        *GUESSED,
        "strategy=adagrad_norm",
        "compression=topk",
        "compression.keep=0.2",
        "compression.error_feedback=true",
    )
    made = parts(*chosen)
    grid = made.grid()
    made.server.run(grid)
    kept = grid.states.committed[0]
    assert {"squares", "stream/guessed"} <= set(kept) and any(name.startswith("codec/") for name in kept)


def test_what_a_report_says() -> None:
    told: dict[str, Any] = {
        "examples_arrived": 1000,
        "labels": "random",
        "label_budget": 0.1,
        "labels_asked": 95,
        "labels_known": 95,
    }
    assert came_words(told) == (
        "1,000 examples came, each judged before it was learnt from; clients bought the labels of 95 (9.5%), chosen by random on a "
        "budget of 10.0%."
    )
    guessed = {"labels_guessed": 200, "guesses_right": 150, "unlabelled": "pseudo_labels"}
    cleaned = {"rows_cleaned": 40, "rows_cleaned_wrong": 30, "rows_wrong": 60}
    assert label_words(guessed | cleaned) == [
        "200 rows without a label were learnt with a guess (pseudo labels), 75.0% of which were right.",
        "Cleaning left out 40 rows, counted anew in each round: 75.0% of them had a wrong label, "
        "50.0% of all wrong labels were found.",
    ]
    assert label_words({"labels_guessed": 0}) == ["No row without a label got a guess."]
    assert label_words(dict.fromkeys(cleaned, 0)) == ["Cleaning left no row out."]
    assert "though no label was wrong" in label_words(cleaned | {"rows_wrong": 0, "rows_cleaned_wrong": 0})[0]
    assert "is not told" in label_words(dict.fromkeys(cleaned, None))[0]
    assert label_words({}) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("cleaning=confident",), "cleaning=confident is of rows that come as a stream"),
        (("unlabelled=pseudo_labels",), "unlabelled=pseudo_labels is of rows that come as a stream"),
        (("streams=steady", "unlabelled=labelling_functions"), "unlabelled.functions holds no functions"),
        (
            ("streams=steady", "unlabelled=pseudo_labels", "unlabelled.confidence=2"),
            "unlabelled.confidence=2 is out of range",
        ),
        (("streams=steady", "cleaning=confident", "cleaning.rule=all"), "cleaning.rule=all is not known"),
        (
            ("streams=steady", "cleaning=confident", "dataset._target_=test_label_budget.tiny_regression"),
            "guesses or doubts classes",
        ),
        (("streams=steady", "corruption=missing", "corruption.imputation=mean"), "set corruption.imputation=zero"),
        (
            ("corruption=missing", "corruption.imputation=mean", "privacy=example", "privacy.noise_multiplier=1"),
            "which privacy=example does not cover",
        ),
        (
            (
                "streams=steady",
                "corruption=missing",
                "corruption.indicator=true",
                "drift=sudden",
                "drift.kind=brightness",
            ),
            "set corruption.indicator=false",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*overrides)
