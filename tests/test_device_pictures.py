"""What is drawn and told of the devices of a run: pictures of made-up runs, and the report that shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_devices import KINDS, add_devices, dispatched, edit, make_small, told
from fake_run import OF_EVERY_RUN, make_run, names, pixels

from fedsim.results.device_words import by_kind, cost_rows, field_story, field_words, tile
from fedsim.results.devices import devices_of, dispatches_of
from fedsim.results.finished import Run, read_run
from fedsim.results.pictures.devices import cost_curves, who_took_part
from fedsim.results.pictures.timeline import MOST_DEVICES, PHASES, timeline
from fedsim.results.plots import write_plots
from fedsim.results.report import write_report
from fedsim.results.units import second_unit, time_text

OURS = ("cost_curves", "timeline", "who_took_part")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 clients on three kinds of phones, judged every fifth of 30 rounds."""
    return add_devices(make_run(tmp_path_factory.mktemp("devices") / "run", rounds=30, every=5))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_small(tmp_path / "small")


def bars(axes: Any) -> list[tuple[float, float, float, bool]]:
    """(row, left, right, hatched) of each bar."""
    return [
        (
            round(bar.get_y() + bar.get_height() / 2, 6),
            bar.get_x(),
            bar.get_x() + bar.get_width(),
            bool(bar.get_hatch()),
        )
        for bar in axes.patches
    ]


def test_accuracy_is_drawn_against_what_was_spent_by_the_rounds_that_were_judged(run: Run) -> None:
    figure = cost_curves(run)
    assert figure is not None and len(figure.axes) == 3
    judged = np.array([5, 10, 15, 20, 25, 30]) - 1
    sent = run.rounds["bytes_up"] + run.rounds["bytes_down"]
    total = float(run.rounds["simulated_seconds"].sum())
    divisor, unit = second_unit(total)
    scales = ((run.rounds["simulated_seconds"], divisor), (sent, 1e6), (run.rounds["joules"], 1e3))
    for axes, (spent, scale) in zip(figure.axes, scales, strict=True):
        np.testing.assert_allclose(axes.lines[0].get_xdata(), np.cumsum(spent)[judged] / scale)
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), run.rounds["accuracy"][judged])
        assert [text.get_text() for text in axes.texts] == ["round 10", "15", "20", "25", "30"]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == [f"simulated time ({unit})", "sent, up and down (MB)", "energy of all devices (kJ)"]
    assert f"took {time_text(total)}, {sent.sum() / 1e6:.3g} MB and" in figure.get_suptitle()


def test_costs_that_are_not_known_have_no_panel(folder: Path) -> None:
    run = read_run(folder)
    run.rounds["joules"][3] = np.nan
    figure = cost_curves(run)
    assert figure is not None
    assert [axes.get_xlabel().split(" (")[0] for axes in figure.axes] == ["simulated time", "sent, up and down"]
    run.rounds["simulated_seconds"][:] = np.nan
    assert cost_curves(run) is None and timeline(run) is None


def test_a_run_without_devices_shows_and_says_nothing_of_them(tmp_path: Path) -> None:
    path = make_run(tmp_path / "plain", clients=12, rounds=4)
    nulls = {
        "device": pa.nulls(12, pa.string()),
        "can_train": pa.nulls(12, pa.bool_()),
        "dropouts": pa.nulls(12, pa.int32()),
    }
    edit(path, "clients", nulls)  # as fleet=ideal writes them
    edit(path, "rounds", dict.fromkeys(("simulated_seconds", "joules", "grams_co2"), pa.nulls(4, pa.float64())))
    told(path, simulated_seconds=None, joules=None, grams_co2=None, fleet=None, compression="none")
    run = read_run(path)
    assert cost_curves(run) is timeline(run) is who_took_part(run) is devices_of(run) is dispatches_of(run) is None
    assert field_story(run) is None and field_words(run) == by_kind(run) == cost_rows(run) == tile(run.summary) == []
    assert set(names(write_plots(path))) <= set(OF_EVERY_RUN)
    html = write_report(path).read_text()
    assert "In the field" not in html and "Simulated" not in html and "compression" not in html


def test_the_round_of_median_length_is_drawn_bar_by_bar(small: Path) -> None:
    rows = [
        (1, 1, 0, 0.0, 1.0, 8.0, 10.0, 10.0, "used"),
        (2, 2, 1, 10.0, 11.0, 20.0, 40.0, 40.0, "used"),
        (3, 1, 2, 42.0, 43.0, 50.0, 60.0, 60.0, "used"),
        (3, 2, 2, 42.0, 44.0, 60.0, 66.0, 66.0, "late"),
        (3, 3, 2, 42.0, 45.0, None, None, 47.0, "network"),
        (3, 0, 2, 40.0, None, None, None, 40.0, "away"),
    ]
    figure = timeline(read_run(dispatched(small, rows)))
    assert figure is not None
    (axes,) = figure.axes
    assert bars(axes) == [
        (0, 0, 3, False), (0, 3, 5, False),
        (1, 0, 1, False), (1, 1, 8, False), (1, 8, 18, False),
        (2, 0, 2, True), (2, 2, 18, True), (2, 18, 24, True),
    ]  # fmt: skip
    lost, end = axes.lines
    assert (lost.get_xdata()[0], lost.get_ydata()[0], lost.get_marker()) == (5, 0, "X")
    assert end.get_xdata()[0] == 18 and [text.get_text() for text in axes.texts] == ["round 3 ends"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["new 3", "old 1", "new 2"]
    assert figure.get_suptitle().replace("\n", " ") == (
        "Round 3, the round of median length: in 18 s the work of 1 of 3 devices was used, after 2 s of waiting for devices"
    )
    assert axes.get_xlabel() == "s since the model was sent"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*PHASES, "too late", "connection lost"]


def test_of_many_devices_some_are_drawn_and_the_title_says_so(tmp_path: Path) -> None:
    path = add_devices(make_run(tmp_path / "many", clients=300, rounds=3), asked=120, wanted=90)
    figure = timeline(read_run(path))
    assert figure is not None and len(figure.axes[0].get_yticks()) == MOST_DEVICES
    assert "(40 of 120 drawn, evenly chosen by when they ended)" in figure.get_suptitle().replace("\n", " ")
    rights = [max(right for row, _, right, _ in bars(figure.axes[0]) if row == place) for place in range(MOST_DEVICES)]
    assert rights == sorted(rights)


def test_an_asynchronous_run_shows_a_stretch_of_time_with_the_servers_updates(tmp_path: Path) -> None:
    path = add_devices(make_run(tmp_path / "async", rounds=40), asynchronous=True, asked=20, wanted=5)
    run = read_run(path)
    sent = dispatches_of(run)
    assert sent is not None and sent.overlapping
    figure = timeline(run)
    assert figure is not None
    (axes,) = figure.axes
    divisor, unit = second_unit(3 * float(np.median(sent.ended - sent.sent)))
    width = axes.get_xlim()[1] * divisor
    assert width == pytest.approx(3 * np.median(sent.ended - sent.sent))
    start = float(np.median(sent.sent)) - width / 2
    ends = np.cumsum(run.rounds["simulated_seconds"])
    within = ends[(ends >= start) & (ends <= start + width)]
    updates = [line.get_xdata()[0] * divisor + start for line in axes.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(updates, within)
    assert f"{len(within)} server updates" in figure.get_suptitle()
    assert axes.get_xlabel() == f"{unit} since {time_text(start)} after the start"


def test_shares_of_data_and_of_participations_are_those_of_the_clients(folder: Path, run: Run) -> None:
    figure = who_took_part(run)
    assert figure is not None and len(figure.axes) == 5
    kinds, lorenz, causes, left_out, classes = figure.axes
    people = pq.read_table(folder / "clients.parquet").to_pandas()
    by = people.groupby("device")[["num_examples", "participations"]].sum().loc[list(KINDS)]
    shown = np.array([bar.get_width() for bar in kinds.patches]).reshape(3, 3)
    np.testing.assert_allclose(shown[0], people["device"].value_counts(normalize=True).loc[list(KINDS)])
    np.testing.assert_allclose(shown[1:].T, by / by.sum())
    outcomes = pq.read_table(folder / "dispatches.parquet")["outcome"].to_pylist()
    words = {"too late": "late", "connection lost": "network", "battery empty": "battery", "needed by its user": "user"}
    told = {
        label.get_text(): bar.get_width() for label, bar in zip(causes.get_yticklabels(), causes.patches, strict=True)
    }
    assert told == {word: outcomes.count(cause) for word, cause in words.items() if outcomes.count(cause)}
    unfit = ~people["can_train"]
    counts = np.stack(people["class_counts"])
    np.testing.assert_allclose([bar.get_height() for bar in classes.patches], counts[unfit].sum(0) / counts.sum(0))
    low = people["device"] == "low-end phone"
    share = people["num_examples"][unfit & low].sum() / people["num_examples"][low].sum()
    assert left_out.patches[0].get_width() == pytest.approx(share)
    assert lorenz.lines[1].get_label() == f"this run, Gini {gini(people):.2f}"


def gini(people: Any) -> float:
    """Half of the mean difference of participations an example between two examples by chance, over its mean."""
    rate = (people["participations"] / people["num_examples"]).to_numpy()
    weight = (people["num_examples"] / people["num_examples"].sum()).to_numpy()
    differences = np.abs(rate[:, None] - rate[None]) * weight[:, None] * weight[None]
    return float(differences.sum() / 2 / (rate * weight).sum())


def test_the_report_has_the_field_in_it(small: Path) -> None:
    rows = [
        (number, 1, number - 1, at, at + 1, at + 2, at + 3, at + 3, "used")
        for number, at in ((1, 0.0), (2, 10.0), (3, 40.0))
    ]
    dispatched(told(small, compression="qsgd"), rows)
    html = write_report(small).read_text()
    assert {path.stem for path in (small / "plots").iterdir()} >= set(OURS)
    for name in OURS:
        image = pixels((small / "plots" / f"{name}.png").read_bytes())
        assert image.shape[1] >= 1200 and 0.01 < (image[..., :3].min(-1) < 0.9).mean() < 0.9, name
    run = read_run(small)
    text = re.sub(r"<[^>]+>", "", html)
    assert field_story(run) in text and all(words in text for words in field_words(run))
    facts = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', html))
    assert facts["Energy of all devices"] == "41 kJ (11.4 Wh)" and "qsgd compression · seed 0" in html
    assert re.search(r"<h2>In the field</h2>.*?<td>75\.0%</td>", html, re.DOTALL)
    assert re.findall(r"<dt>Time in the field</dt><dd>(.*?)<small>", html) == ["3.2 hours"]
