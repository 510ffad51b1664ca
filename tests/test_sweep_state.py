"""sweep.json, and what a sweep says while it runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fedsim.sweeps.line import line, time_left
from fedsim.sweeps.state import Cell, Sweep, begin, read_state, record


def told_cell(overrides: str, state: str = "finished", seconds: float = 10.0, before: bool = False) -> Cell:
    own: Any = {"folder": overrides, "overrides": overrides.split(), "state": state, "reason": None, "before": before}
    return Cell(**own, accuracy=0.5, epsilon=None, seconds=seconds)


def test_the_time_left_goes_by_the_cells_that_are_most_alike() -> None:
    cells = [
        told_cell("n=10 seed=0", seconds=10),
        told_cell("n=100 seed=0", seconds=100),
        told_cell("n=10 seed=1", "waiting"),
        told_cell("n=100 seed=1", "waiting"),
    ]
    sweep = Sweep("", 0.0, 4, cells, ["n", "seed"])
    assert time_left(sweep, 110.0) == "about 2 min left"
    assert time_left(sweep, 55.0) == "about 55 s left", "two at a time"
    cells[3] = told_cell("n=1000 seed=1", "waiting")
    assert time_left(sweep, 110.0) == "about 65 s left if the others take as long"
    cells[0]["before"] = cells[1]["before"] = True
    assert time_left(sweep, 110.0) == "", "what was finished before says nothing of the time"


def test_a_line_says_what_sets_the_cell_apart() -> None:
    cells = [told_cell("+experiment=x n=10 seed=0"), told_cell("+experiment=x n=10 seed=1", "waiting")]
    assert line(Sweep("", time.time(), 2, cells, ["seed"]), cells[0]).startswith(
        "1 of 2: seed=0: accuracy 0.5, 10 s; about"
    )
    alone = Sweep("", time.time(), None, cells[:1])
    assert line(alone, cells[0]) == "1: n=10 seed=0: accuracy 0.5, 10 s"


def test_cells_written_by_many_processes_are_all_there(tmp_path: Path) -> None:
    begin(tmp_path, "again", [[f"seed={seed}"] for seed in range(8)])
    children = []
    for seed in range(8):
        if (child := os.fork()) == 0:
            record(tmp_path, f"cell{seed}", [f"seed={seed}"], state="finished", seconds=float(seed))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    state = read_state(tmp_path)
    assert state is not None and [cell["seconds"] for cell in state.cells] == [float(seed) for seed in range(8)]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.json"}
