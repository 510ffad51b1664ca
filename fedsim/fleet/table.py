"""One's own devices from a file: a row for each kind, with its share, or a row for each client."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.checks import require_number
from fedsim.fleet.fleet import (
    ABOVE_ZERO,
    CARBON_INTENSITY,
    MAX_SPREAD,
    MAY_HAVE,
    MIN_BATTERY,
    MUST_HAVE,
    SPREADS,
    Fleet,
    Mix,
    first_unknown,
    hardware_of,
    take,
)
from fedsim.fleet.hardware import Hardware
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd

ONE_KIND = "device"
"""The kind of all clients where a table of clients names none."""


def table(
    path: str | None = None, carbon_intensity: float = CARBON_INTENSITY, min_battery: float = MIN_BATTERY
) -> Fleet:
    """The fleet of a .csv (plain or .gz) or .parquet file, whose columns are named as the keys of a kind in conf/fleet.

    With a column `client`, a row is what that client's device has, and `kind`, if there, is a name for it. Otherwise a row is
    a kind: `kind`, `share`, and its medians and spreads. gflops, memory_mb, down_mbps and up_mbps must be there; columns left out
    are 0, without battery_wh devices are on mains, and so is a row whose battery_wh is empty. Raises FedsimError for anything
    else that is empty, no number, out of range, twice there or not known.
    """
    rows = _read(path)
    if "client" not in rows:
        return Mix("table", _kinds(rows, str(path)), carbon_intensity, min_battery)
    clients, kind, names, figures = _clients(rows, str(path))
    return Listed(clients, hardware_of(kind, figures), names, str(path), carbon_intensity, min_battery)


class Listed(Fleet):
    """A device for each client that is listed.

    clients: (n,) their numbers, ascending. devices: theirs, in that order. path: the file, for sentences.
    """

    def __init__(
        self,
        clients: np.ndarray,
        devices: Hardware,
        kinds: tuple[str, ...],
        path: str,
        carbon_intensity: float = CARBON_INTENSITY,
        min_battery: float = MIN_BATTERY,
    ) -> None:
        self.kinds = kinds
        self.carbon_intensity = require_number("fleet.carbon_intensity", carbon_intensity, low=0)
        self.min_battery = require_number("fleet.min_battery", min_battery, low=0, below=1)
        self._clients, self._devices, self._path = clients, devices, path

    def check(self, num_clients: int) -> None:
        """See Fleet."""
        self._rows(np.arange(num_clients))

    def hardware(self, clients: np.ndarray, seed: int) -> Hardware:
        """See Fleet; nothing is drawn."""
        return take(self._devices, self._rows(clients))

    def _rows(self, clients: np.ndarray) -> np.ndarray:
        rows = np.searchsorted(self._clients, clients)
        there = self._clients[np.minimum(rows, len(self._clients) - 1)] == clients
        if not there.all():
            raise FedsimError(
                f"fleet.path={self._path} has no row for client {int(np.asarray(clients)[~there][0])}; "
                "add it, or lower population.num_clients"
            )
        return rows


def _kinds(rows: pd.DataFrame, path: str) -> dict[str, dict[str, float | None]]:
    """The kinds of a table of kinds, as `Mix` takes them."""
    figures = ("share", *MUST_HAVE, *MAY_HAVE, *SPREADS)
    _check_columns(rows, ("kind", "share", *MUST_HAVE), ("kind", *figures), path)
    kinds = _names(rows, path)
    _refuse_twice(kinds, "kind", path)
    numbers = {name: _numbers(rows, name, path) for name in figures if name in rows}
    return {
        str(kind): {name: None if np.isnan(column[row]) else float(column[row]) for name, column in numbers.items()}
        for row, kind in enumerate(kinds)
    }


def _clients(rows: pd.DataFrame, path: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], dict[str, np.ndarray]]:
    """Of a table of clients, by ascending number: these, each one's kind, the kinds' names, and the figures."""
    figures = (*MUST_HAVE, *MAY_HAVE)
    _check_columns(rows, ("client", *MUST_HAVE), ("client", "kind", *figures), path)
    clients = _numbers(rows, "client", path)
    if (broken := clients != np.floor(clients)).any():
        raise _wrong(rows, "client", broken, "it must be a whole number", path)
    _refuse_twice(clients.astype(np.int64), "client", path)
    order = np.argsort(clients)
    names: tuple[str, ...] = (ONE_KIND,)
    kind = np.zeros(len(rows), dtype=np.int64)
    if "kind" in rows:
        found, kind = np.unique(_names(rows, path), return_inverse=True)
        names = tuple(str(name) for name in found)
    numbers = {name: _numbers(rows, name, path)[order] for name in figures if name in rows}
    return clients[order].astype(np.int64), kind[order], names, numbers


def _read(path: str | None) -> pd.DataFrame:
    """The file's rows, at least one."""
    if path is None:
        raise FedsimError("fleet=table needs a file of devices; set fleet.path to a .csv or .parquet file")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FedsimError(f"fleet.path={path} is not there; give a .csv or .parquet file with a row a kind or a client")
    try:
        rows = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
    except Exception as error:  # pandas, pyarrow and codecs each have their own for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FedsimError(
            f"fleet.path={path} cannot be read ({reason}); give a .csv file with a header line, or .parquet"
        ) from error
    if not len(rows):
        raise FedsimError(f"fleet.path={path} has no rows; give one for each kind of device, or one for each client")
    return rows


def _read_parquet(file: Path) -> pd.DataFrame:
    """All columns, what pandas keeps as an index under a name of its own among them."""
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pandas(ignore_metadata=True)
    return rows[[name for name in rows if not name.startswith("__index_level_")]]


def _read_csv(file: Path) -> pd.DataFrame:
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows longer than the header, which it would cut
        return pd.read_csv(file, encoding="utf-8-sig", index_col=False)


def _check_columns(rows: pd.DataFrame, needed: tuple[str, ...], known: tuple[str, ...], path: str) -> None:
    what = "clients" if "client" in known else "kinds"
    if unknown := first_unknown(rows.columns, known):
        raise FedsimError(
            f"fleet.path={path} has a column {unknown[0]}, which no table of {what} has{unknown[1]}; take it away"
        )
    for name in needed:
        if name not in rows:
            raise FedsimError(f"fleet.path={path} has no column {name}, which a table of {what} needs; add it")


def _names(rows: pd.DataFrame, path: str) -> np.ndarray:
    """(n,) the column `kind` as texts."""
    if (empty := rows["kind"].isna().to_numpy()).any():
        raise _wrong(rows, "kind", empty, "give it a name", path)
    return rows["kind"].astype(str).to_numpy(dtype=str)


def _numbers(rows: pd.DataFrame, name: str, path: str) -> np.ndarray:
    """(n,) float64 a column of figures. Raises FedsimError naming the first row that is wrong."""
    import pandas as pd

    column = rows[name]
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if pd.api.types.is_bool_dtype(column):
        numbers = np.full(len(column), np.nan)
    no_number = ~np.isfinite(numbers)
    if name == "battery_wh":  # empty: on mains
        no_number &= ~column.isna().to_numpy()
    if no_number.any():
        raise _wrong(rows, name, no_number, "it must be a finite number", path)
    strictly = name in ABOVE_ZERO
    if (outside := numbers <= 0 if strictly else numbers < 0).any():
        raise _wrong(rows, name, outside, f"it must be {'above' if strictly else 'at least'} 0", path)
    if name in SPREADS and (outside := numbers > MAX_SPREAD).any():
        raise _wrong(rows, name, outside, f"it must be at most {MAX_SPREAD:g}", path)
    return numbers


def _refuse_twice(names: np.ndarray, column: str, path: str) -> None:
    found, counts = np.unique(names, return_counts=True)
    if (counts > 1).any():
        first = found[counts > 1][0]
        rows = np.flatnonzero(names == first)[:2] + 1
        raise FedsimError(
            f"fleet.path={path} has {column} {first} in rows {rows[0]} and {rows[1]} (below the header); keep one of them"
        )


def _wrong(rows: pd.DataFrame, column: str, broken: np.ndarray, rule: str, path: str) -> FedsimError:
    """The error for the first broken row of a column."""
    row = int(np.flatnonzero(broken)[0])
    value = rows[column].iloc[row]
    shown = "nothing" if value is None or value != value else str(value)
    return FedsimError(f"fleet.path={path} has {shown} as {column} in row {row + 1} (below the header); {rule}")
