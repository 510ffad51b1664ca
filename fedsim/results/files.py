"""Files that are written whole or not at all: to a temporary name first, then renamed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.paths import whole
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NaN and Inf become null."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """The file's value. Raises FedsimError naming `what` where it is missing or corrupt."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FedsimError(f"{what}: {path} is not there") from error
    except (ValueError, OSError) as error:
        raise FedsimError(f"{what}: {path} is corrupt ({type(error).__name__}); it cannot be used") from error


def write_table(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Parquet. columns: a list, numpy array or pyarrow array a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    with whole(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def write_batches(path: Path, batches: Iterable[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Parquet of columns of whole numbers, or lists of them, that come in pieces: a row group each, none of which is kept.

    Written as differences: row numbers that follow each other take next to no room.
    """
    import pyarrow as pa

    tables = (pa.table(batch) for batch in batches)
    first = next(tables)
    schema = first.schema.with_metadata(metadata)
    with whole(path) as temporary, _delta_writer(temporary, schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table.cast(schema))


def _delta_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED")


def write_arrays(path: Path, arrays: Params, metadata: dict[str, str] | None = None) -> None:
    """Safetensors."""
    from safetensors.torch import save

    content = save({name: array.detach().cpu().contiguous() for name, array in arrays.items()}, metadata)
    with whole(path) as temporary:
        temporary.write_bytes(content)  # safetensors' own writer leaves files that only their owner can read


def read_arrays(path: Path, what: str) -> Params:
    """The file's arrays. Raises FedsimError naming `what` where it is missing or corrupt."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise FedsimError(f"{what}: {path} is not there") from error
    except Exception as error:  # safetensors' own error class is not exported
        raise FedsimError(f"{what}: {path} is corrupt ({type(error).__name__}); it cannot be used") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
