"""Twelve seeds: a command each, a sweep one after the other, and packed; `python -m experiments.benchmarks packed`.

The 2NN on 5,000 digits that 100 clients hold, ten of them a round. What is timed is whole commands, from the start of the
interpreter to the last file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.measure import Spread

SEEDS, QUICK_SEEDS = 12, 2
ROUNDS, QUICK_ROUNDS = 100, 2
RUN = (
    *("dataset=mnist5k", "model=mlp", "population.num_clients=100", "sampler.cohort_size=10", "evaluation.every=10"),
    *("population.holdout=0", "device=cpu"),
)


def commands(seeds: int, rounds: int) -> dict[str, Callable[[], list[tuple[str, ...]]]]:
    """The arguments of the commands that each way gives."""
    swept = (*RUN, f"rounds={rounds}", f"seed={','.join(map(str, range(seeds)))}")
    return {
        "packed: -m hydra/launcher=packed": lambda: [("-m", "hydra/launcher=packed", *swept)],
        "one sweep, one cell after the other: -m": lambda: [("-m", *swept)],
        "a command a seed": lambda: [(*RUN, f"rounds={rounds}", f"seed={seed}") for seed in range(seeds)],
    }


def measure(repeats: int, quick: bool) -> list[dict[str, Any]]:
    """A row of each way: seeds, rounds, seconds of all and ratio to packed, both median, least and most."""
    seeds, rounds = (QUICK_SEEDS, QUICK_ROUNDS) if quick else (SEEDS, ROUNDS)
    ways = commands(seeds, rounds)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, make in ways.items():
            seconds[way].append(_seconds(make()))
    first = seconds[next(iter(ways))]
    return [
        {
            "way": way,
            "seeds": seeds,
            "rounds": rounds,
            "seconds": list(Spread.of(taken)),
            "ratio": list(Spread.of([own / base for own, base in zip(taken, first, strict=True)])),
        }
        for way, taken in seconds.items()
    ]


def _seconds(given: list[tuple[str, ...]]) -> float:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for arguments in given:
            command = [sys.executable, "-m", "fedsim", *arguments]
            subprocess.run(command, check=True, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": path})
        return time.perf_counter() - start
