"""A line a cell: which of how many, what it is, how it ended, and how long the rest may take."""

from __future__ import annotations

import time

from fedsim.resolvers import key_of
from fedsim.results.formats import at_most
from fedsim.sweeps.state import Cell, Sweep


def line(sweep: Sweep, cell: Cell) -> str:
    """As in `3 of 12: client.lr=0.1 seed=2: accuracy 0.912, 14 s; about 2 min left`."""
    of = f" of {sweep.expected}" if sweep.expected is not None else ""
    words = [f"{name} {cell[name]:.4g}" for name in ("accuracy",) if cell[name] is not None]
    if cell["epsilon"] is not None:
        words.append(f"epsilon {at_most(cell['epsilon'])}")
    match cell["state"]:
        case "finished" if cell["before"]:
            told = ", ".join(["finished before", *words])
        case "finished" | "planned":
            told = ", ".join([*words, f"{cell['seconds']:.0f} s"])
        case "stopped":
            told = str(cell["reason"]).partition(";")[0]
        case _:
            told = f"{cell['state']}: {cell['reason']}"
    left = time_left(sweep, time.time()) if cell["state"] != "stopped" else ""
    return f"{len(sweep.done)}{of}: {sweep.words(cell)}: {told}{f'; {left}' if left else ''}"


def time_left(sweep: Sweep, now: float) -> str:
    """What the cells that are left may take, by those most like them that were run; empty where there is nothing to go by.

    Where a value is left that no cell had yet, it says so, since the number is a guess then.
    """
    ran = [cell for cell in sweep.done if not cell["before"] and cell["state"] == "finished"]
    expected = sweep.expected if sweep.expected is not None else len(sweep.cells)
    left = expected - len(sweep.done)
    if not ran or left <= 0:
        return ""
    waiting = [cell for cell in sweep.cells if cell["state"] == "waiting"]
    spent = sum(cell["seconds"] for cell in ran)
    seconds = sum(_like(cell, ran) for cell in waiting) + (left - len(waiting)) * spent / len(ran)
    seconds *= max(now - sweep.began, 1e-9) / max(spent, 1e-9)  # several at a time, and what is between them
    seen = {one for cell in ran for one in _telling(cell)}
    unseen = any(one not in seen for cell in waiting for one in _telling(cell))
    return f"about {duration(seconds)} left" + (" if the others take as long" if unseen else "")


def _telling(cell: Cell) -> list[str]:
    """The overrides that a cell's seconds may depend on."""
    return [one for one in cell["overrides"] if key_of(one) != "seed"]


def _like(cell: Cell, ran: list[Cell]) -> float:
    """Mean seconds of those cells that share most with this one."""
    own = set(_telling(cell))
    shared = [len(own & set(_telling(other))) for other in ran]
    nearest = [other["seconds"] for other, count in zip(ran, shared, strict=True) if count == max(shared)]
    return sum(nearest) / len(nearest)


def duration(seconds: float) -> str:
    """Roughly, as one says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
