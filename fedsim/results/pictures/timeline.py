"""What devices did when: a bar for each download, training and upload, of a typical round or of a stretch of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.results.devices import CAUSES, Dispatches, devices_of, dispatches_of
from fedsim.results.finished import Run
from fedsim.results.pictures.style import figure_of
from fedsim.results.units import second_unit, time_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = {"download": "#56B4E9", "training": "#0072B2", "upload": "#E69F00"}
MARKS = {"network": "X", "battery": "D", "user": "s", "failed": "^"}
"""Where work was lost, by cause. Late work was not lost, only not waited for: it is hatched."""
INK = "#1C1E21"
MOST_DEVICES = 40
MOST_NAMED_UPDATES = 16
WINDOW = 3.0
"""Of the median time from sending to end: how long a stretch of a run without a common end of rounds is shown."""
BEYOND = 1.5
"""Of the round's length: how far what goes on after its end is shown."""


class View(NamedTuple):
    """What is drawn. rows: of the dispatches. start, end: seconds. updates: seconds and rounds of the server's updates."""

    rows: np.ndarray
    start: float
    end: float
    updates: list[tuple[float, int]]
    title: str
    origin: str


def timeline(run: Run) -> Figure | None:
    """The round of median length; where rounds do not wait for all that they sent, the middle of the run."""
    sent = dispatches_of(run)
    view = None if sent is None else _stretch(run, sent) if sent.overlapping else _median_round(run, sent)
    if sent is None or view is None:
        return None
    clients, title = _drawn(sent, view)
    figure, (axes,) = figure_of(title, 1, height=1.5 + 0.135 * max(len(clients), 4))
    divisor, unit = second_unit(view.end - view.start)
    for place, client in enumerate(clients):
        for row in view.rows[sent.client[view.rows] == client]:
            _bars(axes, place, (sent.times[row] - view.start) / divisor, str(sent.outcome[row]))
    _updates(axes, view, divisor)
    axes.set_xlim(0, (view.end - view.start) / divisor)
    axes.set_ylim(len(clients) - 0.4, -0.6)
    axes.set_xlabel(f"{unit} since {view.origin}")
    axes.set_yticks(range(len(clients)), _names(run, clients), parse_math=False, fontsize=6.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    _legend(figure, set(sent.outcome[view.rows[np.isin(sent.client[view.rows], clients)]]), len(view.updates) > 1)
    return figure


def ends_of_rounds(run: Run) -> np.ndarray | None:
    """(rounds,) simulated seconds since the start at which each round ended; None where that is not known of all."""
    lasted = run.rounds.get("simulated_seconds", np.array([np.nan]))
    return np.cumsum(lasted) if np.isfinite(lasted).all() else None


def _median_round(run: Run, sent: Dispatches) -> View | None:
    ends = ends_of_rounds(run)
    rounds = np.unique(sent.round)
    if len(rounds) > 1 and rounds[0] > 1:
        rounds = rounds[1:]  # of the oldest that was kept, a part may be gone
    place = np.searchsorted(run.rounds["round"], rounds)
    if ends is None or place.max() >= len(ends):
        return None
    lasted = run.rounds["simulated_seconds"][place]
    at = int(np.argsort(lasted, kind="stable")[(len(rounds) - 1) // 2])
    rows = np.flatnonzero(sent.round == rounds[at])
    start, end = float(sent.sent[rows].min()), float(ends[place[at]])
    length, waited = end - start, start - (end - float(lasted[at]))
    if length <= 0:
        return None
    last = min(float(np.nanmax(sent.ended[rows])), start + BEYOND * length)
    used = int((sent.outcome[rows] == "used").sum())
    kind = "the round of median length" if len(rounds) > 1 else "the only round"
    title = f"Round {rounds[at]}, {kind}: in {time_text(length)} the work of {used:,} of {len(rows):,} devices was used"
    if waited > 0.01 * length:
        title += f", after {time_text(waited)} of waiting for devices"
    shown_until = max(last, end) + 0.02 * length
    return View(rows, start, shown_until, [(end, int(rounds[at]))], title, "the model was sent")


def _stretch(run: Run, sent: Dispatches) -> View | None:
    ends = ends_of_rounds(run)
    took = sent.ended - sent.sent
    length = WINDOW * float(np.nanmedian(took))
    first, last = float(sent.sent.min()), float(np.nanmax(sent.ended))
    if ends is None or not length > 0:
        return None
    length = min(length, last - first)
    start = max(first, min(float(np.median(sent.sent)), last) - length / 2)
    end = start + length
    rows = np.flatnonzero((sent.sent < end) & (sent.ended > start))
    rounds = run.rounds["round"]
    updates = [(float(at), int(round)) for at, round in zip(ends, rounds, strict=True) if start <= at <= end]
    many = f"{len(updates)} server update{'' if len(updates) == 1 else 's'}"
    title = f"{time_text(length)} from the middle of the run: {many}, which do not wait for all devices"
    return View(rows, start, end, updates, title, f"{time_text(start)} after the start")


def _drawn(sent: Dispatches, view: View) -> tuple[list[int], str]:
    """The clients drawn, those that ended first on top, evenly chosen where there are many; and the title that says so."""
    order = view.rows[np.argsort(sent.ended[view.rows], kind="stable")]
    clients = list(dict.fromkeys(sent.client[order].tolist()))
    if len(clients) <= MOST_DEVICES:
        return clients, view.title
    kept = [clients[place] for place in np.linspace(0, len(clients) - 1, MOST_DEVICES).round().astype(int)]
    return kept, f"{view.title} ({MOST_DEVICES} of {len(clients):,} drawn, evenly chosen by when they ended)"


def _bars(axes: Axes, place: int, times: np.ndarray, outcome: str) -> None:
    """times: (5,) of one dispatch in units of the axis, NaN from where it was lost."""
    edges = np.fmin(np.where(np.isfinite(times[:4]), times[:4], times[4]), times[4])
    late: dict[str, Any] = (
        {"hatch": "//////", "edgecolor": "white", "linewidth": 0.0} if outcome == "late" else {"linewidth": 0.0}
    )
    for color, left, right in zip(PHASES.values(), edges[:-1], edges[1:], strict=True):
        if right > left:
            axes.barh(place, right - left, left=left, height=0.72, color=color, **late)
    if outcome in MARKS:
        axes.plot(times[4], place, MARKS[outcome], color=INK, ms=5.6, mec="white", mew=0.6, zorder=4)


def _updates(axes: Axes, view: View, divisor: float) -> None:
    for at, round in view.updates:
        x = (at - view.start) / divisor
        named = len(view.updates) <= MOST_NAMED_UPDATES
        axes.axvline(x, color=INK, lw=1.1 if named else 0.5, zorder=3)
        if named:
            name = f"round {round} ends" if len(view.updates) == 1 else str(round)
            place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(name, (x, 1.0), (0, 2), ha="center", fontsize=7, **place)


def _names(run: Run, clients: list[int]) -> list[str]:
    devices = devices_of(run)
    if devices is None:
        return [f"client {client}" for client in clients]
    kinds = [devices.kinds[devices.kind[client]] if devices.kind[client] >= 0 else "client" for client in clients]
    return [f"{kind} {client}" for kind, client in zip(kinds, clients, strict=True)]


def _legend(figure: Figure, outcomes: set[str], many_updates: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Patch | Line2D] = [Patch(facecolor=color, label=name) for name, color in PHASES.items()]
    if "late" in outcomes:
        keys.append(Patch(facecolor="#9A9A9A", hatch="//////", edgecolor="white", lw=0, label=CAUSES["late"]))
    keys += [
        Line2D([], [], color=INK, marker=mark, ls="none", ms=5.6, label=CAUSES[cause])
        for cause, mark in MARKS.items()
        if cause in outcomes
    ]
    if many_updates:
        keys.append(Line2D([], [], color=INK, lw=1.1, label="the server updates the model"))
    across = len(keys) if len(keys) <= 6 else -(-len(keys) // 2)
    by_column = [key for place in range(across) for key in keys[place::across]]  # so that it reads along its rows
    figure.legend(handles=by_column, loc="outside lower left", ncols=across)
