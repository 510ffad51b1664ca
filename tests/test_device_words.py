"""What is told of the devices of a run, held against numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_devices import dispatched, edit, make_small, told

from fedsim.results.device_words import by_kind, cost_rows, field_story, field_words, tile
from fedsim.results.finished import read_run
from fedsim.results.formats import DASH
from fedsim.results.pictures.devices import who_took_part
from fedsim.results.units import carbon_text, energy_text, time_text, watt_hours_text


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return make_small(tmp_path / "small")


def test_the_story_tells_the_fields_costs_and_whom_the_model_does_not_fit(small: Path) -> None:
    assert field_story(read_run(small)) == (
        "In the field this run would have taken 3.2 hours, 41 kJ (5.5 g of CO₂) and 120 MB; 1 of 4 clients can never take part "
        "because the model does not fit, and it holds 10.0% of the examples (25.0% of class cat)."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joules": None, "grams_co2": None, "bytes_up": None}, "taken 3.2 hours;"),
        ({"grams_co2": None}, "taken 3.2 hours, 41 kJ and 120 MB;"),
        ({"simulated_seconds": None, "bytes_down": None}, "taken 41 kJ (5.5 g of CO₂);"),
    ],
)
def test_what_is_not_modelled_is_not_told(small: Path, changes: dict[str, Any], words: str) -> None:
    assert words in str(field_story(read_run(told(small, **changes))))
    nothing = told(small, simulated_seconds=None, joules=None)
    assert field_story(read_run(nothing)) is None and not any("ime" in name for name, _ in cost_rows(read_run(nothing)))


def test_sentences_tell_why_work_was_lost_and_whose_data_count_less(small: Path) -> None:
    run = read_run(small)
    assert field_words(run) == [
        "Of 8 times that a client was sent the model, its work was not used 4 times: it came too late twice, lost the connection "
        "once and failed once; once a client was drawn that was not there.",
        "1 client whom the model fits never trained it (40.0% of the examples): 1 drawn, but late, lost or not "
        "there each time.",
        "Devices of the kind new hold 70.0% of the examples and have 75.0% of the participations.",
    ]
    edit(small, "clients", {"participations": [0, 0, 3, 0], "dropouts": [0, 0, 0, 4]})
    assert field_words(read_run(small))[1] == (
        "2 clients whom the model fits never trained it (60.0% of the examples): 1 drawn, but late, lost or not there "
        "each time and 1 never drawn."
    )
    assert by_kind(run) == [
        ("new", "2", "0", "70.0%", "75.0%", "3", "2 min", "5 kJ"),
        ("old", "2", "1", "30.0%", "25.0%", "2", "60 s", "1 kJ"),
    ]
    run.rounds["mean_staleness"][:] = [0.0, 1.0, 3.5]
    assert "Updates were 1.5 rounds old on average when they were used, 3.5 in the round of the oldest." in field_words(
        run
    )


def test_missing_columns_leave_the_rest(small: Path) -> None:
    people = pq.read_table(small / "clients.parquet").drop_columns(
        ["can_train", "joules", "busy_seconds", "class_counts"]
    )
    pq.write_table(people, small / "clients.parquet")
    run = read_run(told(small, fleet=None))
    assert str(field_story(run)).endswith("and 120 MB.")
    assert by_kind(run)[0] == ("old", "2", "0", "30.0%", "25.0%", "2", DASH, DASH)
    figure = who_took_part(run)
    assert figure is not None and len(figure.axes) == 3  # neither causes nor classes are known


def test_the_costs_have_rows_of_time_energy_and_carbon(small: Path) -> None:
    assert cost_rows(read_run(small)) == [
        ("Simulated time, whole run", "3.2 hours"),
        ("Simulated time, a round at the median", "20 s"),
        ("Energy of all devices", "41 kJ (11.4 Wh)"),
        ("Carbon of that energy", "5.5 g of CO₂"),
    ]
    assert tile(read_run(small).summary) == [("Time in the field", "3.2 hours", "41 kJ, 5.5 g of CO₂")]


def test_compression_is_told_with_what_it_saves(small: Path) -> None:
    told(small, compression="topk", num_parameters=1000, bytes_up=1600)
    assert read_run(small).summary["compression"] == "topk"
    edit(small, "clients", {"dropouts": [0] * 4})  # then all that was sent up are the 4 updates that were used
    assert cost_rows(read_run(small))[-1] == (
        "Compression of updates",
        "topk: 400 bytes an update, 90.0% less than its 4 kB of 32-bit numbers",
    )
    edit(small, "clients", {"dropouts": [0, 1, 0, 0]})
    rows = [(1, 1, 0, 0.0, 1.0, 8.0, 10.0, 10.0, "used"), (1, 1, 0, 0.0, 1.0, None, None, 10.0, "network")]
    dispatched(small, rows)
    assert cost_rows(read_run(small))[-1][1].startswith("topk: 1 kB an update, 75.0% less")
    (small / "dispatches.parquet").unlink()
    assert cost_rows(read_run(told(small, num_parameters=None)))[-1][1] == "topk"


def test_units() -> None:
    assert [time_text(s) for s in (8.25, 119, 192, 11520, 172_800, 1e8, None)] == [
        *("8.25 s", "119 s", "3.2 min", "3.2 hours", "2 days", "1,157 days", DASH)
    ]
    assert [energy_text(j) for j in (0, 999, 41_000, 2.5e6, float("nan"))] == ["0 J", "999 J", "41 kJ", "2.5 MJ", DASH]
    assert [watt_hours_text(j) for j in (41_000, 7.2e6)] == ["11.4 Wh", "2 kWh"]
    assert [carbon_text(g) for g in (0, 0.012, 5.5, 1500, None)] == [
        *("0 g of CO₂", "12 mg of CO₂", "5.5 g of CO₂", "1.5 kg of CO₂", DASH)
    ]
