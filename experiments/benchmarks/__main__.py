"""`python -m experiments.benchmarks`: fedsim beside other ways to do the same work, on this machine; see README.md."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import aggregation, engines, packed, population, results, scaling, stages, startup, store
from experiments.benchmarks.workloads import WORKLOADS, Workload
from fedsim.types import FedsimError

QUICK_UPDATES = 8


def plain(given: argparse.Namespace) -> dict[str, Any]:
    """Plain training, by all engines."""
    return {"title": "", "rows": _side_by_side(given, engines.PLAIN, (engines.RAW,), lambda work: work)}


def private(given: argparse.Namespace) -> dict[str, Any]:
    """DP-SGD on devices."""
    bases = (engines.GRAD_SAMPLE, engines.GHOST)
    return {"title": ", private", "rows": _side_by_side(given, engines.PRIVATE, bases, Workload.private)}


def _side_by_side(
    given: argparse.Namespace,
    choice: tuple[engines.Engine, ...],
    bases: tuple[engines.Engine, ...],
    made: Callable[[Workload], Workload],
) -> list[dict[str, Any]]:
    chosen = [engine for engine in choice if engine in bases or any(words in engine.name for words in given.only)]
    rows: list[dict[str, Any]] = []
    for workload in _workloads(given):
        rows += engines.rows(engines.compare(made(workload), chosen, options(given)), bases)
    return rows


def _workloads(given: argparse.Namespace) -> list[Workload]:
    works = [WORKLOADS[name] for name in given.workload or WORKLOADS]
    works = [work.quick() for work in works] if given.quick else works
    works = [dataclasses.replace(work, rounds=given.rounds or work.rounds) for work in works]
    return [work.of(given.cohort) for work in works] if given.cohort else works


def options(given: argparse.Namespace) -> engines.Options:
    """Of all that takes turns."""
    memory = not (given.quick or given.no_memory)
    return engines.Options(given.device, given.repeats, memory, lambda words: print(words, file=sys.stderr))


def aggregate(given: argparse.Namespace) -> dict[str, Any]:
    """Flower's path and fedsim's."""
    number = QUICK_UPDATES if given.quick else aggregation.CLIENTS
    return {"rows": aggregation.measure(given.repeats, number, options(given).say)}


def profile(given: argparse.Namespace) -> dict[str, Any]:
    """One round by stages and operators."""
    return {"rows": [stages.measure(workload, given.device) for workload in _workloads(given)]}


BENCHMARKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "engines": plain,
    "private": private,
    "aggregation": aggregate,
    "population": lambda given: {"rows": population.measure(options(given), given.quick)},
    "startup": lambda given: {"rows": startup.measure(given.repeats)},
    "store": lambda given: {"rows": store.measure(given.repeats, given.quick)},
    "packed": lambda given: {"rows": packed.measure(given.repeats, given.quick)},
    "scaling": lambda given: {"axes": scaling.measure(options(given), given.quick)},
    "profile": profile,
}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__.partition(": ")[2])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all of them without a name")
    parser.add_argument("--repeats", type=int, help="turns that each engine takes (3; quick: 1)")
    parser.add_argument("--rounds", type=int, help="timed rounds of a turn, instead of the workload's own number")
    parser.add_argument("--cohort", type=int, help="clients a round, instead of the workload's own number")
    parser.add_argument("--no-memory", action="store_true", help="leave out the turns that look at memory alone")
    parser.add_argument("--quick", action="store_true", help="little work: to see that all of it runs, not how fast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where clients train")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this one; may be given again")
    parser.add_argument("--only", action="append", metavar="WORDS", help="only engines with these words in their name")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="where results go (%(default)s)")
    parser.add_argument(
        "--write", action="store_true", help="make README.md's tables anew from --out; alone: measure nothing"
    )
    given = parser.parse_args(words)
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(BENCHMARKS)}")
    for name in ("repeats", "rounds", "cohort"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1")
    given.repeats = given.repeats or (1 if given.quick else 3)
    given.only = given.only or [""]
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, and write."""
    given = arguments(words)
    names = given.names or ([] if given.write else list(BENCHMARKS))
    for name in names:
        try:
            results.keep(name, BENCHMARKS[name](given), given.device, given.out)
        except FedsimError as error:
            sys.exit(f"{name}: {error}")
    if given.write:
        results.write_readme(given.out)


if __name__ == "__main__":
    main()
