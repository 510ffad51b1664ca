"""How epsilon was spent, over rounds and by client, and what it bought."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.formats import at_most, known, percent
from fedsim.results.pictures.learning import ACCURACIES, LOSSES
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, counts_axis, figure_of, line, round_axis
from fedsim.results.privacy_words import Promise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 3


def privacy(run: Run) -> Figure | None:
    """Epsilon over rounds, what each epsilon bought, how clients' epsilons differ, and how an adaptive norm moved."""
    _, epsilon = run.curve("epsilon")
    spent = _clients(run)
    if len(epsilon) == 0 and len(spent) == 0:
        return None
    draws: list[Callable[[Axes, Run], None]] = []
    if len(epsilon) > 1:
        draws.append(_spent_panel)
    if len(_bought(run)[2]) > 1 and epsilon.min() < epsilon.max():
        draws.append(_bought_panel)
    if len(spent) and spent.min() < spent.max():
        draws.append(_clients_panel)
    _, norms = run.curve("clip_norm")
    if len(norms) > 1 and norms.min() < norms.max() and len(draws) < MOST_PANELS:
        draws.append(_norm_panel)
    if not draws:
        return None  # one point says no more than the report's sentence
    figure, panels = figure_of(_title(run), len(draws))
    for draw, axes in zip(draws, panels, strict=True):
        draw(axes, run)
    return figure


def _title(run: Run) -> str:
    promise = Promise.of(run)
    if promise.standing == "refuted":
        return f"The audit refutes the claim of ε = {at_most(promise.claimed)}"
    if promise.standing == "removed":
        return "The noise was left out on purpose, so this ε protects no one"
    if promise.standing != "stated":
        return "ε over the rounds; none is stated for the run"
    title = f"ε = {at_most(promise.claimed)} at δ = {at_most(run.privacy.get('delta'))}"
    name, epsilon, values = _bought(run)
    if name is None or name == "loss" or len(values) == 0:
        return title
    title += f" bought {percent(values[-1])} accuracy"
    half = values[epsilon <= epsilon[-1] / 2]
    return f"{title}; half of it {percent(half[-1])}" if len(half) else title


def _clients(run: Run) -> np.ndarray:
    spent = run.client("epsilon")
    return spent[np.isfinite(spent)]


def _bought(run: Run) -> tuple[str | None, np.ndarray, np.ndarray]:
    """The best measure that there is, and its values with the epsilon that had been spent by then."""
    spent = dict(zip(*run.curve("epsilon"), strict=True))
    for name in ("accuracy", "federated_accuracy", "loss"):
        rounds, values = run.curve(name)
        both = np.array([round in spent for round in rounds], dtype=bool)
        if both.any():
            return name, np.array([spent[round] for round in rounds[both]]), values[both]
    return None, np.zeros(0), np.zeros(0)


def _spent_panel(axes: Axes, run: Run) -> None:
    line(axes, *run.curve("epsilon"), _whose(run), BLUE)
    budget = run.privacy.get("budget")
    if known(budget):
        axes.axhline(budget, color="black", lw=1, ls="--", label=f"budget {budget:.4g}")
    axes.set_ylabel(_measure(run))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    round_axis(axes)


def _measure(run: Run) -> str:
    return "ε spent so far" if Promise.of(run).standing in ("stated", "unstated") else "ε claimed so far"


def _whose(run: Run) -> str:
    spent = _clients(run)
    return "client that spent most" if len(spent) and spent.min() < spent.max() else "every client"


def _bought_panel(axes: Axes, run: Run) -> None:
    from matplotlib.ticker import PercentFormatter

    name, epsilon, values = _bought(run)
    assert name is not None
    label, color = {**LOSSES, **ACCURACIES}[name]
    line(axes, epsilon, values, label, color)
    axes.set_xlabel(_measure(run))
    axes.set_xlim(left=0)
    axes.set_ylabel(f"{'loss' if name == 'loss' else 'accuracy'}, {label}")
    if name != "loss":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _clients_panel(axes: Axes, run: Run) -> None:
    spent = _clients(run)
    edges = np.linspace(0, spent.max(), 21)
    axes.hist(spent, bins=edges.tolist(), color=BLUE, edgecolor="white", lw=0.6)
    middle = float(np.median(spent))
    axes.axvline(middle, ymax=0.78, color="black", lw=1.2, label=f"median {at_most(middle)}")
    axes.axvline(spent.max(), ymax=0.78, color=ORANGE, lw=1.2, ls="--", label=f"most {at_most(float(spent.max()))}")
    axes.set_xlabel("ε that a client spent in all")
    axes.set_ylabel("clients")
    axes.set_ylim(top=axes.get_ylim()[1] / 0.78)  # room for the legend above the bars
    counts_axis(axes.yaxis)
    axes.legend(loc="upper left")


def _norm_panel(axes: Axes, run: Run) -> None:
    line(axes, *run.curve("clip_norm"), "", GREY)
    axes.set_ylabel("clipping norm of the next round")
    axes.set_ylim(bottom=0)
    round_axis(axes)
