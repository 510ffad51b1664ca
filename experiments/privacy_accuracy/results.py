"""What the runs say: a row a cell, means with 95% intervals over seeds, a table in Markdown and the figure."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.privacy_accuracy.cells import Cell
from fedsim.paths import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {
    "example": "one example\n(trusts no one outside the device)",
    "user": "one client\n(trusts the server)",
    "distributed": "one client\n(trusts that only sums are seen)",
    "local": "one client's message\n(trusts nobody)",
}
"""What is hidden, and who is trusted."""


class Row(NamedTuple):
    """One run. epsilon: as asked for, None without privacy; spent: as the run's ledger states it. accuracy: on the test split."""

    dataset: str
    unit: str
    epsilon: float | None
    seed: int
    accuracy: float
    spent: float | None
    noise_multiplier: float | None
    rounds: int
    seconds: float
    command: str


class Mean(NamedTuple):
    """Over seeds. half: half of the 95% interval by Student's t, None of a single seed."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        """As in 0.812 ± 0.004."""
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


Means = dict[tuple[str, str, float | None], Mean]
"""By dataset, unit and epsilon."""


def row_of(cell: Cell, summary: dict) -> Row:
    """A finished cell's row."""
    return Row(
        dataset=cell.dataset,
        unit=cell.unit,
        epsilon=cell.epsilon,
        seed=cell.seed,
        accuracy=summary["accuracy"],
        spent=summary["epsilon"],
        noise_multiplier=summary["noise_multiplier"],
        rounds=summary["rounds"],
        seconds=summary["seconds"],
        command=cell.command,
    )


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """A line a run; nothing where a value is None."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and half-width; of at least one value."""
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return Mean(mean, None, 1)
    from scipy.stats import t

    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return Mean(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)


def means_of(rows: Iterable[Row]) -> Means:
    """Over the seeds of each cell."""
    found: dict[tuple[str, str, float | None], list[float]] = defaultdict(list)
    for row in rows:
        found[row.dataset, row.unit, row.epsilon].append(row.accuracy)
    return {key: mean_of(values) for key, values in found.items()}


def table(means: Means) -> str:
    """Markdown: a line a dataset and unit, a column an epsilon, without privacy last; a dash where no run was finished."""
    given = sorted({epsilon for *_, epsilon in means if epsilon is not None})
    columns: list[float | None] = [*given, None]
    lines = [
        "| dataset | unit | " + " | ".join(f"ε = {epsilon:g}" for epsilon in given) + " | no privacy |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for dataset, unit in dict.fromkeys(key[:2] for key in means):
        cells = (means.get((dataset, unit, epsilon), "–") for epsilon in columns)
        lines.append(f"| `{dataset}` | {unit} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def listing(asked: Sequence[Cell]) -> str:
    """The commands in a block of Markdown, those of one dataset, unit and size that differ by epsilon and seed in a line."""
    lines: dict[str, None] = {}
    for cell in asked:
        promise = "" if cell.epsilon is None else f"privacy.epsilon={cell.epsilon:g}"
        line = cell.command.replace(promise, "privacy.epsilon=EPSILON") if promise else cell.command
        lines[line.replace(f"seed={cell.seed}", "seed=SEED")] = None
    return "```\n" + "\n".join(lines) + "\n```\n"


def figure(means: Means) -> Figure:
    """Small multiples: a row a dataset, a column a unit; accuracy against epsilon, the same federation without privacy dashed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from fedsim.results.pictures.style import STYLE, WIDTH

    datasets = list(dict.fromkeys(dataset for dataset, _, _ in means))
    units = list(dict.fromkeys(unit for _, unit, _ in means))
    ticks = sorted({epsilon for *_, epsilon in means if epsilon is not None})
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, 0.7 + 2.1 * len(datasets)), layout="constrained")
        made.suptitle("Accuracy bought with ε, by what is hidden", x=0.008, ha="left", fontsize=10.5, fontweight="bold")
        grid = made.subplots(len(datasets), len(units), squeeze=False, sharex=True, sharey=True)
        for i, dataset in enumerate(datasets):
            for j, unit in enumerate(units):
                _panel(grid[i][j], {key[2]: mean for key, mean in means.items() if key[:2] == (dataset, unit)})
                if i == 0:
                    grid[i][j].set_title(f"$\\bf{{{unit}}}$: {WORDS[unit]}", fontsize=7.5)
            grid[i][0].set_ylabel(f"{dataset}\ntest accuracy")
        for axes in grid[-1]:
            axes.set_xlabel("ε")
            axes.set_xticks(ticks, minor=False)  # for all, since the axis is shared
        handles = {label: line for line, label in zip(*grid[0][0].get_legend_handles_labels(), strict=True)}
        if handles:
            made.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return made


def _panel(axes: Axes, means: dict[float | None, Mean]) -> None:
    """One dataset and unit."""
    from fedsim.results.pictures.style import BLUE, GREY

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 1)
    private = sorted((epsilon, mean) for epsilon, mean in means.items() if epsilon is not None)
    if private:
        epsilons, found = zip(*private, strict=True)
        axes.errorbar(
            epsilons,
            [mean.mean for mean in found],
            yerr=[mean.half or 0.0 for mean in found],
            color=BLUE,
            marker="o",
            capsize=2.5,
            label="with the promise (95% over seeds)",
        )
    if (without := means.get(None)) is not None:
        axes.axhline(
            without.mean, color=GREY, linestyle="--", linewidth=1.2, label="the same federation without privacy"
        )
        if without.half:
            axes.axhspan(without.mean - without.half, without.mean + without.half, color=GREY, alpha=0.15, linewidth=0)


def renewed(text: str, block: str, content: str) -> str:
    """A README with what stands between its marks `<!-- block -->` and `<!-- end of block -->` replaced; as it was without them."""
    begin, end = f"<!-- {block} -->\n", f"<!-- end of {block} -->"
    before, mark, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    return f"{before}{begin}{content}{end}{after}" if mark and closing else text
