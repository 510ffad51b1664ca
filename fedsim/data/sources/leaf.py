"""LEAF's JSON format (Caldas et al. 2018, arXiv:1812.01097): natural users, each with its own rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fedsim.checks import require_choice
from fedsim.data.dataset import IGNORED_TARGET, Dataset, Examples, Normalize
from fedsim.data.sources._columns import Columns, build, user_index
from fedsim.paths import data_dir
from fedsim.types import FedsimError

ABOUT = "LEAF data sets (FEMNIST, Shakespeare, Synthetic) as LEAF's preprocess.sh writes them"
HOW = "dataset=leaf (or femnist) dataset.root=DIR with DIR/train/*.json and DIR/test/*.json (leaf/data/femnist/data)"


class UserRows(NamedTuple):
    """One user of one file. x: (rows, ...) numbers, or a list of texts; y: a list of as many labels."""

    user: str
    x: Any
    y: list[Any]


def find(root: str | None = None, name: str = "leaf") -> Path | None:
    """The folder with train/ and test/: `root`, `root`/data (LEAF's own layout), or fetched data of this name."""
    bases = [Path(root).expanduser() if root else data_dir(name)]
    places = [place for base in bases for place in (base, base / "data")]
    return next(
        (place for place in places if all(any((place / part).glob("*.json")) for part in ("train", "test"))), None
    )


def load(
    root: str | None = None,
    shape: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    targets: str = "last",
    name: str = "leaf",
) -> Dataset:
    """Rows in the order of the files and of their users; users sorted by name.

    Numbers: x (n, *shape), uint8 where all are 255ths (FEMNIST's pixels), else float32; y (n,) int64, numbered by
    `classes` where given. Text: x (n, length) int64 symbols and y (n, length), each position's next symbol;
    targets=last counts only the one after the text, as LEAF does, targets=all counts every position.
    """
    folder = find(root, name)
    if folder is None:
        looked = f"dataset.root={root}" if root else str(data_dir(name))
        raise FedsimError(
            f"dataset {name}: {looked} has no train/*.json and test/*.json; run LEAF's preprocess.sh "
            "and set dataset.root to its data folder"
        )
    require_choice("dataset.targets", targets, ("last", "all"))
    train, test = (
        [row for file in sorted((folder / part).glob("*.json")) for row in _read(file)] for part in ("train", "test")
    )
    if isinstance(train[0].x[0], str):
        return _text(name, train, test, targets, folder)
    return _numbers(name, train, test, tuple(shape or ()), tuple(classes or ()), folder)


def _read(path: Path) -> list[UserRows]:
    """Users with rows of one file, in its order; numbers are packed at once, since lists of them take far more room."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FedsimError(f"{path} is no readable JSON ({error}); make it anew with LEAF's preprocess.sh") from None
    try:
        rows = [
            UserRows(str(user), content["user_data"][user]["x"], content["user_data"][user]["y"])
            for user in content["users"]
        ]
        counts = list(content["num_samples"])
    except (KeyError, TypeError) as error:
        raise FedsimError(
            f"{path} is not in LEAF's format (users, num_samples, user_data: x, y); it lacks {error}"
        ) from None
    if not all(isinstance(count, int) for count in counts):
        raise FedsimError(f"num_samples of {path} is no list of whole numbers; make it anew with LEAF's preprocess.sh")
    for row, count in zip(rows, counts, strict=False):
        if not (isinstance(row.x, list) and isinstance(row.y, list) and len(row.x) == len(row.y) == count):
            raise FedsimError(
                f"user {row.user} of {path} has not {count} rows of x and y as num_samples says; make it anew"
            )
    if len(rows) != len(counts) or not sum(counts):
        raise FedsimError(
            f"{path} has {len(rows)} users, {len(counts)} counts and {sum(counts)} rows; "
            "make it anew with LEAF's preprocess.sh"
        )
    return [_packed(row, path) for row in rows if row.x]


def _packed(row: UserRows, path: Path) -> UserRows:
    if isinstance(row.x[0], str):
        return row
    try:
        x = np.asarray(row.x, dtype=np.float32)
    except (TypeError, ValueError):
        raise FedsimError(
            f"user {row.user} of {path} has rows of different lengths or what is no number in x; mend it"
        ) from None
    if x.ndim < 2 or not np.isfinite(x).all():
        raise FedsimError(f"user {row.user} of {path} has NaN, infinity or single numbers for rows in x; mend it")
    return UserRows(row.user, _bytes(x), row.y)


def _bytes(x: np.ndarray) -> np.ndarray:
    """x as uint8 where every number is k/255, which keeps FEMNIST in a quarter of the room; else as it is."""
    scaled = x * 255
    levels = np.rint(scaled)
    exact = levels.min() >= 0 and levels.max() <= 255 and np.abs(scaled - levels).max() < 1e-3
    return levels.astype(np.uint8) if exact else x


def _numbers(
    name: str,
    train: list[UserRows],
    test: list[UserRows],
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    folder: Path,
) -> Dataset:
    in_bytes = all(np.asarray(row.x).dtype == np.uint8 for row in (*train, *test))
    parts = [
        Columns(_stack(rows, shape, in_bytes, folder), _labels(rows), _users(rows), None, f"{folder / part}")
        for part, rows in (("train", train), ("test", test))
    ]
    if parts[0].x.shape[1:] != parts[1].x.shape[1:]:
        raise FedsimError(
            f"{folder} has rows of {parts[0].x.shape[1:]} in train and {parts[1].x.shape[1:]} in test; make it anew"
        )
    pipeline = Normalize(0.0, 1.0) if in_bytes else nn.Identity()  # LEAF's own models see the numbers as they are
    return build(name, parts[0], parts[1], "classification", pipeline, str(folder), classes)


def _stack(rows: list[UserRows], shape: tuple[int, ...], in_bytes: bool, folder: Path) -> np.ndarray:
    """All users' x as (n, *shape)."""
    arrays = [np.asarray(row.x) for row in rows]
    if any(array.dtype.kind == "U" for array in arrays):
        raise FedsimError(f"{folder} has users with text in x beside users with numbers; keep to one kind")
    if not in_bytes:
        arrays = [array.astype(np.float32) / 255 if array.dtype == np.uint8 else array for array in arrays]
    lengths = {array.shape[1:] for array in arrays}
    if len(lengths) > 1 or (shape and math.prod(shape) != math.prod(arrays[0].shape[1:])):
        wanted = f"; dataset.shape={list(shape)} wants {math.prod(shape)} numbers a row" if shape else ""
        raise FedsimError(
            f"the rows of {folder} hold {' and '.join(map(str, sorted(lengths)))} numbers{wanted}; they must agree"
        )
    x = np.concatenate(arrays)
    return x.reshape(-1, *shape) if shape else x


def _labels(rows: list[UserRows]) -> np.ndarray:
    values = [label for row in rows for label in row.y]
    kinds = {type(label) for label in values}
    return np.array(values) if kinds <= {int, float} or kinds == {str} else np.array(values, dtype=object)


def _users(rows: list[UserRows]) -> np.ndarray:
    return np.repeat(np.array([row.user for row in rows]), [len(row.y) for row in rows])


def _text(name: str, train: list[UserRows], test: list[UserRows], targets: str, folder: Path) -> Dataset:
    """Windows of text whose targets are the next characters."""
    windows = [_windows(rows, folder) for rows in (train, test)]
    if len({block.shape[1] for block in windows}) > 1:
        raise FedsimError(f"{folder} has texts of other lengths in train than in test; make it anew with one length")
    symbols, index = np.unique(np.concatenate([block.ravel() for block in windows]), return_inverse=True)
    blocks = np.split(index.astype(np.int64).reshape(-1, windows[0].shape[1]), [len(windows[0])])
    users = [
        Columns(block, np.empty(len(block)), _users(rows), None, "")
        for block, rows in zip(blocks, (train, test), strict=True)
    ]
    names, *indices = user_index(users[0], users[1])
    splits = []
    for block, user in zip(blocks, indices, strict=True):
        x, y = torch.from_numpy(block[:, :-1].copy()), torch.from_numpy(block[:, 1:].copy())
        if targets == "last":
            y[:, :-1] = IGNORED_TARGET
        splits.append(Examples(x, y, user))
    classes = tuple(chr(symbol) for symbol in symbols)
    return Dataset(name, splits[0], splits[1], "next_token", classes, nn.Identity(), names, str(folder))


def _windows(rows: list[UserRows], folder: Path) -> np.ndarray:
    """Code points (n, length + 1): each text with the character after it."""
    lines = []
    for row in rows:
        for x, y in zip(row.x, row.y, strict=True):
            if not (isinstance(x, str) and isinstance(y, str) and len(y) == 1):
                raise FedsimError(
                    f"user {row.user} of {folder} has a text without the one character that follows; file names and "
                    "sentences (CelebA, Sent140, Reddit) are not read"
                )
            lines.append(x + y)
    lengths = {len(line) for line in lines}
    if len(lengths) > 1:
        raise FedsimError(
            f"the texts of {folder} have different lengths, such as {min(lengths) - 1} and {max(lengths) - 1}; "
            "make them one"
        )
    return np.array(lines).view(np.uint32).reshape(len(lines), -1)  # numpy keeps a text as 4-byte code points
