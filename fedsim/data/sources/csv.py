"""One's own CSV file: named columns, one of them the label."""

from __future__ import annotations

import csv as standard_csv
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.data.dataset import Dataset
from fedsim.data.sources._columns import names_of
from fedsim.data.sources._tables import TableOptions, dataset_from_tables
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd

ABOUT = "your own CSV file (plain or .gz) with a header line"
HOW = "dataset=csv dataset.path=FILE.csv dataset.label=COLUMN [dataset.user=COLUMN] [dataset.time=COLUMN]"


def find(root: str | None = None) -> Path | None:
    """None: the file is named by dataset.path."""
    return None


def load(
    path: str,
    label: str,
    features: Sequence[str] | None = None,
    user: str | None = None,
    time: str | None = None,
    categorical: Sequence[str] | None = None,
    max_categories: int = 100,
    missing: str = "refuse",
    task: str = "classification",
    test_path: str | None = None,
    split: str = "share",
    test_share: float = 0.2,
    split_seed: int = 0,
    separator: str = ",",
    na_values: Sequence[str] | None = None,
    name: str | None = None,
) -> Dataset:
    """Features x (n, f) float32: numbers, to be standardised; texts and `categorical` columns one-hot.

    features: None for all columns but label, user and time. missing: refuse | mean | drop. split: share | time | user,
    unless `test_path` holds the test rows. The keys are explained in conf/dataset/csv.yaml.
    """
    options = TableOptions(
        label, tuple(names_of(features)), user, time, tuple(names_of(categorical)), max_categories, missing, task,
        split, test_share, split_seed,
    )  # fmt: skip
    tables = [
        None if file is None else _read(Path(file).expanduser(), options, separator, names_of(na_values))
        for file in (path, test_path)
    ]
    assert tables[0] is not None
    return dataset_from_tables(name or Path(path).name.split(".")[0], tables[0], tables[1], options, str(path))


def _read(path: Path, options: TableOptions, separator: str, na_values: list[str]) -> pd.DataFrame:
    """The columns in use. Raises FedsimError for a file that is not there, empty, broken, or of unclear header."""
    import pandas as pd

    if not path.is_file():
        raise FedsimError(f"there is no file {path}; set dataset.path (and dataset.test_path) to a CSV file")
    try:
        # Two lines: a first row longer than the header is an error here, and would name the rows below.
        first = pd.read_csv(
            path, sep=separator, header=None, nrows=2, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
        header = [str(column) for column in first.iloc[0]]
        columns = options.columns(header, str(path))
        _check_header(header, columns, path)
        # All columns, since with usecols pandas lets a row with too many values pass.
        table = pd.read_csv(path, sep=separator, na_values=na_values, low_memory=False, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FedsimError(f"{path} is not UTF-8 text; convert it, as with `iconv -f latin1 -t utf8 IN > OUT`") from None
    except pd.errors.EmptyDataError:
        raise FedsimError(f"{path} is empty; it needs a header line and rows") from None
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, standard_csv.Error) as error:
        raise FedsimError(
            f"{path} cannot be read as CSV ({' '.join(str(error).split())}); mend it or set dataset.separator"
        ) from None
    return table[columns]


def _check_header(header: list[str], columns: list[str], path: Path) -> None:
    if "" in columns:
        raise FedsimError(
            f"column {header.index('') + 1} of {path} has no name in the header line; name it, or list the columns "
            "to learn from in dataset.features"
        )
    twice = next((column for column in columns if header.count(column) > 1), None)
    if twice is not None:
        raise FedsimError(f"{path} has more than one column named {twice}; give each its own name")
