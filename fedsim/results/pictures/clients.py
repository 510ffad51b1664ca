"""How clients fare, and how often they take part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run, tenths
from fedsim.results.formats import percent, tenth_names
from fedsim.results.pictures.style import BLUE, ORANGE, counts_axis, figure_of, round_axis, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DOTS = 2000  # more clients are drawn as a density


def client_accuracy(run: Run) -> Figure | None:
    """How accuracy spreads over clients, and whether those who hold more examples fare better."""
    from matplotlib.ticker import PercentFormatter

    accuracy, examples, holdout = (run.client(name) for name in ("accuracy", "num_examples", "num_holdout"))
    known = np.isfinite(accuracy)
    if known.sum() < 2:
        return None
    accuracy, examples, holdout = accuracy[known], examples[known], holdout[known]
    worst, best = tenths(accuracy)
    worst_name, best_name = tenth_names(len(accuracy))
    title = f"{worst_name.capitalize()} has {percent(worst)} accuracy, {best_name} {percent(best)}"
    figure, (left, right) = figure_of(title, 2)
    left.hist(accuracy, bins=np.linspace(0, 1, 21).tolist(), color=BLUE, edgecolor="white", lw=0.6)
    left.axvline(accuracy.mean(), color="black", lw=1.2, label=f"mean {percent(accuracy.mean())}")
    left.axvline(worst, color=ORANGE, lw=1.2, ls="--", label=f"{worst_name} {percent(worst)}")
    left.set_ylabel("clients")
    counts_axis(left.yaxis)
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
        cells.set_cmap(shades())
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


def participation(run: Run) -> Figure | None:
    """How often each client took part, against a uniform draw; and, where some failed, when they did."""
    times = run.client("participations")
    times = times[np.isfinite(times)].astype(int)
    if len(times) == 0 or times.max() == 0 or len(run.rounds["round"]) < 2:
        return None
    rounds, failed = run.curve("num_failed")
    if times.min() == times.max() and failed.sum() == 0:
        return None  # one bar would say no more than the report's sentence
    title = f"{(times > 0).sum():,} of {len(times):,} clients took part, {times.mean():.3g} times on average"
    if failed.sum() > 0:
        title += f"; {failed.sum():,.0f} of {np.nansum(run.rounds['cohort_size']):,.0f} client-rounds failed"
    figure, panels = figure_of(title, 2 if failed.sum() > 0 else 1)
    _participation_panel(panels[0], times, len(run.rounds["round"]))
    if failed.sum() > 0:
        panels[1].bar(rounds, failed, color=ORANGE, width=1.0 if len(rounds) > 60 else 0.8)
        panels[1].set_ylabel("clients that failed in the round")
        counts_axis(panels[1].yaxis)
        round_axis(panels[1])
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
    counts_axis(axes.xaxis)
    counts_axis(axes.yaxis)
