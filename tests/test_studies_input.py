"""Studies of runs that lack something: numbers, seeds, files, a common experiment, harmless names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import GRID, Page, edit, make_study, plain, studied

from fedsim.studies.report import write_study
from fedsim.studies.tables import cells_table
from fedsim.studies.words import notes, story

EVIL = "<script>alert('x')</script> $\\frac{"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of this test are words and tables alone."""
    monkeypatch.setattr("fedsim.studies.report.draw_all", lambda study, folder, look: [])


def test_missing_numbers_are_dashes_and_never_zeros(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"privacy.epsilon": [1.0, 2.0, 8.0]}, seeds=(0, 1))
    for run in ("0_0", "0_1"):
        edit(folder / run, accuracy=None, federated=None)
    edit(folder / "1_0", accuracy=None)
    for name in ("rounds", "clients"):
        (folder / "2_0" / f"{name}.parquet").unlink()
    write_study([folder], tmp_path / "out")
    study = studied(folder)
    column = cells_table(study).headings.index("Accuracy")
    shown = [row[column] for row in cells_table(study).rows]
    assert shown[0] == "–" and re.fullmatch(r"\d\d\.\d%", shown[1]) and "±" in shown[2]
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["accuracy_n"].tolist() == [0, 1, 2] and table["accuracy_mean"].isna().tolist() == [True, False, False]
    assert table["accuracy_low"].isna().tolist() == [True, True, False]
    assert study.ranking() == [2, 1] and any("lacks its test accuracy" in words for words in notes(study))


def test_no_run_with_an_accuracy(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"privacy.epsilon": [1.0, 8.0]}, accuracy=None, loss=None)
    assert "no run has a test accuracy" in story(studied(folder))
    write_study([folder], tmp_path / "out")


def test_a_regression_is_judged_by_its_loss(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "sweep", {"privacy.epsilon": [1.0, 8.0]}, accuracy=None, macro_f1=None, federated=None
    )
    words = plain(story(studied(folder)))
    assert "ε = 8 has the best test loss" in words and "%" not in words.replace("95% interval", "")
    write_study([folder], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "loss_vs_epsilon.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", GRID, seeds=[0])
    text = Page(write_study([folder], tmp_path / "out").read_text()).text
    assert "with one seed there is no interval, and a difference may be chance" in text
    assert "±" not in text.replace("± half of", "") and "there are no intervals and no tests" in text


def test_one_run(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {}, seeds=[0])
    text = Page(write_study([folder], tmp_path / "out").read_text()).text
    assert "1 run of one configuration: test accuracy" in text and "This is one run" in text
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {
        "learning_curves",
        "client_accuracy",
        "client_classes",
    }


def test_cells_without_a_seed_in_common(tmp_path: Path) -> None:
    make_study(tmp_path / "a", {"privacy.epsilon": [1.0]}, seeds=(0, 1))
    make_study(tmp_path / "b", {"privacy.epsilon": [8.0]}, seeds=(5,))
    study = studied(tmp_path)
    means = study.runs.groupby("cell")["accuracy"].mean()
    ahead = f"{100 * (means[1] - means[0]):.1f} points ahead of ε = 1; they have no seed in common to compare them by."
    assert plain(story(study)).endswith(ahead)
    assert any("between 1 and 2 seeds; those with one have no interval" in words for words in notes(study))
    assert np.isnan(study.statistic(study.measure, "low")).tolist() == [False, True]


def test_values_that_are_no_numbers_are_named_with_their_key(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"privacy.secure_rng": [True, False], "client.batch_size": ["auto", 8]}, seeds=[0])
    study = studied(folder)
    assert {study.label(cell) for cell in study.cells.index} == {
        f"batch size: {size}, secure rng: {drawn}" for size in ("auto", "8") for drawn in ("true", "false")
    }


@pytest.mark.usefixtures("no_figures")
def test_mixed_experiments_are_grouped(tmp_path: Path) -> None:
    make_study(tmp_path / "a", {"name": ["heterogeneity"], "partition.alpha": [0.1, 1.0]})
    make_study(tmp_path / "b", {"name": ["scaling"], "population.num_clients": [10, 100], "rounds": [20]})
    study = studied(tmp_path)
    assert study.axes[0].key == "name" and "rounds" in study.axes[0].follows
    assert "2 experiments (heterogeneity and scaling)" in " ".join(notes(study))
    assert [study.value(cell, study.axes[0]) for cell in study.cells.index] == ["heterogeneity"] * 2 + ["scaling"] * 2
    assert "heterogeneity, scaling" in Page(write_study([tmp_path], tmp_path / "out").read_text()).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    axes = {"privacy.clip_norm": ["a", EVIL], "privacy.epsilon": [8.0]}
    folder = make_study(tmp_path / "sweep", axes, experiment=EVIL, command=f"python '{EVIL}' http://me:secret@host/x")
    told = Page(write_study([folder], tmp_path / "out", failed=[(EVIL, EVIL)]).read_text())
    assert "script" not in told.tags and EVIL in told.text and "secret" not in told.text
