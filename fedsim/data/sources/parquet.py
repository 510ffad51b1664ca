"""One's own Parquet file, or a folder of them: named columns, one of them the label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.data.dataset import Dataset
from fedsim.data.sources._columns import names_of
from fedsim.data.sources._tables import TableOptions, dataset_from_tables
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd

ABOUT = "your own Parquet file, or a folder of Parquet files with the same columns"
HOW = "dataset=parquet dataset.path=FILE.parquet dataset.label=COLUMN [dataset.user=COLUMN] [dataset.time=COLUMN]"


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
    name: str | None = None,
) -> Dataset:
    """Features x (n, f) float32, as in `csv.load`. The keys are explained in conf/dataset/parquet.yaml."""
    options = TableOptions(
        label, tuple(names_of(features)), user, time, tuple(names_of(categorical)), max_categories, missing, task,
        split, test_share, split_seed,
    )  # fmt: skip
    tables = [None if file is None else _read(Path(file).expanduser(), options) for file in (path, test_path)]
    assert tables[0] is not None
    return dataset_from_tables(name or Path(path).name.split(".")[0], tables[0], tables[1], options, str(path))


def _read(path: Path, options: TableOptions) -> pd.DataFrame:
    """The columns in use, of one file or of a folder's files in the order of their names."""
    import pyarrow as pa
    import pyarrow.dataset as arrow_dataset

    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise FedsimError(
            f"there is no Parquet file at {path}; set dataset.path (and dataset.test_path) to a file or a folder"
        )
    try:
        rows = arrow_dataset.dataset([str(file) for file in files], format="parquet")
        columns = options.columns(list(rows.schema.names), str(path))
        table = rows.to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise FedsimError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); it is damaged or another format"
        ) from None
    for number, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(number, field.name, table.column(number).cast(pa.float64()))
        elif pa.types.is_nested(field.type):
            raise FedsimError(
                f"column {field.name} of {path} holds lists, not single values; read it with dataset=huggingface"
            )
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise FedsimError(f"column {field.name} of {path} holds bytes; leave it out of dataset.features")
    return table.to_pandas()
