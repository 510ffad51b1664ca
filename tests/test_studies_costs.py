"""Learning curves of a study against what devices spent: interpolated onto costs that a cell's seeds share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_devices import with_columns
from fake_run import pixels
from fake_study import Page, make_study, studied
from fake_study import edit as tell
from scipy import stats

from fedsim.studies.figures.along import ALONG, GRID_POINTS, over_costs, over_rounds
from fedsim.studies.figures.curves import learning_curves
from fedsim.studies.figures.style import LOOKS
from fedsim.studies.report import write_study

TIME, BYTES, JOULES = ALONG
ROUNDS = 30


def edit(folder: Path, **columns: Any) -> None:
    table = pq.read_table(folder / "rounds.parquet")
    pq.write_table(with_columns(table, columns), folder / "rounds.parquet")


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Two learning rates and three seeds: a round of seed s takes 10 (s + 1) s, accuracy grows by the second in a line."""
    folder = make_study(tmp_path / "sweep", {"client.lr": [0.1, 0.2]}, seeds=(0, 1, 2))
    for cell in (0, 1):
        for seed in (0, 1, 2):
            seconds = np.full(ROUNDS, 10.0 * (seed + 1))
            accuracy = 0.1 + (0.001 + 0.0001 * seed + 0.0002 * cell) * np.cumsum(seconds)
            judged = pa.array(accuracy, mask=np.arange(1, ROUNDS + 1) % 3 != 0)
            edit(folder / f"{cell}_{seed}", simulated_seconds=seconds, joules=100 * seconds, accuracy=judged)
    return folder


def test_seeds_are_interpolated_onto_the_costs_that_all_of_them_have_been_through(rates: Path) -> None:
    curves = over_costs(studied(rates), TIME)
    assert curves is not None and len(curves) == 2 * GRID_POINTS
    for cell in (0, 1):
        curve = curves.loc[cell]
        at = curve.index.to_numpy()
        np.testing.assert_allclose(at, np.linspace(90, 300, GRID_POINTS))  # seed 2 is judged first, seed 0 ends first
        values = 0.1 + (0.001 + 0.0001 * np.arange(3)[:, None] + 0.0002 * cell) * at
        np.testing.assert_allclose(curve["mean"], values.mean(0))
        low, high = stats.t.interval(0.95, 2, loc=values.mean(0), scale=stats.sem(values))
        np.testing.assert_allclose(curve["low"], low)
        np.testing.assert_allclose(curve["high"], high)


def test_over_rounds_nothing_is_interpolated(rates: Path) -> None:
    curves = over_rounds(studied(rates))
    assert curves is not None and list(curves.loc[0].index) == list(range(3, ROUNDS + 1, 3))


def test_the_curve_is_drawn_in_the_unit_that_fits(rates: Path) -> None:
    with LOOKS["screen"].installed():
        figure = learning_curves(studied(rates), LOOKS["screen"], TIME)
        assert figure is not None
        (axes,) = figure.axes
        assert axes.get_xlabel() == "simulated time (min)" and axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
        shown = axes.lines[0].get_xdata()
        assert (shown[0], shown[-1]) == pytest.approx((90, 300))
        figure.draw_without_rendering()
        ticks = [text.get_text() for text in axes.get_xticklabels()]
        assert "2" in ticks and "4" in ticks
        energy = learning_curves(studied(rates), LOOKS["screen"], JOULES)
        assert energy is not None and energy.axes[0].get_xlabel() == "energy of devices (kJ)"


def test_cells_that_spend_far_less_than_others_are_seen_on_a_logarithmic_axis_of_whole_units(rates: Path) -> None:
    for seed in (0, 1, 2):
        edit(rates / f"1_{seed}", simulated_seconds=np.full(ROUNDS, 3600.0))
    with LOOKS["paper"].installed():
        figure = learning_curves(studied(rates), LOOKS["paper"], TIME)
        assert figure is not None
        axes = figure.axes[0]
        assert axes.get_xscale() == "log" and axes.get_xlabel() == "simulated time (hours)"
        figure.draw_without_rendering()
        low, high = axes.get_xlim()
        ticks = [
            text.get_text()
            for at, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
            if low <= at <= high
        ]
        assert ticks and set(ticks) <= {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"}


def test_what_is_not_known_is_not_drawn(rates: Path) -> None:
    for path in rates.iterdir():
        edit(path, joules=pa.nulls(ROUNDS, pa.float64()))
    study = studied(rates)
    assert over_costs(study, JOULES) is None and over_costs(study, TIME) is not None
    assert over_costs(study, BYTES) is None  # all sent the same, round by round
    edit(rates / "0_0", bytes_up=np.full(ROUNDS, 10))
    assert over_costs(studied(rates), BYTES) is not None
    for seed in (0, 1, 2):  # of a cell that does not tell its time the others' lines stay
        edit(rates / f"1_{seed}", simulated_seconds=pa.nulls(ROUNDS, pa.float64()))
    curves = over_costs(studied(rates), TIME)
    assert curves is not None and set(curves.index.get_level_values("cell")) == {0}


def test_a_round_of_unknown_cost_ends_what_can_be_drawn(rates: Path) -> None:
    seconds = np.full(ROUNDS, 10.0)
    seconds[14] = np.nan
    edit(rates / "0_0", simulated_seconds=pa.array(seconds, from_pandas=True))
    curves = over_costs(studied(rates), TIME)
    assert curves is not None and curves.loc[0].index.max() == pytest.approx(120)


def test_a_studys_report_shows_its_costs(rates: Path, tmp_path: Path) -> None:
    for place, path in enumerate(sorted(rates.iterdir())):
        tell(path, simulated_seconds=7200.0 + 3600 * place, joules=41_000.0 + place, grams_co2=5.5)
    page = write_study([rates], tmp_path / "out")
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"learning_curves", "learning_curves_simulated_seconds", "learning_curves_joules"} <= drawn
    assert "learning_curves_bytes" not in drawn
    image = pixels((tmp_path / "out" / "figures" / "learning_curves_simulated_seconds.png").read_bytes())
    assert 0.01 < (image[..., :3].min(-1) < 0.9).mean() < 0.9
    text = Page(page.read_text()).text
    assert "Simulated time Energy Carbon" in text and "41 kJ" in text and "5.5 g of CO₂" in text and "3 hours ±" in text
    assert "curve is interpolated between the rounds that were judged" in text
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    np.testing.assert_allclose(table["simulated_seconds_mean"], [10_800, 21_600])
    assert {"joules_mean", "grams_co2_mean"} <= set(table.columns)
