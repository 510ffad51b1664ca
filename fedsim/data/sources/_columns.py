"""From columns of a user's own data to a `Dataset`: labels to classes, users to an index, times to numbers, a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.checks import did_you_mean, require_choice
from fedsim.data.dataset import Dataset, Examples, Task
from fedsim.data.splits import Split, random_split, stratified_split, time_split, user_split
from fedsim.types import FedsimError

MANY_CLASSES = 100


@dataclass(frozen=True)
class Columns:
    """Rows of one split as they were read.

    x: (n, ...) inputs, or row numbers of a table; label, user, time: (n,) of any type; where: the file, for sentences.
    """

    x: np.ndarray
    label: np.ndarray
    user: np.ndarray | None
    time: np.ndarray | None
    where: str

    def __post_init__(self) -> None:
        for name, column in (("labels", self.label), ("users", self.user), ("times", self.time)):
            if column is not None and len(column) != len(self.x):
                raise FedsimError(
                    f"{self.where} has {len(self.x)} inputs and {len(column)} {name}; give one for every input"
                )

    def take(self, rows: np.ndarray) -> Columns:
        """The rows of these numbers, in that order."""
        user, time = (None if column is None else column[rows] for column in (self.user, self.time))
        return replace(self, x=self.x[rows], label=self.label[rows], user=user, time=time)


def split_columns(columns: Columns, split: str, test_share: float, seed: int, task: str) -> tuple[Columns, Columns]:
    """Train and test: a share of each class (of all rows in regression), the newest rows, or a share of the users."""
    rows = split_rows(
        columns, require_choice("dataset.split", split, ("share", "time", "user")), test_share, seed, task
    )
    return columns.take(rows[0]), columns.take(rows[1])


def split_rows(columns: Columns, split: str, test_share: float, seed: int, task: str) -> Split:
    """Row numbers of train and test, see `split_columns`."""
    if split == "time":
        return time_split(times(_given(columns.time, "time"), columns.where), test_share)
    if split == "user":
        return user_split(texts(_given(columns.user, "user"), "users", columns.where), test_share, seed)
    if task == "regression":
        return random_split(len(columns.x), test_share, seed)
    labels = _plain_labels(columns.label, columns.where)
    _check_names(np.unique(labels), len(labels), columns.where)  # before the split, whose own sentence would mislead
    return stratified_split(labels, test_share, seed)


def _given(column: np.ndarray | None, key: str) -> np.ndarray:
    if column is None:
        raise FedsimError(f"dataset.split={key} needs to know each row's {key}; name the column in dataset.{key}")
    return column


def build(
    name: str, train: Columns, test: Columns, task: str, preprocess: nn.Module, source: str, classes: Sequence[str] = ()
) -> Dataset:
    """The dataset of two splits.

    classes: names of labels that already count 0, 1, ...; where there are none they are found, see `class_labels`.
    """
    task = require_choice("dataset.task", task, ("classification", "regression"))
    if task == "regression":
        y_train, y_test, classes = number_targets(train), number_targets(test), ()
    elif classes:
        y_train, y_test = counted_labels(train, len(classes)), counted_labels(test, len(classes))
    else:
        y_train, y_test, classes = class_labels(train, test)
    users, user_train, user_test = user_index(train, test)
    first, second = _examples(train, y_train, user_train), _examples(test, y_test, user_test)
    return Dataset(name, first, second, cast(Task, task), tuple(classes), preprocess, users, source)


def _examples(part: Columns, y: Tensor, user: np.ndarray | None) -> Examples:
    time = None if part.time is None else times(part.time, part.where)
    return Examples(torch.from_numpy(np.ascontiguousarray(part.x)), y, user, time)


def class_labels(train: Columns, test: Columns) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Labels of both splits as (n,) int64, and the names: numbers in the order of numbers, texts in that of texts.

    Numbers written as text count as numbers when all are. Raises FedsimError where there is but one class, a label is
    missing or broken, or nearly every row has a label of its own.
    """
    parts = [_plain_labels(part.label, part.where) for part in (train, test)]
    if parts[0].dtype.kind != parts[1].dtype.kind:
        parts = [part.astype(str) for part in parts]
    names, label = np.unique(np.concatenate(parts), return_inverse=True)
    _check_names(names, len(label), train.where)
    y = torch.from_numpy(label.astype(np.int64))
    return y[: len(parts[0])], y[len(parts[0]) :], tuple(str(name) for name in names)


def _check_names(names: np.ndarray, rows: int, where: str) -> None:
    if len(names) == 1:
        raise FedsimError(f"every row of {where} has the label {names[0]}; a classifier needs two classes or more")
    if len(names) > MANY_CLASSES and 2 * len(names) > rows:
        raise FedsimError(
            f"the labels of {where} have {len(names)} different values in {rows} rows; "
            "name another column in dataset.label, or set dataset.task=regression to predict numbers"
        )


def counted_labels(part: Columns, num_classes: int) -> Tensor:
    """Labels that must be whole numbers in 0..num_classes-1, as (n,) int64."""
    labels = _plain_labels(part.label, part.where)
    if labels.dtype.kind != "i" or (len(labels) and not (labels.min() >= 0 and labels.max() < num_classes)):
        wrong = labels if labels.dtype.kind != "i" else labels[(labels < 0) | (labels >= num_classes)]
        raise FedsimError(
            f"{part.where} has the label {wrong[0]}, which is none of its {num_classes} classes, 0..{num_classes - 1}"
        )
    return torch.from_numpy(labels)


def number_targets(part: Columns) -> Tensor:
    """Targets of a regression, (n,) float32. Raises FedsimError where one is no finite number."""
    try:
        values = part.label.astype(np.float64)
    except (TypeError, ValueError):
        raise FedsimError(
            f"the targets of {part.where} are not all numbers; name another column in dataset.label, "
            "or set dataset.task=classification"
        ) from None
    if not np.isfinite(values).all():
        raise FedsimError(f"the targets of {part.where} hold NaN or infinity; drop those rows")
    return torch.from_numpy(values.astype(np.float32))


def user_index(train: Columns, test: Columns) -> tuple[tuple[str, ...], np.ndarray | None, np.ndarray | None]:
    """Sorted names of all users, and each split's (n,) int64 index into them; empty and None where none are known."""
    known = [None if part.user is None else texts(part.user, "users", part.where) for part in (train, test)]
    names = np.unique(np.concatenate([column for column in known if column is not None] or [np.empty(0, str)]))
    in_train, in_test = (
        None if column is None else np.searchsorted(names, column).astype(np.int64) for column in known
    )
    return tuple(names.tolist()), in_train, in_test


def times(values: np.ndarray, where: str) -> np.ndarray:
    """Times (n,) as numbers that sort: numbers as they are, dates and texts of dates as seconds since 1970 (UTC)."""
    values = np.asarray(values)
    if values.dtype.kind in "OUSM":
        import pandas as pd

        try:
            dates = pd.to_datetime(pd.Series(values), utc=True, format="ISO8601")
        except (ValueError, TypeError, OverflowError):
            raise FedsimError(
                f"the times of {where} are neither numbers nor dates such as 2024-12-31; "
                "name another column in dataset.time"
            ) from None
        values = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(np.float64)
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise FedsimError(
            f"the times of {where} hold missing or infinite values; drop those rows, "
            "or name another column in dataset.time"
        )
    return values


def texts(values: np.ndarray, what: str, where: str) -> np.ndarray:
    """Any values as (n,) str. Raises FedsimError where one is missing."""
    values = np.asarray(values)
    if _any_missing(values):
        raise FedsimError(f"{what} are missing in some rows of {where}; drop those rows")
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    return values.astype(str)


def _any_missing(values: np.ndarray) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isnan(values).any())
    return values.dtype.kind == "O" and any(
        value is None or value != value for value in values
    )  # NaN differs from itself


def _plain_labels(values: np.ndarray, where: str) -> np.ndarray:
    """Labels as (n,) int64 where they are whole numbers, written as numbers or as text; else as str."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise FedsimError(f"the labels of {where} have shape {values.shape}; give one label for every row")
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.round(values)).all()):
            raise FedsimError(
                f"the labels of {where} hold fractions, NaN or infinity; mend them, or "
                "set dataset.task=regression to predict numbers"
            )
        return values.astype(np.int64)
    names = texts(values, "labels", where)
    if names.size and all(_is_plain_integer(name) for name in np.unique(names)):
        return names.astype(np.int64)
    return names


def _is_plain_integer(text: str) -> bool:
    return text.isascii() and text.lstrip("-").isdigit() and len(text) < 18 and str(int(text)) == text


def require_column(key: str, column: Any, columns: Sequence[str], where: str) -> str:
    """`column` where it is one of `columns`; else a sentence with the closest name."""
    if column not in columns:
        known = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
        raise FedsimError(f"{key}={column} is no column of {where}{did_you_mean(str(column), columns)}; it has {known}")
    return str(column)


def names_of(value: str | Sequence[str] | None) -> list[str]:
    """One name, a list of names, or none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else [str(name) for name in value]
