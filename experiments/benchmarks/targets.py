"""What was asked of fedsim on two CPU cores, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.benchmarks.engines import AS_IT_COMES, GHOST, GRAD_SAMPLE, RAW
from experiments.benchmarks.measure import short
from experiments.benchmarks.pfl_environment import PFL
from experiments.benchmarks.tables import Table


class Target(NamedTuple):
    """A figure that is to be at least (or `at_most`) so much; found: None where it was not measured."""

    what: str
    asked: float
    found: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.found is None:
            return None
        return self.found <= self.asked if self.at_most else self.found >= self.asked


def table(found: dict[str, dict[str, Any]]) -> Table:
    """found: results by the benchmark's name."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [
        [
            target.what,
            f"{'at most' if target.at_most else 'at least'} {short(target.asked, 2)}",
            "-" if target.found is None else short(target.found),
            words[target.met],
        ]
        for target in targets(found)
    ]
    return Table("What was asked for on two CPU cores", ["", "asked", "found", "met"], rows, [])


def targets(found: dict[str, dict[str, Any]]) -> Iterator[Target]:
    """fedsim is as it comes (`grid=auto`)."""
    plain, private = (found.get(name, {}).get("rows", []) for name in ("engines", "private"))
    for workload, asked in (("2NN", 3.5), ("CNN", 1.7), ("GroupNorm CNN", 1.6)):
        yield Target(f"{workload}: times the raw loop", asked, _over(plain, workload, RAW.name))
    for way, words in (("1 thread", "in one process"), ("2 processes", "in two processes")):
        yield Target(f"2NN: times pfl {words}", 4.5, _over(plain, "2NN", f"pfl {PFL}, {way}"))
    yield Target("2NN: times Flower on Ray", 10, _over(plain, "2NN", "Flower on Ray"))
    for workload, of_loop, of_ghost in (("2NN", 8.0, 4.0), ("CNN", 3.0, 1.8)):
        yield Target(f"{workload}, private: times Opacus's loop", of_loop, _over(private, workload, GRAD_SAMPLE.name))
        yield Target(f"{workload}, private: times ghost clipping", of_ghost, _over(private, workload, GHOST.name))
    own: dict[str, Any] = next(
        (row for row in found.get("aggregation", {}).get("rows", []) if row["path"] == "fedsim"), {}
    )
    yield Target("aggregation: times Flower's path", 6, _median(own, "ratio"))
    yield Target("aggregation: MB above the model", 50, _median(own, "peak_mb"), at_most=True)
    largest = (found.get("population", {}).get("rows") or [{}])[-1]
    yield Target("a million clients: times ten thousand's round", 1.15, _median(largest, "ratio"), at_most=True)
    yield Target("a million clients: peak, MB", 1500, largest.get("peak_mb"), at_most=True)
    for row, asked in zip(found.get("startup", {}).get("rows", [])[1:], (2.0, 2.5), strict=False):
        yield Target(f"start-up of {row['start']}: times the imports", asked, row["ratio"], at_most=True)
    in_turn = next((row for row in found.get("packed", {}).get("rows", [])[1:2]), {})
    yield Target("12 seeds packed: times 12 seeds in a row, in one sweep", 2, _median(in_turn, "ratio"))
    tables: dict[str, Any] = next(iter(found.get("store", {}).get("rows", [])), {})
    yield Target("reading 2,000 runs of 100 rounds: seconds", 5, _median(tables, "seconds"), at_most=True)


def _over(rows: list[dict[str, Any]], workload: str, rival: str) -> float | None:
    speeds = {
        r["engine"]: r["client_rounds_per_second"][0] for r in rows if r["workload"] == workload and "refused" not in r
    }
    own = speeds.get(AS_IT_COMES.name)
    others = [speed for engine, speed in speeds.items() if engine.startswith(rival)]
    return own / max(others) if own and others else None


def _median(row: dict[str, Any], name: str) -> float | None:
    return row[name][0] if name in row else None
