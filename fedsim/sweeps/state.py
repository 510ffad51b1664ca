"""sweep.json: the cells of the command that was given last, and what became of each; written whole after every cell.

Whoever ran the cell writes it, in whatever process that was, so that a kill loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from fedsim.resolvers import cell_name, key_of
from fedsim.results.files import read_json, write_json
from fedsim.sweeps.locks import waited_for


class Cell(TypedDict):
    """folder: below the sweep's. reason: why it is not finished. before: it was finished before this command. seconds: here."""

    folder: str
    overrides: list[str]
    state: Literal["waiting", "finished", "failed", "stopped", "planned"]
    reason: str | None
    before: bool
    accuracy: float | None
    epsilon: float | None
    seconds: float


class Sweep(NamedTuple):
    """command: as it was given. began: seconds since the epoch. expected: cells there will be, None where nobody can say.

    axes: keys that are swept over. drawn: how the number of trials was drawn at random (the keys of `privacy.tuning.Trials`),
    None where it was not, or where trials are not drawn each by itself.
    """

    command: str
    began: float
    expected: int | None
    cells: list[Cell]
    axes: list[str] = []  # noqa: RUF012 - read alone
    drawn: dict[str, Any] | None = None

    def those(self, state: str) -> list[Cell]:
        """The cells that are finished, failed ..."""
        return [cell for cell in self.cells if cell["state"] == state]

    @property
    def done(self) -> list[Cell]:
        """The cells that something became of."""
        return [cell for cell in self.cells if cell["state"] != "waiting"]

    def words(self, cell: Cell) -> str:
        """What sets the cell apart from the others: its values of what is swept over; all of them where nothing is."""
        own = [one for one in cell["overrides"] if key_of(one) in self.axes]
        return " ".join(own or [one for one in cell["overrides"] if key_of(one) != "experiment"]) or "the only cell"


def begin(
    sweep_dir: Path,
    command: str,
    cells: Sequence[Sequence[str]] | None,
    expected: int | None = None,
    axes: Sequence[str] = (),
    drawn: dict[str, Any] | None = None,
) -> Sweep:
    """A command begins. cells: the overrides of each, where they are known (not where a sweeper thinks of them as it goes)."""
    named = {cell_name(one): one for one in cells or ()}  # one that is given twice is one cell
    waiting = [_waiting(name, one) for name, one in named.items()]
    sweep = Sweep(command, time.time(), expected if cells is None else len(waiting), waiting, list(axes), drawn)
    with waited_for(_lock(sweep_dir)):
        _write(sweep_dir, sweep)
    return sweep


def record(sweep_dir: Path, folder: str, overrides: Sequence[str], **found: Any) -> tuple[Sweep, Cell]:
    """Write down what became of a cell (keys of `Cell`); gives the sweep as it is now, and the cell."""
    with waited_for(_lock(sweep_dir)):
        sweep = read_state(sweep_dir) or Sweep("", time.time(), None, [])
        wanted = sorted(overrides)
        cell = next((one for one in sweep.cells if one["folder"] == folder or sorted(one["overrides"]) == wanted), None)
        if cell is None:
            cell = _waiting(folder, overrides)
            sweep.cells.append(cell)
        cell.update({"folder": folder, "overrides": list(overrides), **found})  # type: ignore[typeddict-item]
        _write(sweep_dir, sweep)
    return sweep, cell


def read_state(sweep_dir: Path) -> Sweep | None:
    """What sweep.json says; None where there is none."""
    path = sweep_dir / "sweep.json"
    return Sweep(**read_json(path, f"the sweep in {sweep_dir}")) if path.is_file() else None


def _waiting(folder: str, overrides: Sequence[str]) -> Cell:
    return Cell(
        folder=folder,
        overrides=list(overrides),
        state="waiting",
        reason=None,
        before=False,
        accuracy=None,
        epsilon=None,
        seconds=0.0,
    )


def _write(sweep_dir: Path, sweep: Sweep) -> None:
    write_json(sweep_dir / "sweep.json", sweep._asdict())


def _lock(sweep_dir: Path) -> Path:
    return sweep_dir / ".sweep.json.lock"
