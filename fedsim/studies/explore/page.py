"""One HTML file over many runs, to be opened from disk: `write_page(tables, out)`.

Charts are plotly.js (MIT), which the Python package plotly carries and which is written into the file. Its parallel
coordinates compile code at run time, which the page's Content-Security-Policy forbids, so those are drawn by parallel.js.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from fedsim.paths import whole
from fedsim.results.loggers import without_credentials
from fedsim.studies.explore.columns import MAIN, Column, columns_of
from fedsim.studies.explore.curves import curves_of
from fedsim.types import FedsimError, MissingPackageError

if TYPE_CHECKING:
    import pandas as pd

SCRIPTS = ("data", "state", "colours", "details", "filters", "scatter", "curves", "parallel", "table", "main")
"""The page's own scripts, in the order in which they are put into it."""

IN_TABLE = 8
"""Figures in the table and under a point; all others can be chosen for the axes."""


NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


class Tables(Protocol):
    """What is read of `fedsim.results.store.Store`: a row a run, and a row a round of each run."""

    @property
    def runs(self) -> pd.DataFrame: ...

    @property
    def rounds(self) -> pd.DataFrame: ...


def write_page(tables: Tables, out: Path, left_out: Sequence[Path] = ()) -> Path:
    """Write the page over all runs of `tables` to `out` and return that.

    left_out: folders of runs that are not whole, which the page counts. Raises FedsimError where there are no runs, and
    MissingPackageError without plotly.
    """
    if tables.runs.empty:
        raise FedsimError("there is no finished run to explore; name folders of runs, or a folder above them")
    library = _plotly()
    data = page_data(tables, out.resolve().parent, left_out)
    html = _template().render(
        title=data["title"],
        style=_file("page.css"),
        data=script_json(data),
        library=_script(library),
        script=_script("\n".join(_file(f"{name}.js") for name in SCRIPTS)),
    )
    with whole(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out


def page_data(tables: Tables, base: Path, left_out: Sequence[Path] = ()) -> dict[str, Any]:
    """Everything that the page knows, as JSON; links to reports are relative to the folder `base`."""
    paths = [str(run) for run in tables.runs["run"]]
    columns = columns_of(tables.runs)
    figures = [column.key for column in columns if column.role == "figure"]
    above = _common_folder(paths)
    return {
        "title": _title(tables.runs),
        "runs": _runs(tables.runs, paths, above, base),
        "columns": [_packed(column) for column in columns],
        "table": [key for key in figures if key in MAIN][:IN_TABLE] or figures[:IN_TABLE],
        "curves": curves_of(tables.rounds, paths),
        "left_out": [_shown(str(path), above) for path in left_out],
    }


def script_json(value: Any) -> str:
    """JSON that can stand in a <script>: no <, > or & that HTML could read, and no line ends that only JavaScript knows."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script(text: str) -> str:
    """A script to stand between tags; refused where it would end its own element, or hide its end."""
    lower = text.lower()
    if "</script" in lower or ("<!--" in lower and "<script" in lower):
        raise FedsimError(
            "the script of the page cannot be put into HTML; install another release with `pip install plotly`"
        )
    return text


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPackageError(
            "the page to explore runs draws with plotly.js; install it with `pip install 'fedsim-flower[explore]'`"
        ) from error
    return str(get_plotlyjs())


def _template() -> Any:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["verbatim"] = Markup  # of our own files, plotly.js, and JSON that `script_json` made harmless
    return environment.get_template("page.html.j2")


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _title(runs: pd.DataFrame) -> str:
    names = runs["experiment"].dropna().unique().tolist() if "experiment" in runs.columns else []
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "runs"


def _runs(runs: pd.DataFrame, paths: Sequence[str], above: str, base: Path) -> list[dict[str, Any]]:
    """id: short, the same whenever the same folder is explored. href: of the run's report, None where there is none."""
    commands = runs["command"].tolist() if "command" in runs.columns else [None] * len(paths)
    return [
        {
            "id": hashlib.sha256(_shown(path, above).encode()).hexdigest()[:8],
            "name": _shown(path, above),
            "href": _link(Path(path) / "report.html", base),
            "command": without_credentials(command) if isinstance(command, str) else "",
        }
        for path, command in zip(paths, commands, strict=True)
    ]


def _link(path: Path, base: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        relative = os.path.relpath(path.resolve(), base)
    except ValueError:  # on another drive
        return path.resolve().as_uri()
    return "./" + quote(Path(relative).as_posix())  # the dot, so that no name of a folder reads as a scheme


def _common_folder(paths: Sequence[str]) -> str:
    """The folder above all runs; of a single run, the one that it lies in."""
    resolved = [os.path.abspath(path) for path in paths]
    return os.path.commonpath([os.path.dirname(path) for path in resolved])


def _shown(path: str, above: str) -> str:
    return Path(os.path.relpath(path, above)).as_posix()


def _packed(column: Column) -> dict[str, Any]:
    """Numbers as they are; of texts, each once and its number for a run."""
    told = {"key": column.key, "label": column.label, "role": column.role}
    if column.numeric:
        return told | {"values": column.values}
    levels = sorted({value for value in column.values if value is not None}, key=_by_number)
    place = {level: number for number, level in enumerate(levels)}
    return told | {
        "levels": levels,
        "values": [None if value is None else place[value] for value in column.values],
    }


def _by_number(text: str) -> tuple[tuple[int, float, str], ...]:
    """The order of a person: `s2` before `s10`, 0.5 before 2."""
    parts = NUMBER.split(text)
    return tuple((1, 0.0, part) if place % 2 == 0 else (0, float(part), "") for place, part in enumerate(parts))
