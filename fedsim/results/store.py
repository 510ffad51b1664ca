"""Many runs as tables, read from their folders: a row a run, a row a round, a row a client, as pandas and by SQL.

    runs = read("sweeps/quickstart")
    runs.runs[["config.seed", "config.client.lr", "accuracy"]]
    runs.sql('SELECT "config.client.lr", avg(accuracy) FROM runs GROUP BY ALL')

Nothing is kept between calls of `read`: what it gives is what the files said then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.results.files import read_json
from fedsim.results.folders import Paths, find, find_runs
from fedsim.results.saved_config import saved_config
from fedsim.types import FedsimError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Store", "find_runs", "read"]


def read(paths: Paths, class_counts: bool = False) -> Store:
    """The finished runs in these folders and below them, see `find_runs`.

    class_counts: read the clients' lists of examples by class too. Raises FedsimError where there is no run, or a
    file of one cannot be read.
    """
    found = find(paths)
    return Store(found.runs, found.unfinished, _each(_record, found.runs), class_counts)


@dataclass(frozen=True)
class Store:
    """Runs that were read. What a run does not tell is missing in its rows (NaN or None), never 0.

    folders: of the runs, in the order of the rows. unfinished: folders of runs without a summary, which are left out.
    """

    folders: list[Path]
    unfinished: list[Path]
    records: list[dict[str, Any]] = field(repr=False)
    class_counts: bool = False

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row a run: `run` (its folder), all that summary.json tells, and the configuration as `config.KEY`.

        What is nested has dotted names, as in `federated.accuracy_mean`; lists, and mappings whose keys are a user's own, are
        JSON text.
        """
        import pandas as pd

        names = list(dict.fromkeys(name for record in self.records for name in record))
        names.sort(key=lambda name: name.startswith("config."))  # which stands last; the rest stays in its order
        groups = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
        columns = {name: [record.get(name) for record in self.records] for name in names}
        known = {name for name, values in columns.items() if any(value is not None for value in values)}
        # a figure that no run has is missing, whatever its kind; and a group that some run lacks is no column
        return pd.DataFrame(
            {
                name: columns[name] if name in known else math.nan
                for name in names
                if name in known or name not in groups
            }
        )

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """A row a round of each run: `run`, then the columns of rounds.parquet."""
        return self._rounds.to_pandas()

    @cached_property
    def clients(self) -> pd.DataFrame:
        """A row a client of each run: `run`, then the columns of clients.parquet."""
        return self._clients.to_pandas()

    def sql(self, query: str) -> pd.DataFrame:
        """What an SQL query finds in the tables runs, rounds and clients; a name with a dot stands in double quotes.

        It runs in DuckDB, on copies of the tables, and can neither read nor write files, nor reach the network. Raises
        FedsimError where it cannot be run.
        """
        import duckdb

        given: dict[str, Callable[[], pa.Table]] = {
            "runs": lambda: _arrow(self.runs),
            "rounds": lambda: self._rounds,
            "clients": lambda: self._clients,
        }
        with duckdb.connect(":memory:", config=CLOSED) as connection:
            used = [name for name in given if name in query.lower()]
            for name in used or given:  # a query that has no use for the clients need not wait for them
                connection.register("given", given[name]())
                connection.execute(f"CREATE TABLE {name} AS FROM given")
                connection.unregister("given")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            try:
                if not connection.extract_statements(query):
                    raise FedsimError(f"the query is empty; {HOW_TO_ASK}")
                return connection.execute(query).df()
            except duckdb.Error as error:
                raise FedsimError(f"the query cannot be run ({_reason(error)}); {HOW_TO_ASK}") from error

    @cached_property
    def _rounds(self) -> pa.Table:
        return _table(self.folders, "rounds.parquet")

    @cached_property
    def _clients(self) -> pa.Table:
        return _table(self.folders, "clients.parquet", () if self.class_counts else ("class_counts",))


CLOSED: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",  # a query too large for memory fails, rather than write files
}
"""Of DuckDB, beside what can only be set once the tables are there."""
THREADS = 4
"""That read files. 2,000 of 100 rounds take two cores 0.7 s so, 1.0 s in turn, and DuckDB's read_parquet 1.6 to 2.4 s; of 2,000
summaries Python reads JSON in 0.3 s, DuckDB's read_json in 11 s, since it takes the schemas of all of them together."""
HOW_TO_ASK = (
    'the tables are runs, rounds and clients, and a name with a dot stands in double quotes, as in "config.seed"'
)


def _reason(error: Exception) -> str:
    """What DuckDB says first, without the query that it repeats."""
    return " ".join(str(error).partition("\nLINE ")[0].split())


def _each(read_one: Callable[[Path], Any], paths: list[Path]) -> list[Any]:
    """Of each path: while one file is decoded, others are fetched."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read_one, paths))


def _record(folder: Path) -> dict[str, Any]:
    """The row of a run."""
    path = folder / "summary.json"
    summary = read_json(path, "reading runs")
    if not isinstance(summary, dict) or not {"experiment", "rounds"} <= summary.keys():
        raise FedsimError(f"{path} is not of a run of fedsim; name folders that do not hold it")
    config = summary.pop("config", None)
    if not isinstance(config, dict):  # of a fedsim that did not write it there
        config = saved_config(folder)
    row = {"run": ""} | dict(_flat(summary))
    for group, part in config.items():
        row |= dict(_config(part, f"config.{group}."))
    return row | {"run": str(folder)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and what stands there; lists as JSON text."""
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(item) if isinstance(item, list) else item


def _config(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """As `_flat`, of a group or a part inside of one: a mapping in it that is no part is a value, and its keys a user's own."""
    if not isinstance(part, dict):
        yield prefix[:-1], _text(part) if isinstance(part, list) else part
        return
    for name, item in part.items():
        if isinstance(item, dict) and "_target_" in item:
            yield from _config(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(item) if isinstance(item, list | dict) else item


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _table(folders: list[Path], name: str, without: tuple[str, ...] = ()) -> pa.Table:
    """The rows of a file of all runs that have it, one below the other; a column that a run lacks is null there."""
    import pyarrow as pa

    def rows(folder: Path) -> pa.Table:
        if not (folder / name).is_file():
            return pa.table({"run": pa.array([], pa.string())})
        table = _file(folder / name, without)
        return table.add_column(0, "run", pa.repeat(str(folder), len(table)))

    tables = _each(rows, folders)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise FedsimError(f"{name} differs between these runs ({reason}); read them apart") from error


def _file(path: Path, without: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [column for column in file.schema_arrow.names if column not in without]
            return file.read(names, use_threads=False).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise FedsimError(f"{path} is corrupt ({type(error).__name__}); restore it, or leave its folder out") from error


def _arrow(frame: pd.DataFrame) -> pa.Table:
    """For DuckDB, whose columns are each of one kind: one of several, such as `auto` beside 8, becomes text."""
    import pyarrow as pa

    columns = {}
    for name, column in frame.items():
        try:
            columns[name] = pa.Array.from_pandas(column)
        except (pa.ArrowException, OverflowError):
            texts = [
                None if one is None or one != one else one if isinstance(one, str) else _text(one) for one in column
            ]
            columns[name] = pa.array(texts, pa.string())
    return pa.table(columns)
