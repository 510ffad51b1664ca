"""Which client holds how much of which class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.pictures.style import BLUE, WIDTH, counts_axis, figure_of, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BUBBLE_CLIENTS, MAX_BUBBLE_CLASSES = 100, 20
MAX_NAMED = 30  # more clients are not named
MAX_COLUMNS, MAX_ROWS = 400, 100  # of the heat map; more clients share a column, more classes share the last row
INVISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "": "(none)"}


def client_classes(run: Run) -> Figure | None:
    """Who holds what: a bubble a client and class where there are few, else shares of sorted clients as a heat map."""
    counts = run.class_counts
    if counts is None or counts.sum() == 0:
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # (clients, classes)
    largest = -np.sort(-shares[counts.sum(1) > 0], axis=1)
    typical = np.median((np.cumsum(largest, axis=1) < 0.9 - 1e-12).sum(1) + 1)
    title = f"{typical:.3g} of {counts.shape[1]} classes make up 90% of what the median client holds"
    everybody = len(counts) == len(run.users)
    if everybody and counts.shape[0] <= MAX_BUBBLE_CLIENTS and counts.shape[1] <= MAX_BUBBLE_CLASSES:
        return _bubbles(title, counts, class_names(run), run.users)
    who = f"{len(counts):,} clients" + ("" if everybody else f" drawn by chance from {len(run.users):,}")
    return _heat_map(title, counts, class_names(run), who)


def class_names(run: Run) -> list[str]:
    """What the classes that were counted are called, shortened where they are long."""
    assert run.class_counts is not None
    names = [str(name) for name in run.summary.get("dataset", {}).get("classes") or ()]
    if len(names) != run.class_counts.shape[1]:
        names = [str(label) for label in range(run.class_counts.shape[1])]
    names = [INVISIBLE.get(name, name) for name in names]
    return [_shortened(name, 18) for name in names]


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _client_order(counts: np.ndarray) -> tuple[np.ndarray, str]:
    """Clients by their most common class where that tells them apart, else (text, say) by size."""
    size = counts.sum(1)
    most_common = counts.argmax(1)
    if np.bincount(most_common[size > 0]).max() <= 0.5 * (size > 0).sum():
        share = counts.max(1) / np.maximum(size, 1)
        return np.lexsort((-share, most_common)), "by their most common class"
    return np.argsort(-size, kind="stable"), "by examples held, most first"


def _bubbles(title: str, counts: np.ndarray, names: list[str], users: list[str | None]) -> Figure:
    order, how = _client_order(counts)
    figure, (axes,) = figure_of(title, 1, height=1.3 + 0.25 * counts.shape[1])
    client, label = np.nonzero(counts[order])
    held = counts[order][client, label]
    per_column = WIDTH * 72 * 0.8 / max(len(counts), 12)  # points between two clients
    biggest = min(max(1.4 * per_column, 11.0), 16.0) ** 2
    scale = biggest / held.max()
    axes.scatter(client, label, s=held * scale, color=BLUE, alpha=0.7, lw=0)
    for sample in sorted({max(1, round(held.max() * part)) for part in (0.1, 0.5, 1.0)}):
        axes.scatter([], [], s=sample * scale, color=BLUE, alpha=0.7, lw=0, label=f"{sample:,} examples")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), labelspacing=0.9)
    axes.set_xlim(-1, len(counts))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{len(counts):,} clients, {how}")
    _name_clients(axes, [users[client] or str(client) for client in order])
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylabel("class")
    return figure


def _name_clients(axes: Axes, names: list[str]) -> None:
    """The names below their columns, where there is room for them."""
    if len(names) > MAX_NAMED:
        axes.set_xticks([])
        return
    short = [_shortened(name, 14) for name in names]
    slanted = max(map(len, short)) * len(short) > 80
    axes.set_xticks(range(len(short)), short, parse_math=False)
    axes.tick_params(axis="x", length=0, labelrotation=30 if slanted else 0)
    if slanted:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")


def _heat_map(title: str, counts: np.ndarray, names: list[str], who: str) -> Figure:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import PercentFormatter

    order, how = _client_order(counts)
    counts, names = _by_frequency(counts[order], names) if len(names) > MAX_BUBBLE_CLASSES else (counts[order], names)
    starts = np.linspace(0, len(counts), min(len(counts), MAX_COLUMNS) + 1).astype(int)[:-1]
    columns = np.add.reduceat(counts, starts, axis=0, dtype=np.int64).T  # (classes, columns)
    shares = np.ma.masked_equal(columns / np.maximum(columns.sum(0), 1), 0)  # nothing held stays white
    few = len(names) <= MAX_BUBBLE_CLASSES
    norm = Normalize(0, shares.max()) if few else LogNorm(max(shares.min(), shares.max() / 1000), shares.max())
    figure, (axes,) = figure_of(title, 1, height=3.4 if few else 1.6 + 0.092 * len(names))
    extent = (0, len(counts), len(names) - 0.5, -0.5)
    image = axes.imshow(shares, aspect="auto", cmap=shades(), norm=norm, interpolation="nearest", extent=extent)
    bar = figure.colorbar(image, ax=axes, pad=0.01, shrink=1.0 if few else 0.5, extend="neither" if few else "min")
    bar.set_label("share of the client's examples" + ("" if few else " (log scale)"))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None if few else 2))
    axes.grid(False)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=8 if few else 6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("class" if few else "class, most common first")
    counts_axis(axes.xaxis)
    axes.set_xlabel(f"{who}, {how} (white: none of the class)")
    return figure


def _by_frequency(counts: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    order = np.argsort(-counts.sum(0), kind="stable")
    counts, names = counts[:, order], [names[label] for label in order]
    if len(names) <= MAX_ROWS:
        return counts, names
    rest = counts[:, MAX_ROWS - 1 :].sum(1, keepdims=True)
    others = f"{len(names) - MAX_ROWS + 1:,} others"
    return np.hstack([counts[:, : MAX_ROWS - 1], rest]), [*names[: MAX_ROWS - 1], others]
