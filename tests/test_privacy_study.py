"""experiments/privacy_accuracy: its commands compose, and its table and figure say what made-up results hold."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import config
from hydra.utils import instantiate

from experiments.privacy_accuracy.__main__ import gather, play, write
from experiments.privacy_accuracy.cells import DATASETS, SIZES, UNITS, Cell, cells
from experiments.privacy_accuracy.results import Mean, Row, figure, listing, mean_of, means_of, renewed, table

MECHANISMS = {
    "example": "ExamplePrivacy",
    "user": "UserPrivacy",
    "distributed": "DistributedPrivacy",
    "local": "LocalPrivacy",
}


def row(unit: str, epsilon: float | None, seed: int, accuracy: float, dataset: str = "mnist5k") -> Row:
    return Row(dataset, unit, epsilon, seed, accuracy, epsilon, 1.0, 4, 2.0, "python -m fedsim")


ROWS = [
    *(row("user", 1.0, seed, value) for seed, value in enumerate((0.70, 0.72, 0.74))),
    *(row("user", None, seed, 0.9) for seed in range(3)),
    row("local", 8.0, 0, 0.25, "fashion_mnist"),
]


@pytest.mark.parametrize("size", SIZES)
def test_every_command_composes(size: str) -> None:
    asked = cells(size)
    epsilons, seeds = SIZES[size]
    assert len({cell.name for cell in asked}) == len(asked) == len(UNITS) * len(DATASETS) * (len(epsilons) + 1) * seeds
    for cell in (one for one in asked if one.seed == 0):
        cfg = config(*cell.overrides)
        assert cfg.dataset._target_.split(".")[-2] == cell.dataset and cfg.seed == cell.seed
        assert cfg.privacy.get("epsilon") == cell.epsilon
        part = instantiate(cfg.privacy)
        assert type(part).__name__ == ("NoPrivacy" if cell.epsilon is None else MECHANISMS[cell.unit])
        if cell.unit in ("distributed", "local"):  # nothing amplifies there, so every client pays for one round alone
            assert cell.epsilon is None or part.max_participations == 1
            assert cfg.rounds * cfg.sampler.cohort_size <= cfg.population.num_clients


def test_without_privacy_it_is_the_same_federation() -> None:
    for cell in (one for one in cells("full") if one.epsilon is None and one.seed == 0):
        with_it = config(*Cell("full", cell.dataset, cell.unit, 1.0, 0).overrides)
        without = config(*cell.overrides)
        assert {key: value for key, value in with_it.items() if key != "privacy"} == {
            key: value for key, value in without.items() if key != "privacy"
        }


def test_the_interval_is_students() -> None:
    found = mean_of([0.70, 0.72, 0.74])
    assert found.mean == pytest.approx(0.72) and found.half == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-5)
    assert mean_of([0.5]) == Mean(0.5, None, 1) and str(mean_of([0.5])) == "0.500"
    assert str(found) == "0.720 ± 0.050"


def test_the_table_says_what_was_found_and_what_was_not_run() -> None:
    lines = table(means_of(ROWS)).splitlines()
    assert lines[0] == "| dataset | unit | ε = 1 | ε = 8 | no privacy |"
    assert lines[2:] == [
        "| `mnist5k` | user | 0.720 ± 0.050 | – | 0.900 ± 0.000 |",
        "| `fashion_mnist` | local | – | 0.250 | – |",
    ]


def test_the_figure_has_a_panel_each_and_draws_the_means() -> None:
    made = figure(means_of(ROWS))
    panels = made.axes
    assert len(panels) == 4  # two datasets, two units
    drawn = [[line.get_xydata().tolist() for line in axes.get_lines()] for axes in panels]
    assert [1.0, pytest.approx(0.72)] in drawn[0][0] and drawn[0][-1][0][1] == pytest.approx(0.9)
    assert drawn[1] == drawn[2] == [] and drawn[3][0] == [[8.0, 0.25]]
    assert panels[0].get_lines()[-1].get_linestyle() == "--"


def finish(cell: Cell, runs: Path, command: str) -> None:
    (runs / cell.name).mkdir(parents=True)
    summary = {
        "accuracy": 0.5,
        "epsilon": 1.0,
        "noise_multiplier": 2.0,
        "rounds": 4,
        "seconds": 1.5,
        "command": command,
    }
    (runs / cell.name / "summary.json").write_text(json.dumps(summary))


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, other, broken = cells("small")[:3]
    finish(done, tmp_path, done.command)
    finish(other, tmp_path, "python -m fedsim of another day")
    ran: list[list[str]] = []

    def fake(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 1, "", "a warning\nfedsim: it is wrong")

    monkeypatch.setattr(subprocess, "run", fake)
    assert play(done, tmp_path) is None and ran == []
    for cell in (other, broken):
        assert play(cell, tmp_path) == "fedsim: it is wrong"
    assert [command[:3] for command in ran] == [[sys.executable, "-m", "fedsim"]] * 2
    assert ran[0][3:-1] == other.overrides and ran[0][-1] == f"hydra.run.dir={tmp_path / other.name}"
    assert "it is wrong" in capsys.readouterr().out
    assert [found.seed for found in gather([done, other, broken], tmp_path)] == [0]


def test_what_is_left_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words\n<!-- table -->\nold\n<!-- end of table -->\nmore words\n")
    write(tmp_path, cells("small"), ROWS)
    with (tmp_path / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [float(one["accuracy"]) for one in found] == [one.accuracy for one in ROWS]
    assert found[3]["epsilon"] == "" and found[0]["epsilon"] == "1.0"
    readme = (tmp_path / "README.md").read_text()
    assert readme == f"words\n<!-- table -->\n{table(means_of(ROWS))}<!-- end of table -->\nmore words\n"
    assert (tmp_path / "accuracy_vs_epsilon.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "commands.txt").read_text().splitlines() == [cell.command for cell in cells("small")]


def test_the_listing_has_a_line_for_each_setting_and_every_command_is_one_of_them() -> None:
    asked = cells("full")
    lines = listing(asked).splitlines()[1:-1]
    assert len(lines) == len(UNITS) * len(DATASETS) * 2
    filled = {
        line.replace("EPSILON", epsilon).replace("SEED", seed)
        for line in lines
        for epsilon in ("1", "2", "4", "8")
        for seed in "012"
    }
    assert filled == {cell.command for cell in asked}


def test_a_readme_without_marks_is_left_as_it_is() -> None:
    assert renewed("words", "table", "new") == "words"
