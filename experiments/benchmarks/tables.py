"""What was found, as tables: on the terminal by rich, and in README.md as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.benchmarks.measure import Spread, short


class Table(NamedTuple):
    """header and rows of the same length; notes: sentences below."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: list[str]

    def markdown(self) -> str:
        """As it stands in README.md."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"**{self.title}**", table, *([" ".join(self.notes)] if self.notes else [])])

    def show(self) -> None:
        """On the terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable

        shown = RichTable(*self.header, title=self.title)
        for row in self.rows:
            shown.add_row(*row)
        console = Console()
        console.print(shown)
        for note in self.notes:
            console.print(note, highlight=False)


def of_engines(found: dict[str, Any]) -> list[Table]:
    """A table of each workload; what an engine could not do is told below it."""
    tables = []
    for workload in dict.fromkeys(row["workload"] for row in found["rows"]):
        own = [row for row in found["rows"] if row["workload"] == workload]
        bases = list(dict.fromkeys(base for row in own for base in row.get("ratio_to", {})))
        header = ["engine", "client-rounds/s", *(f"times the {base}" for base in bases), "start-up, s", "peak, MB"]
        rows = [
            [
                row["engine"],
                Spread(*row["client_rounds_per_second"]).words(),
                *(Spread(*row["ratio_to"][base]).words() for base in bases),
                short(row["start_up_seconds"], 2),
                _mb(row["peak_mb"]),
            ]
            for row in own
            if "refused" not in row
        ]
        title = f"{workload}{found['title']}, {own[0]['cohort']} clients a round"
        tables.append(Table(title, header, rows, _refusals(own, "engine")))
    return tables


def of_aggregation(found: dict[str, Any]) -> list[Table]:
    """Flower's path and fedsim's."""
    rows = [
        [
            row["path"],
            *(Spread(*row[name]).words() for name in ("seconds", "ratio", "peak_mb")),
        ]
        for row in found["rows"]
        if "refused" not in row
    ]
    title = f"Aggregating {found['rows'][0]['updates']:,} updates of 1.66 million parameters"
    header = ["path", "seconds", "times as fast as Flower's", "peak above the model, MB"]
    return [Table(title, header, rows, _refusals(found["rows"], "path"))]


def of_population(found: dict[str, Any]) -> list[Table]:
    """A row of each size."""
    rows = [
        [
            row["population"],
            *(Spread(*row[name]).words() for name in ("seconds_a_round", "ratio")),
            short(row["start_up_seconds"], 2),
            _mb(row["peak_mb"]),
        ]
        for row in found["rows"]
        if "refused" not in row
    ]
    title = f"A round of {found['rows'][0]['cohort']:,} clients, by the size of the population"
    header = ["population", "seconds a round", "times the smallest population's", "start-up, s", "peak, MB"]
    return [Table(title, header, rows, _refusals(found["rows"], "population"))]


def of_startup(found: dict[str, Any]) -> list[Table]:
    """A row of each start."""
    rows = [
        [
            f"`{row['start']}`",
            Spread(row["seconds"], row["lowest"], row["highest"]).words(),
            short(row["ratio"]),
        ]
        for row in found["rows"]
    ]
    header = ["start", "seconds", "times the imports'"]
    return [Table("From typing the command to the first trained client", header, rows, [])]


def of_store(found: dict[str, Any]) -> list[Table]:
    """A row of each way to read."""
    rows = [[row["way"], *(Spread(*row[name]).words() for name in ("seconds", "ratio"))] for row in found["rows"]]
    title = f"Reading {found['rows'][0]['runs']:,} runs of {found['rows'][0]['rounds']} rounds"
    return [Table(title, ["way", "seconds", "times fedsim's tables"], rows, [])]


def of_packed(found: dict[str, Any]) -> list[Table]:
    """A row of each way to run the seeds."""
    rows = [[row["way"], *(Spread(*row[name]).words() for name in ("seconds", "ratio"))] for row in found["rows"]]
    title = f"{found['rows'][0]['seeds']} seeds of the 2NN, {found['rows'][0]['rounds']} rounds each, whole commands"
    return [Table(title, ["way", "seconds", "times packed"], rows, [])]


def of_scaling(found: dict[str, Any]) -> list[Table]:
    """A table of each axis."""
    tables = []
    for axis, points in found["axes"].items():
        engines = list(dict.fromkeys(point["engine"] for point in points))
        if axis == "workers":
            engines = ["fedsim processes"]
            points = [{**point, "engine": engines[0]} for point in points]
        values = list(dict.fromkeys(point["value"] for point in points))
        speeds = {(p["engine"], p["value"]): p.get("client_rounds_per_second") for p in points}
        rows = [
            [f"{value:,}", *(Spread(*s).words() if (s := speeds[e, value]) else "-" for e in engines)]
            for value in values
        ]
        tables.append(Table(f"Client-rounds/s by {axis}", [axis, *engines], rows, _refusals(points, "engine")))
    return tables


def of_profile(found: dict[str, Any]) -> list[Table]:
    """Stages, and torch's operators, of each workload."""
    tables = []
    for one in found["rows"]:
        whole = sum(one["stages"].values())
        stages = [[stage, short(s * 1e3), f"{s / whole:.1%}"] for stage, s in one["stages"].items()]
        name = f"{one['workload']}, {one['cohort']} clients a round"
        tables.append(Table(f"One round of {name}, by stage", ["stage", "ms", "share"], stages, []))
        operators = [[f"`{o['operator']}`", f"{o['calls']:,}", short(o["ms"])] for o in one["operators"]]
        tables.append(Table(f"One round of {name}, by operator", ["operator", "calls", "ms of its own"], operators, []))
    return tables


TABLES = {
    "engines": of_engines,
    "private": of_engines,
    "aggregation": of_aggregation,
    "population": of_population,
    "startup": of_startup,
    "store": of_store,
    "packed": of_packed,
    "scaling": of_scaling,
    "profile": of_profile,
}


def _mb(peak: float | None) -> str:
    return "-" if peak is None else f"{peak:,.0f}"


def _refusals(rows: list[dict[str, Any]], name: str) -> list[str]:
    return [f"Not measured: {row[name]} ({row['refused']})." for row in rows if "refused" in row]
