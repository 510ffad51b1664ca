"""What a study says in sentences and tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_study import FEDADAM, FEDAVG, GRID, NO_PRIVACY, make_study, plain, studied

from fedsim.studies.comparisons import against_best
from fedsim.studies.names import BY_NAME
from fedsim.studies.tables import crossed, ledger_table
from fedsim.studies.words import notes, plus_minus, story


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 populations x 4 epsilons x 3 seeds."""
    return make_study(tmp_path_factory.mktemp("studies") / "grid", GRID)


@pytest.fixture(scope="module")
def strategies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 strategies x 2 alphas x 5 seeds, without privacy."""
    axes = {"strategy": [FEDAVG, FEDADAM], "partition.alpha": [0.1, 1.0], "privacy": [NO_PRIVACY]}
    return make_study(tmp_path_factory.mktemp("studies") / "strategies", axes, seeds=range(5))


def test_the_first_sentence_answers(grid: Path) -> None:
    study = studied(grid)
    best = study.ranking()[0]
    mean = study.runs.groupby("cell")["accuracy"].mean()[best]
    words = plain(story(study))
    assert words.startswith(
        "3 numbers of clients × 4 values of ε, 3 seeds each: 1,000 clients, ε = 8 has the best test accuracy"
    )
    assert f"{100 * mean:.1f}% (95% interval" in words
    assert re.search(r"points \(95% interval .+\) ahead of 1,000 clients, ε = 4", words)
    unsettled = sum(not one.settled for one in against_best(study))
    assert f"three seeds do not suffice to tell it from {unsettled} of the 11 others" in words
    assert any("cannot give a p below 0.25" in one for one in notes(study))


def test_seeds_that_suffice_are_said_to(tmp_path: Path) -> None:
    make_study(tmp_path, {"population.num_clients": [10, 1000], "privacy.epsilon": [1.0]}, seeds=range(4))
    assert story(studied(tmp_path)).endswith("the seeds suffice to tell it from every other (paired t-tests, Holm).")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.912, 0.902, 0.922), "91.2 ± 1.0%"),
        ((0.912, np.nan, np.nan), "91.2%"),
        ((np.nan, np.nan, np.nan), "–"),
        ((0.0, 0.0, 0.0), "0.0%"),
    ],
)
def test_means_with_their_intervals(values: tuple[float, float, float], shown: str) -> None:
    assert plus_minus(BY_NAME["accuracy"], *values) == shown


def test_the_crossed_table_shows_intervals(grid: Path) -> None:
    table = crossed(studied(grid))
    assert table is not None and [row[0] for row in table.rows] == ["10 clients", "100 clients", "1,000 clients"]
    assert all(re.fullmatch(r"\d\d\.\d ± \d+\.\d%", value) for row in table.rows for value in row[1:])


def test_the_ledger_has_a_row_a_cell(grid: Path, strategies: Path) -> None:
    study = studied(grid)
    table = ledger_table(study)
    assert table is not None and len(table.rows) == 12
    row = dict(zip(table.headings, table.rows[3], strict=True))
    largest = study.runs.loc[study.runs["cell"] == 3, "epsilon"].max()
    assert row["hides one"] == "client" and row["δ"] == "1e-5" and float(row["ε"]) >= largest
    assert row["ε by accountant"].startswith("PLD ") and "PRV" not in row["ε by accountant"]
    assert ledger_table(studied(strategies)) is None


def test_an_epsilon_that_an_audit_refutes_is_not_stated(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"privacy.epsilon": [1.0, 8.0]}, seeds=[0])
    (folder / "0_0" / "audit.json").write_text(json.dumps({"verdict": "FAIL", "claimed": 1.0, "observed": 3.0}))
    table = ledger_table(studied(folder))
    assert table is not None
    assert [row[table.headings.index("ε")] for row in table.rows] == ["refuted by the audit", "7.984"]
