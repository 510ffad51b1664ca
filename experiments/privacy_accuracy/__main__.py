"""`python -m experiments.privacy_accuracy`: accuracy against epsilon for the four units of privacy, on two datasets.

Every cell is one fedsim command in a process of its own, in a folder of its own; one whose folder holds the finished run of
the same command is not run again, so a study that was stopped goes on. A cell that fails is told and the rest goes on.
Written to --out: results.csv, accuracy_vs_epsilon.png, commands.txt, and the table and commands of a README.md that is there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.privacy_accuracy.cells import SIZES, Cell, cells
from experiments.privacy_accuracy.results import Row, figure, listing, means_of, renewed, row_of, table, write_csv
from fedsim.paths import whole


def play(cell: Cell, runs: Path) -> str | None:
    """Run a cell unless it is finished; gives what went wrong, in a line."""
    if cell.finished(runs):
        return None
    folder = runs / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "fedsim", *cell.overrides, f"hydra.run.dir={folder}"]
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    failed = done.returncode != 0 or not cell.finished(runs)
    lines = (done.stderr or done.stdout).strip().splitlines()
    words = (lines[-1] if lines else f"exit status {done.returncode}") if failed else "done"
    print(f"{cell.name}: {words} ({time.perf_counter() - start:.0f} s)", flush=True)
    return words if failed else None


def gather(asked: list[Cell], runs: Path) -> list[Row]:
    """A row of each cell that is finished."""
    found = ((cell, cell.finished(runs)) for cell in asked)
    return [row_of(cell, summary) for cell, summary in found if summary]


def write(out: Path, asked: list[Cell], rows: list[Row]) -> None:
    """All that the study leaves in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    means = means_of(rows)
    write_csv(out / "results.csv", rows)
    with whole(out / "accuracy_vs_epsilon.png") as temporary:
        figure(means).savefig(temporary, format="png", dpi=160)
    (out / "commands.txt").write_text("".join(f"{cell.command}\n" for cell in asked), encoding="utf-8")
    readme = out / "README.md"
    if readme.is_file():
        text = renewed(readme.read_text(encoding="utf-8"), "table", table(means))
        readme.write_text(renewed(text, "commands", listing(asked)), encoding="utf-8")


def main() -> None:
    """Exit status 1 where a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.privacy_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="small: about two minutes of two free cores; full: the README's"
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one core each")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/privacy_accuracy/SIZE)")
    parser.add_argument("--runs", type=Path, help="folder of the cells' runs (default: OUT/runs)")
    given = parser.parse_args()
    out: Path = given.out or Path("runs/privacy_accuracy") / given.size
    runs: Path = (given.runs or out / "runs").absolute()
    asked = cells(given.size)
    print(
        f"{len(asked)} cells, {sum(cell.finished(runs) is not None for cell in asked)} of them finished before",
        flush=True,
    )
    with ThreadPoolExecutor(given.jobs) as pool:
        failures = dict(zip(asked, pool.map(lambda cell: play(cell, runs), asked), strict=True))
    rows = gather(asked, runs)
    if rows:
        write(out, asked, rows)
        print(f"\n{table(means_of(rows))}\n{out}/")
    failed = {cell: words for cell, words in failures.items() if words}
    for cell, words in failed.items():
        print(f"failed: {cell.name}: {words}\n  {cell.command}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
