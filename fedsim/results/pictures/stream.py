"""A run on streams over its rounds: accuracy on what comes next, when data drifted, when that was noticed, what was spent."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run, tenths
from fedsim.results.formats import percent, tenth_names
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, WIDTH, counts_axis, figure_of, line, round_axis
from fedsim.results.stream_words import events_of, stream_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = "#009E73"
COMPARED = {"fixed": ("best fixed model (fading)", ":"), "offline": ("trained anew on all so far (fading)", "-")}
CONCEPTS = {
    "old_concept_accuracy": ("test rows, old concept", "--"),
    "new_concept_accuracy": ("test rows, new concept", "-."),
}
"""What else is drawn, by column: what it is called, and its kind of line."""

MOST_INSIDE = 6
"""Names that stand in the axes."""


def stream(run: Run) -> Figure | None:
    """Prequential accuracy (or loss, of a regression) with the drift's events and the alarms; epsilon below where one is spent."""
    from matplotlib.figure import Figure

    measure = next((name for name in ("accuracy", "loss") if len(run.curve(f"prequential_{name}")[0])), None)
    if measure is None:
        return None
    spends = len(run.curve("epsilon")[0]) > 1
    figure = Figure(figsize=(WIDTH, 4.6 if spends else 3.6), layout="constrained")
    title = textwrap.fill(stream_title(run), int(WIDTH * 11.5))
    figure.suptitle(title, x=0.008, ha="left", fontsize=10.5, fontweight="bold")
    ratios = [3, 1] if spends else [1]
    panels = list(figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0])
    _judged(panels[0], run, measure)
    if spends:
        line(panels[1], *run.curve("epsilon"), "ε", ORANGE)
        panels[1].set_ylim(bottom=0)
        panels[1].set_ylabel("ε spent")
    for axes in panels:  # alarms lie at the bottom of what is there
        _mark(axes, run)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(handles) > MOST_INSIDE:  # which would hide what they name
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.set_figheight(figure.get_figheight() + 0.6)
    else:
        panels[0].legend(loc="lower left" if measure == "accuracy" else "upper left", ncols=2)
    round_axis(panels[-1])
    return figure


def _judged(axes: Axes, run: Run, measure: str) -> None:
    rounds, each = run.curve(f"round_{measure}")
    axes.plot(rounds, each, ".", color=GREY, alpha=0.45, markersize=3, label="each round's arrivals")
    rounds, faded = run.curve(f"prequential_{measure}")
    axes.plot(rounds, faded, color=BLUE, label="on what comes next (fading)")
    for name, (label, style) in COMPARED.items():
        if len(run.curve(f"regret_{name}")[0]):
            axes.plot(*run.curve(f"{name}_{measure}"), style, color="black", linewidth=1.1, label=label)
    for name, (label, style) in CONCEPTS.items():
        if measure == "accuracy" and len(run.curve(name)[0]) > 1 and events_of(run):
            axes.plot(*run.curve(name), style, color=GREEN, linewidth=1.1, label=label)
    axes.set_ylabel(f"{measure} before training")


def _mark(axes: Axes, run: Run) -> None:
    """The drift's events as bands or lines, and alarms as marks at the bottom."""
    for number, event in enumerate(events_of(run)):
        label = "drift begins" if number == 0 else None
        axes.axvline(event["round"], color=ORANGE, linewidth=1.2, label=label)
        if event["until"] > event["round"]:
            axes.axvspan(event["round"], event["until"], color=ORANGE, alpha=0.12, linewidth=0)
    rounds, detected = run.curve("detected")
    alarms = rounds[detected > 0]
    if len(alarms):
        low = axes.get_ylim()[0]
        axes.plot(
            alarms, [low] * len(alarms), "^", color="black", markersize=7, clip_on=False, label="detector's alarm"
        )
        axes.set_ylim(bottom=low)


def stream_clients(run: Run) -> Figure | None:
    """How accuracy on what comes next, fading, spreads over the clients to whom something came."""
    from matplotlib.ticker import PercentFormatter

    accuracy = run.client("prequential_accuracy")
    accuracy = accuracy[np.isfinite(accuracy)]
    if len(accuracy) < 2:
        return None
    worst, _ = tenths(accuracy)
    name, _ = tenth_names(len(accuracy))
    title = f"On what comes to it {name} has {percent(worst)} accuracy, the mean client {percent(accuracy.mean())}"
    figure, (axes,) = figure_of(title, 1, height=2.4)
    axes.hist(accuracy, bins=np.linspace(0, 1, 41).tolist(), color=BLUE, edgecolor="white", lw=0.6)
    axes.axvline(accuracy.mean(), color="black", lw=1.2, label=f"mean {percent(accuracy.mean())}")
    axes.axvline(worst, color=ORANGE, lw=1.2, ls="--", label=f"{name} {percent(worst)}")
    axes.set_ylabel("clients")
    counts_axis(axes.yaxis)
    axes.set_xlabel("accuracy on what comes to the client, before training on it (fading)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="upper left")
    return figure
