"""What a report says of a stream, from numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.pictures.stream import stream
from fedsim.results.stream_words import noticed, recovered, stream_title, stream_words

EVENT: dict[str, Any] = {"round": 11, "until": 11, "towards": "new", "kind": "label_swap", "clients": 8}
TOLD = {
    "examples_arrived": 240,
    "labels_known": 200,
    "labels_late": 30,
    "labels_missing": 10,
    "clients_without_examples": 2,
    "clients_exhausted": 0,
}


def run_of(accuracy: list[float], alarms: set[int], events: list[dict[str, Any]]) -> Run:
    rounds = np.arange(1.0, len(accuracy) + 1)
    columns = {
        "round": rounds,
        "round_accuracy": np.array(accuracy),
        "prequential_accuracy": np.array(accuracy),
        "detected": np.isin(rounds, list(alarms)).astype(float),
        "old_concept_accuracy": np.array([0.8] * 10 + [0.5] * (len(accuracy) - 10)),
        "new_concept_accuracy": np.array([0.1] * 10 + [0.7] * (len(accuracy) - 10)),
        "concept": np.array([0.0] * 10 + [1.0] * (len(accuracy) - 10)),
    }
    return Run(
        Path(),
        {"rounds": len(accuracy), "streams": {**TOLD, "drift": events}},
        {},
        columns,
        {"client": np.arange(2.0)},
        [],
        None,
    )


def test_a_dip_its_alarm_and_its_end_are_told() -> None:
    run = run_of([0.8] * 10 + [0.2] * 3 + [0.8] * 12, {4, 12}, [EVENT])
    assert noticed(run, EVENT) == 1
    assert recovered(run, EVENT) == 7  # the first of five rounds on end that are as good as before
    words = " ".join(stream_words(run))
    assert "240 examples came" in words and "Nothing ever came to 2 clients" in words
    assert "the alarm came after 1 round; accuracy was back after 7 rounds" in words
    assert "1 alarm came before anything had drifted" in words
    assert "30.0 points of accuracy were forgotten" in words
    assert "noticed 1 round later, recovered from after 7 rounds" in stream_title(run)
    assert stream(run) is not None


def test_epsilon_over_time_is_in_the_picture_with_the_alarms() -> None:
    run = run_of([0.8] * 10 + [0.2] * 10, {12}, [EVENT])
    run.rounds["epsilon"] = np.linspace(1.0, 4.0, 20)
    figure = stream(run)
    assert figure is not None and len(figure.axes) == 2
    low, high = figure.axes[1].get_ylim()
    assert low <= 1.0 and high >= 4.0, "the whole curve is inside"


def test_what_never_recovers_and_goes_unnoticed_is_told() -> None:
    run = run_of([0.8] * 10 + [0.2] * 10, set(), [EVENT])
    assert (noticed(run, EVENT), recovered(run, EVENT)) == (None, None)
    assert "no alarm followed; accuracy had not recovered by the end" in " ".join(stream_words(run))


def test_clients_that_left_are_told() -> None:
    run = run_of([0.8] * 4, set(), [])
    assert "budget" not in " ".join(stream_words(run))
    run.rounds["clients_spent"] = np.array([0.0, 0.0, 3.0, 5.0])
    run.privacy["clients_spent"] = 6
    words = " ".join(stream_words(run))
    assert "In 8 rounds of a client" in words and "at the end 6 clients had left" in words


def test_without_a_stream_nothing_is_said() -> None:
    run = run_of([0.8], set(), [])
    run.summary["streams"] = None
    assert stream_words(run) == []
