"""Where the time of one round goes, by stage and by torch's own operators: `python -m experiments.benchmarks profile`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from experiments.benchmarks.engines import fedsim, overrides_of
from experiments.benchmarks.measure import finished
from experiments.benchmarks.workloads import Workload, make_parts
from fedsim import flower
from fedsim.data.population import Population
from fedsim.evaluating import Evaluator
from fedsim.grids.base import SimulationGrid
from fedsim.judging import Judge
from fedsim.nodes import node_ids
from fedsim.parts import Parts
from fedsim.replies import Reply, Total
from fedsim.server import Server
from fedsim.training import Trainer

STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "data": ((Population, "training_data"),),
    "training": ((Trainer, "train"), (Trainer, "train_folded")),
    "sum": ((Reply, "add"), (Reply, "add_folded"), (Reply, "content"), (Total, "add"), (Total, "reply")),
    "message": ((SimulationGrid, "send_and_receive"), (flower, "to_record"), (flower, "from_record")),
    "aggregate": ((Server, "_aggregate"),),
    "evaluate": ((Evaluator, "row"), (Judge, "shard"), (Judge, "clients")),
}
"""What belongs to a stage; inside each other, time counts to the inner one. What is in none is the server's own."""
OPERATORS = 12


class Watch:
    """Time by stage."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open, self._since = ["server"], time.perf_counter()

    def _turn(self) -> None:
        finished(self.device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Until the block is left, or another begins inside."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts to a stage; a generator's as it is asked for more."""

        def wrapped(*arguments: Any, **keys: Any) -> Any:
            with self.stage(name):
                found = function(*arguments, **keys)
            return self._each(name, found) if isinstance(found, Iterator) else found

        return wrapped

    def _each(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        over = object()
        while True:
            with self.stage(name):
                item = next(items, over)
            if item is over:
                return
            yield item

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what STAGES names is timed, in this process."""
        with ExitStack() as patches:
            for name, places in STAGES.items():
                for owner, attribute in places:
                    patches.enter_context(patch.object(owner, attribute, self.timed(name, getattr(owner, attribute))))
            self._since = time.perf_counter()
            yield
            self._turn()


def measure(workload: Workload, device: str, rounds: int = 3) -> dict[str, Any]:
    """stages: seconds a round of each; operators: of one more round, by torch's profiler. A round is evaluated too."""
    overrides = [*overrides_of(fedsim("inprocess", "inprocess"), workload, device), "evaluation.every=1"]
    parts = make_parts(overrides)
    grid = parts.grid()
    nodes = node_ids(grid, 0, 0)
    play = _rounds(parts, grid, nodes)
    next(play)  # the first warms up
    watch = Watch(parts.device)
    with watch.watching():
        for _ in range(rounds):
            next(play)
    stages = {name: watch.seconds[name] / rounds for name in ("server", *STAGES)}
    return {
        "workload": workload.name,
        "cohort": workload.cohort,
        "stages": dict(sorted(stages.items(), key=lambda item: -item[1])),
        "operators": operators(play, device),
    }


def _rounds(parts: Parts, grid: SimulationGrid, nodes: Any) -> Iterator[None]:
    round = 0
    while True:
        round += 1
        parts.server.play_round(grid, nodes, round, round)
        yield


def operators(play: Iterator[None], device: str) -> list[dict[str, Any]]:
    """Of one round, those that take most: name, calls, and milliseconds of their own."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        next(play)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))[:OPERATORS]
    return [{"operator": event.key, "calls": event.count, "ms": getattr(event, key) / 1e3} for event in found]
