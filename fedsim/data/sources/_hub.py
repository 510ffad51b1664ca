"""Folders of Hugging Face data, as `save_to_disk` or the Hub's Parquet files have it. Nothing is downloaded here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.checks import did_you_mean
from fedsim.types import FedsimError


@dataclass(frozen=True)
class Split:
    """One split. rows: a `datasets.Dataset`; where: the folder, for sentences."""

    name: str
    rows: Any
    where: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def column_names(self) -> list[str]:
        return list(self.rows.column_names)

    def is_picture(self, column: str) -> bool:
        """True for a column of pictures: marked as one, or records of bytes and path, as unmarked Parquet has them."""
        from datasets import Image

        feature = self.rows.features[column]
        return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    def picture_sources(self, column: str) -> Iterator[bytes | Path]:
        """The file of each picture: its bytes, or its path where the bytes lie elsewhere."""
        from datasets import Image

        for number, record in enumerate(self.rows.cast_column(column, Image(decode=False))[column]):
            if record is None or (record["bytes"] is None and record["path"] is None):
                raise FedsimError(f"row {number} of column {column} of {self.where} has no picture; drop those rows")
            yield record["bytes"] if record["bytes"] is not None else Path(record["path"])


def read_splits(folder: Path, wanted: list[str]) -> list[Split]:
    """The splits of these names. Raises FedsimError for another kind of folder, a damaged file, or a missing split."""
    import pyarrow as pa
    from datasets import load_from_disk

    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        found = load_from_disk(str(folder)) if saved else _read_parquet(folder, wanted)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedsimError(f"{folder} cannot be read as Hugging Face data ({reason}); save or fetch it anew") from None
    splits = dict(found) if isinstance(found, dict) else {wanted[0]: found}
    for name in wanted:
        if name not in splits:
            raise FedsimError(
                f"{folder} has no split {name}{did_you_mean(name, splits)}; it has {', '.join(splits) or 'none'}: set "
                "dataset.train_split and dataset.test_split (null to split off dataset.test_share of the rows)"
            )
    return [Split(name, splits[name], f"{folder} ({name})") for name in wanted]


def _read_parquet(folder: Path, wanted: list[str]) -> dict[str, Any]:
    """Splits from NAME*.parquet or NAME/*.parquet at any depth.

    All files are one split where only one is wanted and no file is named so.
    """
    import pyarrow.parquet as pq
    from datasets import Dataset, concatenate_datasets

    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FedsimError(
            f"{folder} is no save_to_disk folder and holds no Parquet files; set dataset.name to one that does"
        )
    by_split = {name: [file for file in files if _is_of(file, folder, name)] for name in wanted}
    if len(wanted) == 1 and not by_split[wanted[0]]:
        by_split = {wanted[0]: files}
    return {
        name: concatenate_datasets([Dataset(pq.read_table(file, partitioning=None)) for file in found])
        for name, found in by_split.items()
        if found
    }


def _is_of(file: Path, folder: Path, split: str) -> bool:
    """As the Hub names them: train-00000-of-00001.parquet, train.parquet, or default/train/0000.parquet."""
    parts = file.relative_to(folder).parts
    tail = file.stem.removeprefix(split) if file.stem.startswith(split) else "x"
    return split in parts[:-1] or not tail[:1].isalnum()


def class_names(split: Split, label: str) -> tuple[str, ...]:
    """Names of a ClassLabel column in the order of its numbers; empty for any other column."""
    return tuple(getattr(split.rows.features[label], "names", None) or ())


def plain_column(split: Split, column: str, key: str) -> np.ndarray:
    """A column as an array of numbers or texts. Raises FedsimError for missing values, ragged vectors and records."""
    if split.is_picture(column):
        raise FedsimError(f"dataset.{key}={column} holds pictures in {split.where}; name another column")
    table = split.rows.select_columns([column]).with_format("arrow")[:]
    missing = table.column(0).null_count
    if missing:
        raise FedsimError(f"column {column} of {split.where} misses {missing} values; drop those rows before saving it")
    values = split.rows.select_columns([column]).with_format("numpy")[:][column]
    if isinstance(values, np.ndarray) and values.dtype.kind == "O" and not isinstance(values[0], str):
        raise FedsimError(
            f"column {column} of {split.where} holds records or vectors of different lengths; "
            f"name another in dataset.{key}"
        )
    return np.asarray(values)
