"""Devices that are there as somebody's devices once were: intervals of time, read from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.checks import did_you_mean, require_bool
from fedsim.fleet.availability import Availability, World, whole_periods
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pyarrow as pa


class Trace(Availability):
    """Intervals [start, end) of each device, in seconds, from a CSV or Parquet file with a row for each.

    Column `client` has whole numbers, those of the clients, or else column `device` has names of any kind, the first of
    which stands for client 0, the next new one for client 1. Rows may come in any order. Other columns are left alone.
    """

    way_out = "set availability.repeat=true, or give a longer trace"

    def __init__(self, path: str, repeat: bool = False, reuse: bool = False) -> None:
        """repeat: begin anew at the trace's latest end, again and again; else nobody is there after it.

        reuse: clients without rows take the devices of the trace in turn; else they are refused by `begin`.
        """
        self.path, self.reuse = Path(path).expanduser(), require_bool("availability.reuse", reuse)
        repeats = require_bool("availability.repeat", repeat)
        device, start, end = _read(self.path)
        self.period = float(end.max()) if repeats else np.inf
        self._devices, starts = np.unique(device, return_index=True)
        self._bounds = np.append(starts, len(device))  # device i has the intervals from bounds[i] to bounds[i + 1]
        self._start, self._end = start, end

    def begin(self, world: World) -> None:
        """As in Availability. Raises FedsimError where a client has no rows and none may be reused."""
        super().begin(world)
        clients = np.arange(world.num_clients)
        place = np.minimum(np.searchsorted(self._devices, clients), len(self._devices) - 1)
        own = self._devices[place] == clients
        if not own.all() and not self.reuse:
            raise FedsimError(
                f"{self.path} has no row for client {clients[~own][0]} (nor for {(~own).sum() - 1} others of {len(clients)}); set "
                "availability.reuse=true to let them take the trace's devices in turn, or lower population.num_clients"
            )
        self._device = np.where(own, place, clients % len(self._devices))

    def _at(self, clients: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = self._device[clients]
        first, behind = self._bounds[device], self._bounds[device + 1]
        begun, again = np.zeros(len(clients)), np.full(len(clients), np.inf)
        if np.isfinite(self.period):
            number = whole_periods(time, self.period)
            begun, again = number * self.period, (number + 1) * self.period
        after = self._first_after(first, behind, begun, time)
        last, coming = np.maximum(after - 1, first), np.minimum(after, behind - 1)
        # An interval that reaches the period's end stops where the next period starts, whichever way the sum is rounded,
        # and goes on there where the device's first interval begins at 0.
        end = np.where(self._end[last] == self.period, again, begun + self._end[last])
        there = (after > first) & (time < end)
        start = np.where(after < behind, begun + self._start[coming], again + self._start[first])
        through = (end == again) & (self._start[first] == 0)
        end = np.where(through, again + self._end[first], end)
        end[through & (self._end[first] == self.period)] = np.inf
        return there, np.where(there, end, start)

    def _first_after(self, low: np.ndarray, high: np.ndarray, begun: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) of the intervals low .. high - 1 (both (n,)) the first that starts after `time`, `high` where none does.

        By bisection, for all clients at once.
        """
        while (low < high).any():
            middle = (low + high) // 2
            later = begun + self._start[np.minimum(middle, len(self._start) - 1)] > time
            low, high = np.where((low < high) & ~later, middle + 1, low), np.where((low < high) & later, middle, high)
        return low


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(intervals,) int64 numbers of devices, float64 starts and float64 ends, ordered by device and start.

    Intervals that touch are made one. Raises FedsimError naming the file, and the row where there is one (the first below
    a header is row 1), for intervals that cannot be or that overlap.
    """
    table = _table(path)
    device = _devices(table, path)
    start, end = (_numbers(table, column, path) for column in ("start", "end"))
    _refuse(path, start < 0, lambda row: f"starts at {start[row]:g}, before the run; count seconds from 0")
    _refuse(path, end <= start, lambda row: f"ends at {end[row]:g}, not after its start at {start[row]:g}; mend it")
    order = np.lexsort((start, device))
    by_device, by_start, by_end = device[order], start[order], end[order]
    same = by_device[1:] == by_device[:-1]
    overlaps = np.zeros(len(order), dtype=bool)
    overlaps[order[1:]] = same & (by_start[1:] < by_end[:-1])
    _refuse(path, overlaps, lambda row: f"starts at {start[row]:g}, within another row of its device; make them one")
    apart = ~same | (by_start[1:] > by_end[:-1])
    begins, ends = np.append(True, apart), np.append(apart, True)
    return by_device[begins], by_start[begins], by_end[ends]


def _refuse(path: Path, wrong: np.ndarray, words: Callable[[int], str]) -> None:
    """Raises FedsimError with `words` of the first row that is `wrong`, (rows,) bool."""
    rows = np.flatnonzero(wrong)
    if rows.size:
        raise FedsimError(f"{path}: row {rows[0] + 1} {words(int(rows[0]))}")


def _table(path: Path) -> pa.Table:
    """The columns in use. Raises FedsimError for a file that is not there, is broken, or misses a column."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.is_file():
        raise FedsimError(f"there is no file {path}; set availability.path to a CSV or Parquet file")
    kind = "Parquet" if path.suffix == ".parquet" else "CSV"
    try:
        table = parquet.read_table(path) if kind == "Parquet" else csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise FedsimError(
            f"{path} cannot be read as {kind} ({reason}); mend it, or set availability.path to another"
        ) from None
    names = table.column_names
    who = "device" if "device" in names and "client" not in names else "client"
    for column in (who, "start", "end"):
        if names.count(column) != 1:
            raise FedsimError(
                f"{path} has {names.count(column) or 'no'} columns named {column}{did_you_mean(column, names)}; "
                "a trace has the columns client (or device), start and end, each once"
            )
    if "device" in names and who == "client":
        raise FedsimError(f"{path} has a column client and a column device; leave one of them out")
    if table.num_rows == 0:
        raise FedsimError(f"{path} has no rows; give it one for each interval in which a device is there")
    return table.select([who, "start", "end"])


def _devices(table: pa.Table, path: Path) -> np.ndarray:
    """(rows,) int64 the number of each row's device: column `client`, or names by where they come first."""
    import pandas as pd

    if "client" in table.column_names:
        number = _numbers(table, "client", path)
        wrong = (number != np.floor(number)) | (number < 0) | (number >= 2**53)
        _refuse(path, wrong, lambda row: f"has client {number[row]:g}; count from 0, or call the column `device`")
        return number.astype(np.int64)
    names = table.column("device").to_pandas()
    _refuse(path, (names.isna() | (names == "")).to_numpy(), lambda row: "names no device; name it, or drop the row")
    return pd.factorize(names)[0].astype(np.int64)


def _numbers(table: pa.Table, column: str, path: Path) -> np.ndarray:
    """(rows,) float64, finite."""
    import pyarrow as pa

    values = table.column(column)
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        found = values.cast(pa.float64(), safe=False).to_numpy()
    else:
        found = np.array([_number(value) for value in values.to_pylist()])
        if np.isfinite(found).all():
            found[0] = np.nan  # numbers as text all through, which a Parquet file may hold
    _refuse(path, ~np.isfinite(found), lambda row: f"has {_told(values[row])} as its {column}; give a finite number")
    return found


def _number(value: object) -> float:
    """Of a text or anything else; NaN where it is none."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def _told(value: pa.Scalar) -> str:
    """A value as a reader of the file sees it; texts in quotation marks."""
    if not value.is_valid:
        return "nothing"
    return repr(value.as_py()) if isinstance(value.as_py(), str) else str(value)
