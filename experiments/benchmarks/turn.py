"""One engine's turn at one workload, in a process of its own: `python -m experiments.benchmarks.turn JSON`.

So that threads, allocators and leftovers of one engine are nothing to the next, and memory is each one's own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments.benchmarks.measure import Laps
from experiments.benchmarks.workloads import config, make_parts
from fedsim.parts import Parts
from fedsim.rounds import Row
from fedsim.types import FedsimError, Params

MARK = "turn over: "
"""Begins the line that is read; whatever else is printed is somebody's log."""


@dataclass(frozen=True)
class Turn:
    """kind: a key of KINDS. rounds: that are timed, after one that is not. threads: within an operation; 0 is PyTorch's default."""

    kind: str
    overrides: tuple[str, ...]
    rounds: int
    device: str = "cpu"
    threads: int = 1

    @property
    def command(self) -> list[str]:
        """That plays it."""
        return [sys.executable, "-m", __spec__.name, json.dumps(dataclasses.asdict(self))]


class Enough(Exception):
    """The rounds that were wanted are played."""


def fedsim_rounds(parts: Parts, rounds: int, laps: Laps) -> Params:
    """The real loop, on the grid that the configuration says; gives the arrays after the last round."""

    def on_round(row: Row) -> None:
        laps.lap()
        if len(laps.seconds) == rounds:
            raise Enough

    parts.server.rounds, parts.server.on_round = rounds + 1, on_round  # the last one is evaluated, and never begins
    grid = parts.grid()
    try:
        parts.server.run(grid)
    except Enough:
        pass
    finally:
        grid.close()
    return parts.server.state.arrays


def _loop(name: str) -> Callable[[Turn, Laps], None]:
    """A loop of this process over the parts."""

    def play(turn: Turn, laps: Laps) -> None:
        from experiments.benchmarks import loops

        default = torch.get_num_threads()
        parts = make_parts([*turn.overrides, "grid=inprocess"])
        torch.set_num_threads(turn.threads or default)
        getattr(loops, name)(parts, turn.rounds + 1, laps)

    return play


def _fedsim(turn: Turn, laps: Laps) -> None:
    fedsim_rounds(make_parts(list(turn.overrides)), turn.rounds + 1, laps)


def _flower_plain(turn: Turn, laps: Laps) -> None:
    from experiments.benchmarks.flower_loop import flower_plain

    flower_plain([*turn.overrides, "grid=inprocess"], turn.rounds + 1, laps)


def _flower_fedsim(turn: Turn, laps: Laps) -> None:
    from experiments.benchmarks.flower_loop import flower_fedsim

    flower_fedsim(config(*turn.overrides, "grid=inprocess"), turn.rounds + 1, laps)


KINDS: dict[str, Callable[[Turn, Laps], None]] = {
    "raw": _loop("raw_loop"),
    "grad_sample": _loop("grad_sample_loop"),
    "ghost": _loop("ghost_loop"),
    "fedsim": _fedsim,
    "flower_plain": _flower_plain,
    "flower_fedsim": _flower_fedsim,
}


def play(turn: Turn) -> dict[str, Any]:
    """seconds: of each timed round. first_round_over: the time. Or `refused`: why this engine cannot do this work."""
    laps = Laps(torch.device(turn.device))
    try:
        KINDS[turn.kind](turn, laps)
    except FedsimError as error:
        return {"refused": str(error)}
    return {"seconds": laps.seconds[1 : turn.rounds + 1], "first_round_over": laps.stamps[0]}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(MARK + json.dumps(play(Turn(**{**given, "overrides": tuple(given["overrides"])}))), flush=True)
