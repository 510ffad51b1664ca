"""Start-up: seconds from typing the command to the first trained client, beside importing torch, Flower and Hydra.

`measure` starts the plain imports and the quickstart on each grid in turn, each in a process of its own. The quickstart's
process is `python -m fedsim` in all but one thing: as soon as a client has trained, it writes down the time and stops.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median

IMPORTS = ["-c", "import torch, flwr.app, hydra"]
QUICKSTART = ["+experiment=quickstart", "rounds=1", "sampler.cohort_size=2", "grid.chunk_size=1"]
"""Two chunks of one client: the first reply is the first client's, and there is work for two processes."""

GRIDS = {
    "grid=inprocess": ["grid=inprocess"],
    "grid=processes grid.workers=2": ["grid=processes", "grid.workers=2"],
}
MARK = "first client trained at "


def measure(repeats: int) -> list[dict[str, float | str]]:
    """A row of each start, the imports first: start, seconds (median), lowest, highest, ratio (of medians, to the imports)."""
    seconds: dict[str, list[float]] = {" ".join(["python", *IMPORTS]): [], **{grid: [] for grid in GRIDS}}
    imports, *grids = seconds
    for _ in range(repeats):
        seconds[imports].append(seconds_of_imports())
        for grid in grids:
            seconds[grid].append(seconds_to_first_client(GRIDS[grid]))
    return [
        {
            "start": start,
            "seconds": median(taken),
            "lowest": min(taken),
            "highest": max(taken),
            "ratio": median(taken) / median(seconds[imports]),
        }
        for start, taken in seconds.items()
    ]


def seconds_of_imports() -> float:
    """Of the whole process."""
    start = time.time()
    subprocess.run([sys.executable, *IMPORTS], check=True)
    return time.time() - start


def seconds_to_first_client(overrides: list[str]) -> float:
    """From before the process is there until one of its clients has trained. RuntimeError where none has."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __spec__.name, *QUICKSTART, *overrides, f"hydra.run.dir={folder}/run"]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
    marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not marked:
        raise RuntimeError(f"{' '.join(command)} trained no client: {done.stderr.strip()}")
    return float(marked[0].removeprefix(MARK)) - start


def stop_at_first_client() -> None:
    """What `python -m fedsim` does, with a stop at the first client; the arguments are the command line's own."""
    import runpy

    from fedsim.results.progress import Progress

    def cohort(self: Progress, done: int, size: int) -> None:
        print(f"{MARK}{time.time()}", flush=True)
        raise KeyboardInterrupt

    Progress.cohort = cohort  # type: ignore[method-assign]
    runpy.run_module("fedsim", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    stop_at_first_client()
