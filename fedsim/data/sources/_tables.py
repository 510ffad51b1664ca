"""Tables of named columns (CSV, Parquet) to a `Dataset`: numbers stay, texts become one-hot, gaps are dealt with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim.checks import require_choice
from fedsim.data.dataset import Dataset, Standardize
from fedsim.data.sources._columns import Columns, build, require_column, split_columns
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableOptions:
    """What the columns of a table mean; the fields are configuration keys, see `csv.load`."""

    label: str
    features: tuple[str, ...]
    user: str | None
    time: str | None
    categorical: tuple[str, ...]
    max_categories: int
    missing: str
    task: str
    split: str
    test_share: float
    split_seed: int

    @property
    def others(self) -> tuple[str, ...]:
        """The columns in use that are no features."""
        return tuple(column for column in (self.label, self.user, self.time) if column is not None)

    def columns(self, known: list[str], where: str) -> list[str]:
        """Names of the columns to read, features first. Raises FedsimError where one is unknown or senseless."""
        for key in ("label", "user", "time"):
            if getattr(self, key) is not None:
                require_column(f"dataset.{key}", getattr(self, key), known, where)
        for key in ("features", "categorical"):
            for column in getattr(self, key):
                require_column(f"dataset.{key}", column, known, where)
        if self.label in self.features:
            raise FedsimError(
                f"dataset.features names the label {self.label} as well; a model must not see it, so take it out"
            )
        features = list(self.features) or [column for column in known if column not in self.others]
        if not features:
            raise FedsimError(f"{where} has no column left for features; name some in dataset.features")
        return [*features, *(column for column in self.others if column not in features)]


def dataset_from_tables(
    name: str, table: pd.DataFrame, test: pd.DataFrame | None, options: TableOptions, source: str
) -> Dataset:
    """Split (unless `test` is given), encode by the training rows alone, standardise the numbers.

    table, test: frames whose columns are `options.columns(...)`, features first.
    """
    require_choice("dataset.missing", options.missing, ("refuse", "mean", "drop"))
    features = [column for column in table.columns if column not in options.others or column in options.features]
    table = _without_gaps(table, options, source)
    rows = _columns(table, options, source)
    if test is None:
        train_rows, test_rows = split_columns(rows, options.split, options.test_share, options.split_seed, options.task)
        test = table.iloc[test_rows.x]
        table = table.iloc[train_rows.x]
    else:
        test = _without_gaps(test, options, source)
        train_rows, test_rows = rows, _columns(test, options, source)
    pairs = [_encode(table[column], test[column], options, source) for column in features]
    x_train, x_test = (np.concatenate([pair[part] for pair in pairs], axis=1) for part in (0, 1))
    is_number = np.concatenate([np.full(train.shape[1], numeric) for train, _, numeric in pairs])
    train_rows, test_rows = (_with_x(rows, x, source) for rows, x in ((train_rows, x_train), (test_rows, x_test)))
    return build(name, train_rows, test_rows, options.task, _standardize(x_train, is_number), source)


def _columns(table: pd.DataFrame, options: TableOptions, where: str) -> Columns:
    """Label, user and time of a table, with the row numbers in the place of x."""
    user, time = (None if column is None else table[column].to_numpy() for column in (options.user, options.time))
    return Columns(np.arange(len(table)), table[options.label].to_numpy(), user, time, where)


def _with_x(rows: Columns, x: np.ndarray, where: str) -> Columns:
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise FedsimError(
            f"{where} holds infinity or a number too large for 32 bits among its features; mend or drop those rows"
        )
    return Columns(x, rows.label, rows.user, rows.time, where)


def _without_gaps(table: pd.DataFrame, options: TableOptions, where: str) -> pd.DataFrame:
    """The table after `dataset.missing`: as it is, or without the rows that miss a value."""
    gaps = table.isna().sum()
    if options.missing == "drop":
        table = table.dropna().reset_index(drop=True)
    elif gaps.any():
        column = str(gaps[gaps > 0].index[0])
        if options.missing == "refuse":
            raise FedsimError(
                f"column {column} of {where} misses {gaps[column]} of {len(table)} values; set dataset.missing=mean "
                "to fill them with the training rows' mean, or dataset.missing=drop to leave those rows out"
            )
        unfillable = [other for other in options.others if gaps[other]]
        if unfillable:
            raise FedsimError(
                f"column {unfillable[0]} of {where} misses {gaps[unfillable[0]]} values, and a label, user or time "
                "cannot be filled with a mean; set dataset.missing=drop to leave those rows out"
            )
    if len(table) == 0:
        raise FedsimError(
            f"{where} has no rows{' without a missing value' if len(gaps) and gaps.any() else ''}; give it some"
        )
    return table


def _encode(
    train: pd.Series, test: pd.Series, options: TableOptions, where: str
) -> tuple[np.ndarray, np.ndarray, bool]:
    """One column of both splits as float64 (n, k) and (m, k), and whether it is a number (k = 1) or one-hot."""
    from pandas.api import types

    column = str(train.name)
    if column not in options.categorical and types.is_numeric_dtype(train.dtype) and types.is_numeric_dtype(test.dtype):
        return *_fill(
            train.to_numpy(np.float64, na_value=np.nan)[:, None],
            test.to_numpy(np.float64, na_value=np.nan)[:, None],
            column,
            where,
        ), True
    if types.is_datetime64_any_dtype(train.dtype):
        raise FedsimError(
            f"column {column} of {where} holds dates; give it as dataset.time, or leave it out of dataset.features"
        )
    if column not in options.categorical:
        _refuse_mixed(train, column, where)
    return *_one_hot(train, test, options.max_categories, column, where), False


def _fill(train: np.ndarray, test: np.ndarray, column: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Missing values (NaN; in a one-hot block a whole row of it) become the mean of the training rows that have one."""
    have = ~np.isnan(train).any(1)
    if not have.any():
        raise FedsimError(
            f"column {column} of {where} has no value in any training row; leave it out of dataset.features"
        )
    mean = train[have].mean(0)
    return np.where(np.isnan(train), mean, train), np.where(np.isnan(test), mean, test)


def _refuse_mixed(values: pd.Series, column: str, where: str) -> None:
    """Refuse a text column in which some texts are numbers: one `?` must not turn numbers into categories."""
    texts = [str(value) for value in values.dropna().unique()]
    odd = [text for text in texts if not _is_number(text)]
    if texts and len(odd) < len(texts):
        mixed = f"mixes numbers with text such as {odd[0]!r}" if odd else "holds numbers written as text"
        raise FedsimError(
            f"column {column} of {where} {mixed}; add it to dataset.categorical if these are categories, "
            "or make it numbers (dataset.na_values lists the texts in a CSV file that mean `missing`)"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_hot(train: pd.Series, test: pd.Series, limit: int, column: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """One column for each sorted category of the training rows; an unseen category is all 0, a missing one the mean."""
    import pandas as pd

    categories = sorted(train.dropna().unique().tolist(), key=lambda value: (str(type(value)), value))
    if len(categories) > limit:
        raise FedsimError(
            f"column {column} of {where} has {len(categories)} different texts; leave it out of dataset.features, "
            "or raise dataset.max_categories"
        )
    blocks = []
    for values in (train, test):
        block = (values.to_numpy(object)[:, None] == np.array(categories, dtype=object)[None]).astype(np.float64)
        block[pd.isna(values).to_numpy()] = np.nan
        blocks.append(block)
    return _fill(blocks[0], blocks[1], column, where)


def _standardize(x: np.ndarray, is_number: np.ndarray) -> Standardize:
    """Numbers to mean 0 and variance 1; a one-hot column stays, since a rare category would become a huge value."""
    mean, std = np.where(is_number, x.mean(0), 0.0), np.where(is_number, x.std(0), 1.0)
    return Standardize(torch.from_numpy(mean), torch.from_numpy(std))
