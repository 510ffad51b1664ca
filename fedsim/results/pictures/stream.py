"""A run on streams over its rounds: accuracy on what comes next, when data drifted, when that was noticed, what was spent."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from fedsim.results.finished import Run
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, WIDTH, line, round_axis
from fedsim.results.stream_words import events_of, stream_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = "#009E73"


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
    panels[0].legend(loc="lower left" if measure == "accuracy" else "upper left", ncols=2)
    round_axis(panels[-1])
    return figure


def _judged(axes: Axes, run: Run, measure: str) -> None:
    rounds, each = run.curve(f"round_{measure}")
    axes.plot(rounds, each, ".", color=GREY, alpha=0.45, markersize=3, label="each round's arrivals")
    rounds, faded = run.curve(f"prequential_{measure}")
    axes.plot(rounds, faded, color=BLUE, label="on what comes next (fading)")
    if measure == "accuracy" and len(run.curve("old_concept_accuracy")[0]) > 1 and events_of(run):
        axes.plot(*run.curve("old_concept_accuracy"), "--", color=GREEN, linewidth=1.1, label="test rows, old concept")
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
