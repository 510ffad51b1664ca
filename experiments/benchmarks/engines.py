"""Engines side by side: each takes its turn at the same work, again and again, and is told as a ratio to the plain loop."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks import pfl_environment
from experiments.benchmarks.measure import Spread, TreeMemory
from experiments.benchmarks.turn import MARK, Turn
from experiments.benchmarks.workloads import EVERYWHERE, Workload
from fedsim.paths import conf_dir
from fedsim.types import FedsimError

PATIENCE = 1800.0
"""Seconds that one turn may take."""


@dataclass(frozen=True)
class Engine:
    """kind: see turn.py, or `pfl`. overrides: of fedsim's configuration. threads: 0 is PyTorch's default."""

    name: str
    kind: str
    overrides: tuple[str, ...] = ()
    threads: int = 1
    processes: int = 1


def fedsim(name: str, grid: str, *overrides: str) -> Engine:
    """fedsim on this grid."""
    return Engine(f"fedsim {name}", "fedsim", (f"grid={grid}", *overrides))


RAW = Engine("raw PyTorch loop, 1 thread", "raw")
AS_IT_COMES = fedsim("as it comes", "auto")
PLAIN = (
    RAW,
    Engine("raw PyTorch loop, all threads", "raw", threads=0),
    AS_IT_COMES,
    fedsim("inprocess, one at a time", "inprocess", "grid.way=one"),
    *(
        fedsim(f"inprocess, lockstep of {w}", "inprocess", "grid.way=lockstep", f"grid.width={w}")
        for w in (1, 4, 8, 32)
    ),
    fedsim("inprocess", "inprocess"),
    *(fedsim(f"processes, {workers} of them", "processes", f"grid.workers={workers}") for workers in (1, 2, 4)),
    fedsim("ray", "ray"),
    Engine("Flower on Ray, plain PyTorch client", "flower_plain"),
    Engine("Flower on Ray, fedsim's apps", "flower_fedsim"),
    Engine(f"pfl {pfl_environment.PFL}, 1 thread", "pfl"),
    Engine(f"pfl {pfl_environment.PFL}, 2 processes", "pfl", processes=2),
)
GRAD_SAMPLE = Engine("Opacus GradSampleModule loop, 1 thread", "grad_sample")
GHOST = Engine("Opacus ghost clipping loop, 1 thread", "ghost")
PRIVATE = (
    GRAD_SAMPLE,
    GHOST,
    Engine("Opacus ghost clipping loop, all threads", "ghost", threads=0),
    AS_IT_COMES,
    fedsim("inprocess, one at a time", "inprocess", "grid.way=one"),
    fedsim("inprocess", "inprocess"),
    *(fedsim(f"processes, {workers} of them", "processes", f"grid.workers={workers}") for workers in (1, 2, 4)),
    fedsim("ray", "ray"),
)
"""pfl is not among them: it has no example-level privacy on devices."""


@dataclass
class Record:
    """What became of one engine at one workload. seconds: a list of rounds for each turn. refused: why there are none."""

    workload: str
    engine: str
    cohort: int
    seconds: list[list[float]] = field(default_factory=list)
    start_up: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    refused: str | None = None

    @property
    def speeds(self) -> list[float]:
        """Client-rounds a second, of each turn: the median of its rounds."""
        return [self.cohort / Spread.of(rounds).median for rounds in self.seconds]

    def ratios(self, base: Record) -> list[float]:
        """To another engine, turn by turn, so that what slowed the machine for a while slowed both."""
        return [own / other for own, other in zip(self.speeds, base.speeds, strict=True)]


@dataclass(frozen=True)
class Options:
    """device: cpu or cuda. repeats: turns of each engine. memory: whether a further turn, not timed, looks at memory."""

    device: str = "cpu"
    repeats: int = 3
    memory: bool = True
    say: Callable[[str], None] = print


def compare(workload: Workload, engines: Iterable[Engine], options: Options) -> list[Record]:
    """All engines at one workload."""
    return take_turns([(engine, workload) for engine in engines], options)


def take_turns(cases: list[tuple[Engine, Workload]], options: Options) -> list[Record]:
    """Each engine's turns at its workload, interleaved; an engine that cannot do it is left out of further turns."""
    records = [Record(workload.name, engine.name, workload.cohort) for engine, workload in cases]
    with tempfile.TemporaryDirectory() as folder:
        commands = [command_of(*case, options, Path(folder)) for case in cases]
        for number in range(-1 if options.memory else 0, options.repeats):
            for record, command in zip(records, commands, strict=True):
                if record.refused:
                    continue
                turn = "memory" if number < 0 else f"turn {number + 1}"
                options.say(f"{record.workload}: {record.engine}, {turn}")
                take_turn(record, command, memory=number < 0)
    return records


def overrides_of(engine: Engine, workload: Workload, device: str) -> list[str]:
    """The workload on this engine and device."""
    cohort = f"sampler.cohort_size={workload.cohort}"
    return [*EVERYWHERE, *workload.overrides, cohort, f"device={device}", *engine.overrides]


Commands = Callable[[], tuple[list[str], dict[str, str]]]
"""Gives a command and its environment variables. Raises FedsimError where there is none."""


def command_of(engine: Engine, workload: Workload, options: Options, folder: Path) -> Commands:
    """What is run for one turn; pfl's work is written to the folder before its first turn."""
    overrides = overrides_of(engine, workload, options.device)
    turn = Turn(engine.kind, tuple(overrides), workload.rounds, options.device, engine.threads)
    path = folder / f"{workload.name}.npz"
    specs: list[dict[str, Any]] = []

    def ours() -> tuple[list[str], dict[str, str]]:
        for override in engine.overrides:
            group, _, choice = override.partition("=")
            if group == "grid" and not (conf_dir() / "grid" / f"{choice}.yaml").is_file():
                raise FedsimError(f"this build has no {override}")
        return turn.command, dict(os.environ)

    def pfl() -> tuple[list[str], dict[str, str]]:
        python = pfl_environment.make_environment()
        if not specs:
            specs.append(pfl_environment.write_work(overrides, path))
        spec = {**specs[0], "rounds": workload.rounds, "threads": engine.threads}
        command = pfl_environment.command(python, path, spec, engine.processes)
        return command, pfl_environment.environment(options.device)

    return pfl if engine.kind == "pfl" else ours


def take_turn(record: Record, command: Commands, memory: bool) -> None:
    """Run it, and write down what it found: memory or times."""
    try:
        arguments, environment = command()
    except FedsimError as error:
        record.refused = str(error)
        return
    found, peak_mb = run(arguments, memory, environment)
    if refused := found.get("refused"):
        record.refused = refused
    elif memory:
        record.peak_mb = peak_mb
    else:
        record.seconds.append(found["seconds"])
        record.start_up.append(found["until_first_round"] - Spread.of(found["seconds"]).median)


def run(
    command: list[str], memory: bool, environment: dict[str, str] | None = None
) -> tuple[dict[str, Any], float | None]:
    """What the process says on its marked line, and its tree's peak memory where that is wanted.

    until_first_round: seconds from the start of the process to the end of its first round. A process that fails refuses.
    """
    begun = time.time()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watcher = TreeMemory(process.pid)
    try:
        if memory:
            with watcher.watched():
                out, errors = process.communicate(timeout=PATIENCE)
        else:
            out, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"refused": f"it took more than {PATIENCE:g} seconds"}, None
    except BaseException:
        process.kill()
        raise
    marked = [line for line in out.splitlines() if line.startswith(MARK)]
    if not marked:
        last = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return {"refused": f"it failed: {last}"}, None
    found = json.loads(marked[-1].removeprefix(MARK))
    if "first_round_over" in found:
        found["until_first_round"] = found.pop("first_round_over") - begun
    return found, watcher.peak_mb


def rows(records: list[Record], bases: tuple[Engine, ...]) -> Iterator[dict[str, Any]]:
    """A row of each record: client-rounds a second and ratios as [median, low, high], by the name of what they are to."""
    by_name = {record.engine: record for record in records}
    for record in records:
        row: dict[str, Any] = {"workload": record.workload, "engine": record.engine, "cohort": record.cohort}
        if record.refused or not record.seconds:
            yield {**row, "refused": record.refused or "not run"}
            continue
        row["client_rounds_per_second"] = list(Spread.of(record.speeds))
        row["ratio_to"] = {
            base.name: list(Spread.of(record.ratios(by_name[base.name])))
            for base in bases
            if base.name in by_name and by_name[base.name].seconds
        }
        row |= {"start_up_seconds": Spread.of(record.start_up).median, "peak_mb": record.peak_mb}
        yield {**row, "seconds": record.seconds}
