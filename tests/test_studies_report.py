"""The report of a study: the page, its figures, and the command that writes them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_run import pixels
from fake_study import GRID, Page, make_cell, make_study, plain, studied

from fedsim.report import main, parse
from fedsim.studies.figures.pareto import no_trade, pairs, pareto
from fedsim.studies.figures.style import LOOKS, series_of
from fedsim.studies.names import BY_NAME
from fedsim.studies.repeat import repeating
from fedsim.studies.report import write_study


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 populations x 4 epsilons x 3 seeds."""
    return make_study(tmp_path_factory.mktemp("studies") / "grid", GRID)


@pytest.fixture(scope="module")
def page(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the grid."""
    return write_study([grid], tmp_path_factory.mktemp("report"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of this test are words and tables alone."""
    monkeypatch.setattr("fedsim.studies.report.draw_all", lambda study, folder, look: [])


def test_the_figures_are_drawn_large_and_not_blank(page: Path) -> None:
    figures = page.parent / "figures"
    names = {path.stem for path in figures.glob("*.png")}
    assert (
        names
        == {path.stem for path in figures.glob("*.svg")}
        == {
            "pareto_accuracy_epsilon",
            "pareto_accuracy_bytes",
            "accuracy_vs_clients",
            "accuracy_vs_epsilon",
            "heat_map",
            "learning_curves",
            "learning_curves_bytes",
            "client_accuracy",
            "client_classes",
        }
    )
    for name in names:
        image = pixels((figures / f"{name}.png").read_bytes())
        assert image.shape[1] >= 900 and image.shape[0] >= 350
        assert 0.01 < (image[..., :3].min(-1) < 0.9).mean() < 0.9, name


def test_the_page_is_whole_and_asks_for_nothing(page: Path) -> None:
    html = page.read_text()
    told = Page(html)
    assert len(told.images) == 9 and all(one.startswith("data:image/png;base64,") for one in told.images)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(told.tags)
    assert not re.search(r"url\(|@import|https?:", told.style) and "default-src 'none'" in html
    assert not any(re.match(r"[a-z]+:|//", link) for link in told.links)
    text = plain(told.text)
    for words in (
        "A Processor 3000",
        "torch 2.13.0",
        "population.num_clients 10, 100, 1,000",
        "None that is known of.",
    ):
        assert words in text, words
    command = "-m +experiment=privacy_vs_clients population.num_clients=10,100,1000 privacy.epsilon=1.0,2.0,4.0,8.0 seed=0,1,2"
    assert command in text


def test_table_csv_is_a_groupby_by_hand(grid: Path, page: Path) -> None:
    rows = [json.loads(path.read_text()) for path in grid.glob("*/summary.json")]
    runs = pd.DataFrame(
        {
            "population.num_clients": [row["config"]["population"]["num_clients"] for row in rows],
            "privacy.epsilon": [row["config"]["privacy"]["epsilon"] for row in rows],
            "accuracy": [row["accuracy"] for row in rows],
            "bytes": [row["bytes_up"] + row["bytes_down"] for row in rows],
            "worst": [row["federated"]["accuracy_worst10"] for row in rows],
        }
    )
    by = runs.groupby(["population.num_clients", "privacy.epsilon"])
    table = pd.read_csv(page.parent / "table.csv").set_index(["population.num_clients", "privacy.epsilon"])
    assert len(table) == 12 and (table["seeds"] == 3).all() and (table["accuracy_n"] == 3).all()
    for name, column in (("accuracy", "accuracy"), ("bytes", "bytes"), ("federated.accuracy_worst10", "worst")):
        np.testing.assert_allclose(table[f"{name}_mean"], by[column].mean())
        np.testing.assert_allclose(table[f"{name}_std"], by[column].std())
        half = 4.302652729911275 * by[column].std() / 3**0.5
        np.testing.assert_allclose(table[f"{name}_low"], by[column].mean() - half)
        np.testing.assert_allclose(table[f"{name}_high"], by[column].mean() + half)


def test_the_same_runs_give_the_same_files(grid: Path, page: Path) -> None:
    before = {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()}
    write_study([grid], page.parent)
    assert {path: path.read_bytes() for path in page.parent.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_figures")
def test_the_page_leads_to_the_runs_own_reports(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"privacy.epsilon": [1.0, 8.0]}, seeds=[0])
    odd = folder / "a b#c,x=1"
    (folder / "0_0").rename(odd)
    (odd / "report.html").write_text("<title>mine</title>")
    links = Page(write_study([folder], tmp_path / "out").read_text()).links
    assert links == ["../sweep/a%20b%23c%2Cx%3D1/report.html"]


def test_the_style_of_a_paper(grid: Path, tmp_path: Path) -> None:
    look = LOOKS["paper"]
    with look.installed():
        figure = pareto(studied(grid), BY_NAME["epsilon"], BY_NAME["accuracy"], look)
        assert figure is not None and figure.get_suptitle() == ""
        figure.savefig(tmp_path / "paper.svg")
    svg = (tmp_path / "paper.svg").read_text()
    width = re.search(r'<svg [^>]*width="([\d.]+)pt"', svg)
    assert width is not None and float(width[1]) == pytest.approx(3.4 * 72, abs=1)  # a column
    assert "STIX" in svg and "stroke-dasharray" in svg  # told apart in grey


def test_lines_of_a_paper_are_told_apart_without_colour() -> None:
    for ordered in (True, False):
        series = series_of(6, ordered, LOOKS["paper"])
        assert len({str(one.dash) for one in series}) == len({one.marker for one in series}) == 6
    lightness = [float(np.dot(one.color[:3], (0.2126, 0.7152, 0.0722))) for one in series_of(6, True, LOOKS["paper"])]
    assert (np.diff(lightness) < -0.02).all()  # from light to dark, in grey too


@pytest.mark.usefixtures("no_figures")
def test_command_failed_cells_and_half_a_run(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"privacy.epsilon": [1.0, 8.0]}, seeds=(0, 1))
    (folder / "begun" / "checkpoints" / "round_000005").mkdir(parents=True)
    told = [("privacy.epsilon=0.01", "privacy.epsilon=0.01 cannot be met", "failed", folder / "gone")]
    text = Page(
        write_study([folder], tmp_path / "out", "python -m fedsim -m a=1,2", [*told, ("seed=7", "killed")]).read_text()
    ).text
    assert "privacy.epsilon=0.01 failed privacy.epsilon=0.01 cannot be met ../sweep/gone" in text
    assert "seed=7 failed killed" in text and "begun not finished" in text
    assert "python -m fedsim -m a=1,2" in text and "3 not finished" in text


def test_figures_of_before_are_taken_away_and_others_left(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "sweep", {"privacy.epsilon": [1.0, 8.0]}, seeds=[0])
    figures = tmp_path / "out" / "figures"
    write_study([folder], tmp_path / "out")
    before = {path.stem for path in figures.iterdir()}
    (figures / "mine.png").write_bytes(b"mine")
    write_study([folder / "0_0"], tmp_path / "out")
    after = {path.stem for path in figures.iterdir()}
    assert before - after == {"accuracy_vs_epsilon", "pareto_accuracy_epsilon"} and after - before == {"mine"}


def test_time_and_energy_are_traded_where_they_exist(tmp_path: Path) -> None:
    for (number, clients), seed in itertools.product(enumerate((10, 100, 1000)), (0, 1)):
        costs = {"simulated_seconds": 100.0 * (number + 1) + seed, "joules": 5e3 * 4**number + seed}
        make_cell(tmp_path / "sweep" / f"{number}_{seed}", {"population.num_clients": clients}, seed, **costs)
    study = studied(tmp_path / "sweep")
    assert [one.name for one in study.varying()] == ["accuracy", "bytes", "simulated_seconds", "joules"]
    look = LOOKS["screen"]
    with look.installed():
        drawn = {(across.name, up.name): pareto(study, across, up, look) is not None for across, up in pairs(study)}
    costs_of_gains = {pair: shown for pair, shown in drawn.items() if pair[1] == "accuracy"}
    assert len(costs_of_gains) == 3 and all(costs_of_gains.values())
    assert len(drawn) == 6 and not any(shown for pair, shown in drawn.items() if pair not in costs_of_gains)
    assert "10 clients is best in simulated time and in energy of devices at once." in no_trade(study)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs the command; gives its exit status and what it said."""

    def run(*arguments: str) -> tuple[int, str]:
        try:
            main(arguments)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        heard = capsys.readouterr()
        return status, heard.out + heard.err

    yield run


def test_the_command_writes_into_the_folder_given(grid: Path, tmp_path: Path, said: Any) -> None:
    folder = tmp_path / "sweep"
    for run in ("0_0", "0_1", "1_0", "1_1"):
        shutil.copytree(grid / run, folder / run)
    state = {"command": "python -m fedsim -m ...", "began": 0.0, "expected": 2}
    cell = {"folder": "9_0", "overrides": ["seed=9"], "state": "failed", "reason": "it broke", "before": False}
    cells = [cell | {"accuracy": None, "epsilon": None, "seconds": 1.0}]
    (folder / "sweep.json").write_text(json.dumps(state | {"cells": cells}))
    status, words = said(str(folder))
    assert status == 0 and str(folder / "report.html") in words and (folder / "table.csv").is_file()
    text = Page((folder / "report.html").read_text()).text
    assert "failed it broke 9_0" in text and "python -m fedsim -m ..." in text


@pytest.mark.usefixtures("no_figures")
def test_a_runs_own_report_is_not_lost(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(grid / "0_0", run)
    (run / "report.html").write_text("its own")
    monkeypatch.chdir(tmp_path)
    assert said(str(run))[0] == 0 and (tmp_path / "report" / "report.html").is_file()
    status, words = said(str(run), f"out={run}")
    assert status == 1 and "has a report of its own" in words and (run / "report.html").read_text() == "its own"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["."], "no finished run lies in ."),
        (["out=x"], "no folder is named"),
        ([".", "report.stile=paper"], "did you mean report.style?"),
        ([".", "report.style=papper"], "report.style=papper is not known (did you mean paper?)"),
        ([".", "out="], "out= is empty"),
        ([".", "out=a", "out=b"], "out is given twice"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    status, heard = said(*arguments)
    assert status == 1 and words in heard and heard.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_whose_names_hold_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "a=1,b=2"
    folder.mkdir()
    request = parse([str(folder), "report.style=paper"])
    assert request.paths == (folder,) and request.out == folder and request.style == "paper"


@pytest.mark.parametrize(
    ("commands", "lines"),
    [
        (["python -m fedsim a=1 seed=0", "python -m fedsim a=1 seed=1"], ["python -m fedsim -m a=1 seed=0,1"]),
        (
            ["python -m fedsim a=10 b=x", "python -m fedsim a=9 b=y"],
            ["python -m fedsim a=10 b=x", "python -m fedsim a=9 b=y"],
        ),
        (["python -m fedsim a=10", "python -m fedsim a=9"], ["python -m fedsim -m a=9,10"]),
        (
            ["python -m fedsim 'a=[1,2]'", "python -m fedsim a=3"],
            ["python -m fedsim 'a=[1,2]'", "python -m fedsim a=3"],
        ),
        (["python -m fedsim a=1", "python -m fedsim b=1"], ["python -m fedsim a=1", "python -m fedsim b=1"]),
        (["python -m fedsim a=1", "python -m fedsim a=1", ""], ["python -m fedsim a=1"]),
    ],
)
def test_the_command_that_repeats(commands: list[str], lines: list[str]) -> None:
    assert repeating(commands) == lines
