"""The pictures of a run, drawn from its folder: `write_plots(run_dir)` writes plots/*.png.

Each picture is a function from a run to a figure, or to None where the run holds nothing to draw: a missing number is
left out, never drawn as zero. Colours are those of Okabe and Ito, told apart by people with any colour vision.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A7A7A"
STYLE: dict[Any, Any] = {
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so that every machine draws the same
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}
MAX_BUBBLE_CLIENTS, MAX_BUBBLE_CLASSES = 100, 20
MAX_COLUMNS, MAX_ROWS = 400, 100  # of the heat map; more clients share a column, more classes share the last row
MAX_DOTS = 2000  # more clients are drawn as a density
INVISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "": "(none)"}


@dataclass(frozen=True)
class Run:
    """A finished run as its folder tells it, for pictures and for the report.

    rounds, clients: numeric columns by name, each (rows,) float64 with NaN where the file has null or is not finite.
    class_counts: (clients, classes) examples of each class that each client holds, or None (regression).
    """

    folder: Path
    summary: dict[str, Any]
    rounds: dict[str, np.ndarray]
    clients: dict[str, np.ndarray]
    class_counts: np.ndarray | None

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rounds in which the column `name` has a number, and those numbers."""
        values = self.rounds.get(name, np.full(len(self.rounds["round"]), np.nan))
        known = np.isfinite(values)
        return self.rounds["round"][known], values[known]

    def client(self, name: str) -> np.ndarray:
        """The column `name` of the clients (clients,), all NaN where the file does not have it."""
        return self.clients.get(name, np.full(len(self.clients["client"]), np.nan))


def read_run(run_dir: Path) -> Run:
    """Read summary.json, rounds.parquet and clients.parquet; FedsimError where one is missing."""
    import pyarrow.parquet as pq

    for name in ("summary.json", "rounds.parquet", "clients.parquet"):
        if not (run_dir / name).is_file():
            raise FedsimError(
                f"{run_dir} has no {name}, so it is not a finished run; name the folder of a finished run"
            )
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    rounds, clients = pq.read_table(run_dir / "rounds.parquet"), pq.read_table(run_dir / "clients.parquet")
    return Run(run_dir, summary, _numbers(rounds), _numbers(clients), _class_counts(clients))


def _numbers(table: pa.Table) -> dict[str, np.ndarray]:
    import pyarrow as pa

    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
            values = column.cast(pa.float64()).to_numpy().copy()
            values[~np.isfinite(values)] = np.nan
            columns[name] = values
    return columns


def _class_counts(clients: pa.Table) -> np.ndarray | None:
    import pyarrow as pa

    if "class_counts" not in clients.column_names:
        return None
    column = clients.column("class_counts").combine_chunks()
    if len(column) == 0 or pa.types.is_null(column.type) or column.null_count:
        return None
    counts = column.flatten().to_numpy(zero_copy_only=False)
    return counts.reshape(len(column), -1) if len(counts) else None


def write_plots(run_dir: Path) -> list[Path]:
    """Draw every picture that the run has numbers for; returns the files written, in the order of the report.

    A picture of an earlier writing that no longer has numbers is removed.
    """
    import matplotlib

    run = read_run(run_dir)
    (run_dir / "plots").mkdir(exist_ok=True)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change what a run looks like
        matplotlib.rcParams.update(STYLE)
        for name, draw in DRAWINGS.items():
            path = run_dir / "plots" / f"{name}.png"
            figure = draw(run)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            part = path.with_suffix(".part")
            figure.savefig(part, format="png")
            os.replace(part, path)
            written.append(path)
    return written


def percent(share: float) -> str:
    """0.8731 as `87.3%`."""
    return f"{100 * share:.1f}%"


def bytes_text(count: float) -> str:
    """A number of bytes with the unit that fits: `12.3 MB` (powers of 1,000)."""
    divisor, unit = byte_unit(count)
    return f"{count / divisor:.3g} {unit}" if count / divisor < 1000 else f"{count / divisor:,.0f} {unit}"


def byte_unit(count: float) -> tuple[float, str]:
    """The largest unit of which `count` bytes are at least one: its size in bytes and its name."""
    power = 0 if count < 1000 else min(int(math.log10(count) // 3), 5)
    return 1000.0**power, ("bytes", "kB", "MB", "GB", "TB", "PB")[power]


def _figure(title: str, panels: int, height: float = 3.2, width: float = 8.0, **grid: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    wrapped = textwrap.fill(title, int(width * 11.5))
    figure.suptitle(wrapped, x=0.008, ha="left", fontsize=10.5, fontweight="bold")
    return figure, list(figure.subplots(1, panels, squeeze=False, gridspec_kw=grid)[0])


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, style: str = "-") -> None:
    if len(x):
        axes.plot(x, y, style, color=color, label=label, marker="o" if len(x) <= 30 else None)


def _round_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _counts_axis(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def _shades() -> Colormap:
    """White to navy, starting at a blue that is still told from white, which means nothing at all."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colormaps["Blues"](np.linspace(0.16, 1.0, 256)))


def learning_curve(run: Run) -> Figure | None:
    """Accuracy and loss over rounds: the server's test rows, the clients' own rows with a band, and the baselines."""
    draws = [
        draw
        for draw, names in ((_accuracy_panel, ACCURACIES), (_loss_panel, LOSSES))
        if any(len(run.curve(name)[0]) > 1 for name in names)
    ]
    if not draws:
        return None
    figure, panels = _figure(_learning_title(run), len(draws), width=8.0 if len(draws) == 2 else 5.6)
    for draw, axes in zip(draws, panels, strict=True):
        draw(run, axes)
        _round_axis(axes)
        axes.legend()
    return figure


ACCURACIES = {"accuracy": ("test rows", BLUE), "federated_accuracy": ("clients' own rows, mean", ORANGE)}
LOSSES = {
    "loss": ("test rows", BLUE),
    "federated_loss": ("clients' own rows, mean", ORANGE),
    "train_loss": ("training on devices", GREY),
}


def _learning_title(run: Run) -> str:
    for name, best, text in (
        *((name, np.argmax, percent) for name in ACCURACIES),
        ("loss", np.argmin, "{:.3g}".format),
    ):
        rounds, values = run.curve(name)
        if len(values):
            at = int(best(values))
            what = "Loss" if name == "loss" else "Accuracy"
            whose = " on clients' own rows" if name.startswith("federated") else ""
            title = f"{what}{whose} is {text(values[-1])} after round {rounds[-1]:.0f}"
            return (
                title
                if at == len(values) - 1
                else f"{title}; the best was {text(values[at])} at round {rounds[at]:.0f}"
            )
    return "Loss on the devices while they train"


def _accuracy_panel(run: Run, axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    x, worst = run.curve("federated_accuracy_worst10")
    best_x, best = run.curve("federated_accuracy_best10")
    if len(x) and np.array_equal(x, best_x):
        axes.fill_between(x, worst, best, color=ORANGE, alpha=0.16, lw=0, label="worst 10% to best 10% of clients")
    for name, (label, color) in ACCURACIES.items():
        _line(axes, *run.curve(name), label, color)
    for name, label, style in (("central", "all data in one place", "--"), ("local_only", "each device alone", ":")):
        value = (run.summary.get("baselines") or {}).get(name, {}).get("accuracy")
        if value is not None and math.isfinite(value):
            axes.axhline(value, color="black", lw=1, ls=style, label=label)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _loss_panel(run: Run, axes: Axes) -> None:
    for name, (label, color) in LOSSES.items():
        _line(axes, *run.curve(name), label, color)
    axes.set_ylabel("loss" if run.summary.get("dataset", {}).get("task") == "regression" else "loss (nats)")
    values = np.concatenate([run.curve(name)[1] for name in LOSSES])
    if values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def client_classes(run: Run) -> Figure | None:
    """Who holds what: a bubble a client and class where there are few, else shares of sorted clients as a heat map."""
    counts = run.class_counts
    if counts is None or counts.sum() == 0:
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # (clients, classes)
    largest = -np.sort(-shares[counts.sum(1) > 0], axis=1)
    typical = np.median((np.cumsum(largest, axis=1) < 0.9 - 1e-12).sum(1) + 1)
    title = f"{typical:.3g} of {counts.shape[1]} classes make up 90% of what the median client holds"
    if counts.shape[0] <= MAX_BUBBLE_CLIENTS and counts.shape[1] <= MAX_BUBBLE_CLASSES:
        return _bubbles(title, counts, _class_names(run))
    return _heat_map(title, counts, _class_names(run))


def _class_names(run: Run) -> list[str]:
    assert run.class_counts is not None
    names = [str(name) for name in run.summary.get("dataset", {}).get("classes") or ()]
    if len(names) != run.class_counts.shape[1]:
        names = [str(label) for label in range(run.class_counts.shape[1])]
    names = [INVISIBLE.get(name, name) for name in names]
    return [name if len(name) <= 18 else name[:17] + "…" for name in names]


def _client_order(counts: np.ndarray) -> tuple[np.ndarray, str]:
    """Clients by their most common class where that tells them apart, else (text, say) by size."""
    size = counts.sum(1)
    most_common = counts.argmax(1)
    if np.bincount(most_common[size > 0]).max() <= 0.5 * (size > 0).sum():
        share = counts.max(1) / np.maximum(size, 1)
        return np.lexsort((-share, most_common)), "by their most common class"
    return np.argsort(-size, kind="stable"), "by examples held, most first"


def _bubbles(title: str, counts: np.ndarray, names: list[str]) -> Figure:
    order, how = _client_order(counts)
    figure, (axes,) = _figure(title, 1, height=1.3 + 0.25 * counts.shape[1])
    client, label = np.nonzero(counts[order])
    held = counts[order][client, label]
    per_column = 8.0 * 72 * 0.8 / max(len(counts), 12)  # points between two clients
    biggest = min(max(1.4 * per_column, 11.0), 16.0) ** 2
    scale = biggest / held.max()
    axes.scatter(client, label, s=held * scale, color=BLUE, alpha=0.7, lw=0)
    for sample in sorted({max(1, round(held.max() * part)) for part in (0.1, 0.5, 1.0)}):
        axes.scatter([], [], s=sample * scale, color=BLUE, alpha=0.7, lw=0, label=f"{sample:,} examples")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xlim(-1, len(counts))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{len(counts):,} clients, {how}")
    axes.set_xticks([])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylabel("class")
    return figure


def _heat_map(title: str, counts: np.ndarray, names: list[str]) -> Figure:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import PercentFormatter

    order, how = _client_order(counts)
    counts, names = _by_frequency(counts[order], names) if len(names) > MAX_BUBBLE_CLASSES else (counts[order], names)
    starts = np.linspace(0, len(counts), min(len(counts), MAX_COLUMNS) + 1).astype(int)[:-1]
    columns = np.add.reduceat(counts, starts, axis=0, dtype=np.int64).T  # (classes, columns)
    shares = np.ma.masked_equal(columns / np.maximum(columns.sum(0), 1), 0)  # nothing held stays white
    few = len(names) <= MAX_BUBBLE_CLASSES
    norm = Normalize(0, shares.max()) if few else LogNorm(max(shares.min(), shares.max() / 1000), shares.max())
    figure, (axes,) = _figure(title, 1, height=3.4 if few else 1.6 + 0.092 * len(names))
    extent = (0, len(counts), len(names) - 0.5, -0.5)
    image = axes.imshow(shares, aspect="auto", cmap=_shades(), norm=norm, interpolation="nearest", extent=extent)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=1.0 if few else 0.5, extend="neither" if few else "min")
    bar.set_label("share of the client's examples" + ("" if few else " (log scale)"))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None if few else 2))
    axes.grid(False)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8 if few else 6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("class" if few else "class, most common first")
    _counts_axis(axes.xaxis)
    axes.set_xlabel(f"{len(counts):,} clients, {how} (white: none of the class)")
    return figure


def _by_frequency(counts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    order = np.argsort(-counts.sum(0), kind="stable")
    counts, names = counts[:, order], [names[label] for label in order]
    if len(names) <= MAX_ROWS:
        return counts, names
    rest = counts[:, MAX_ROWS - 1 :].sum(1, keepdims=True)
    others = f"{len(names) - MAX_ROWS + 1:,} others"
    return np.hstack([counts[:, : MAX_ROWS - 1], rest]), [*names[: MAX_ROWS - 1], others]


def client_accuracy(run: Run) -> Figure | None:
    """How accuracy spreads over clients, and whether those who hold more examples fare better."""
    from matplotlib.ticker import PercentFormatter

    accuracy, examples, holdout = (run.client(name) for name in ("accuracy", "num_examples", "num_holdout"))
    known = np.isfinite(accuracy)
    if known.sum() < 2:
        return None
    accuracy, examples, holdout = accuracy[known], examples[known], holdout[known]
    worst, best = tenths(accuracy)
    title = f"The worst tenth of clients average {percent(worst)}, the best tenth {percent(best)}"
    figure, (left, right) = _figure(title, 2)
    left.hist(accuracy, bins=np.linspace(0, 1, 21).tolist(), color=BLUE, edgecolor="white", lw=0.6)
    left.axvline(accuracy.mean(), color="black", lw=1.2, label=f"mean {percent(accuracy.mean())}")
    left.axvline(worst, color=ORANGE, lw=1.2, ls="--", label=f"worst tenth {percent(worst)}")
    left.set_ylabel("clients")
    _counts_axis(left.yaxis)
    left.legend(loc="upper left")
    rows = f", {np.nanmedian(holdout):,.0f} rows at the median" if np.isfinite(holdout).any() else ""
    left.set_xlabel(f"accuracy on the client's own held-out data{rows}")
    left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _accuracy_by_size(right, examples, accuracy)
    return figure


def _accuracy_by_size(axes: Axes, examples: np.ndarray, accuracy: np.ndarray) -> None:
    from matplotlib.ticker import NullFormatter, PercentFormatter

    held = np.isfinite(examples) & (examples > 0)
    examples, accuracy = examples[held], accuracy[held]
    wide = len(examples) > 0 and examples.max() / examples.min() > 20
    if len(examples) <= MAX_DOTS:
        axes.scatter(examples, accuracy, s=14 if len(examples) <= 300 else 6, color=BLUE, alpha=0.55, lw=0)
    else:
        cells = axes.hexbin(examples, accuracy, xscale="log" if wide else "linear", gridsize=40, mincnt=1, bins="log")
        cells.set_cmap(_shades())
        axes.figure.colorbar(cells, ax=axes, label="clients", format="{x:,.0f}")
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if len(examples) >= 50:
        groups = np.array_split(np.argsort(examples, kind="stable"), 6)
        middle = [np.median(examples[group]) for group in groups]
        axes.plot(middle, [accuracy[group].mean() for group in groups], "o-", color=ORANGE, label="mean of each sixth")
        axes.legend(loc="lower right" if len(examples) > 300 else "best")
    axes.set_xlabel("examples that the client holds")
    axes.set_ylabel("accuracy on own held-out data")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def tenths(values: np.ndarray) -> tuple[float, float]:
    """Means of the lowest and of the highest tenth of finite values, at least one value each."""
    ordered = np.sort(values)
    size = max(1, round(len(ordered) / 10))
    return float(ordered[:size].mean()), float(ordered[-size:].mean())


def participation(run: Run) -> Figure | None:
    """How often each client took part, against a uniform draw; and, where some failed, when they did."""
    times = run.client("participations")
    times = times[np.isfinite(times)].astype(int)
    if len(times) == 0 or times.max() == 0 or len(run.rounds["round"]) < 2:
        return None
    rounds, failed = run.curve("num_failed")
    title = f"{(times > 0).sum():,} of {len(times):,} clients took part, {times.mean():.3g} times on average"
    if failed.sum() > 0:
        title += f"; {failed.sum():,.0f} of {np.nansum(run.rounds['cohort_size']):,.0f} client-rounds failed"
    figure, panels = _figure(title, 2 if failed.sum() > 0 else 1, width=8.0 if failed.sum() > 0 else 5.6)
    _participation_panel(panels[0], times, len(run.rounds["round"]))
    if failed.sum() > 0:
        panels[1].bar(rounds, failed, color=ORANGE, width=1.0 if len(rounds) > 60 else 0.8)
        panels[1].set_ylabel("clients that failed in the round")
        _counts_axis(panels[1].yaxis)
        _round_axis(panels[1])
    return figure


def _participation_panel(axes: Axes, times: np.ndarray, rounds: int) -> None:
    step = max(1, math.ceil((times.max() - times.min() + 1) / 60))  # whole numbers to a bar
    edges = np.arange(times.min(), times.max() + step + 1, step) - 0.5
    axes.hist(times, bins=edges.tolist(), color=BLUE, edgecolor="white", lw=0.6, label="this run")
    share = times.mean() / max(rounds, 1)
    if 0 < share < 1:
        k = np.arange(max(edges[0] + 0.5, 0), min(edges[-1], rounds + 1))
        log = [math.lgamma(rounds + 1) - math.lgamma(i + 1) - math.lgamma(rounds - i + 1) for i in k]
        expected = len(times) * step * np.exp(np.array(log) + k * math.log(share) + (rounds - k) * math.log1p(-share))
        axes.plot(k, expected, color="black", lw=1.2, label="expected of a uniform draw")
        axes.legend(loc="upper right")
        axes.set_ylim(top=1.25 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.set_xlabel("rounds that a client took part in")
    axes.set_ylabel("clients")
    _counts_axis(axes.xaxis)
    _counts_axis(axes.yaxis)


def traffic(run: Run) -> Figure | None:
    """Bytes sent, cumulative: over rounds, and against what they bought in accuracy (loss, for regression)."""
    up, down = (run.rounds.get(name, np.array([np.nan])) for name in ("bytes_up", "bytes_down"))
    if len(up) < 2 or not (np.isfinite(up).all() and np.isfinite(down).all()) or (up + down).sum() == 0:
        return None
    total = np.cumsum(up + down)
    divisor, unit = byte_unit(total[-1])
    name = next((name for name in ("accuracy", "federated_accuracy", "loss") if len(run.curve(name)[0])), None)
    title = f"{bytes_text(total[-1])} were sent: {bytes_text(up.sum())} up, {bytes_text(down.sum())} down"
    figure, panels = _figure(title + _bought(run, name, total), 2 if name else 1, width=8.0 if name else 5.6)
    rounds = run.rounds["round"]
    panels[0].plot(rounds, np.cumsum(down) / divisor, color=BLUE, label="down, server to devices")
    panels[0].plot(rounds, np.cumsum(up) / divisor, color=ORANGE, ls=(0, (4, 2)), label="up, devices to server")
    panels[0].set_ylabel(f"sent so far, all clients ({unit})")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    _round_axis(panels[0])
    if name:
        _bought_panel(panels[1], run, name, total / divisor, unit)
    return figure


def _bought(run: Run, name: str | None, total: np.ndarray) -> str:
    if name is None or name == "loss":
        return ""
    rounds, values = run.curve(name)
    enough = rounds[np.argmax(values >= 0.95 * values.max())]
    spent = total[np.searchsorted(run.rounds["round"], enough)]
    if len(values) < 5 or spent > 0.8 * total[-1]:
        return ""
    return f"; {percent(spent / total[-1])} of that bought 95% of the best accuracy"


def _bought_panel(axes: Axes, run: Run, name: str, total: np.ndarray, unit: str) -> None:
    from matplotlib.ticker import PercentFormatter

    rounds, values = run.curve(name)
    label, color = {**LOSSES, **ACCURACIES}[name]
    _line(axes, total[np.searchsorted(run.rounds["round"], rounds)], values, label, color)
    axes.set_xlabel(f"sent so far, up and down, all clients ({unit})")
    axes.set_xlim(left=0)
    axes.set_ylabel(f"{'loss' if name == 'loss' else 'accuracy'}, {label}")
    if name != "loss":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


DRAWINGS: dict[str, Callable[[Run], Figure | None]] = {
    "learning_curve": learning_curve,
    "client_accuracy": client_accuracy,
    "client_classes": client_classes,
    "participation": participation,
    "traffic": traffic,
}
