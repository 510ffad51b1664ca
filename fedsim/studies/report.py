"""The report of a study: `write_study(runs, out, ...)` writes out/report.html, out/figures/ and out/table.csv.

The page needs no network and no script. The template lays out, `tables` and `words` say what the numbers are and mean.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.checks import require_choice
from fedsim.paths import whole
from fedsim.results.formats import DASH, count_text, text
from fedsim.results.loggers import without_credentials
from fedsim.results.store import read
from fedsim.studies.figures.drawn import Picture, draw_all
from fedsim.studies.figures.pareto import no_trade
from fedsim.studies.figures.style import LOOKS
from fedsim.studies.names import value_text
from fedsim.studies.repeat import MOST_LISTED, repeating
from fedsim.studies.study import Study, study_of
from fedsim.studies.tables import (
    MOST_ROWS,
    cells_table,
    client_words,
    crossed,
    csv_of,
    differences,
    ledger_table,
    machine_table,
    shared_config,
    tests_tables,
)
from fedsim.studies.words import findings, notes, story
from fedsim.types import FedsimError

PAGE = "report.html"


class Unfinished(NamedTuple):
    """A run that is not in the figures. what: its overrides or its folder, in words. reason: why, empty where nobody knows."""

    what: str
    reason: str = ""
    state: str = "failed"
    folder: Path | None = None


def write_study(
    runs: Sequence[Path | str],
    out: Path,
    command: str = "",
    failed: Sequence[tuple[Any, ...]] = (),
    style: str = "screen",
) -> Path:
    """Write the report of these runs (folders, or folders above them) into `out`; returns the page.

    command: what repeats the study; found from the runs' own commands where it is empty. failed: cells that did not finish,
    each as the fields of `Unfinished`; folders of half a run that are found beside the runs join them. style: of the figures,
    screen or paper. Raises FedsimError where there is no finished run, or `out` is the folder of a run, whose own report would
    be lost.
    """
    look = LOOKS[require_choice("report.style", style, LOOKS)]
    if (out / "summary.json").exists():
        raise FedsimError(
            f"out={out} is the folder of a run and has a report of its own; give another folder with out=DIR"
        )
    store = read(runs)
    study = study_of(store)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(study, out / "figures", look)
    with whole(out / "table.csv") as temporary:
        csv_of(study).to_csv(temporary, index=False)
    view = _view(study, pictures, command, _unfinished(failed, store.unfinished), out)
    path = out / PAGE
    with whole(path) as temporary:
        temporary.write_text(_render(view), encoding="utf-8")
    return path


def _unfinished(failed: Sequence[tuple[Any, ...]], half: Sequence[Path]) -> list[Unfinished]:
    """Those that are told of, and the folders of half a run that are none of theirs."""
    told = [Unfinished(*one) for one in failed]
    known = {os.path.abspath(one.folder) for one in told if one.folder is not None}
    others = [
        Unfinished(folder.name, "", "not finished", folder) for folder in half if os.path.abspath(folder) not in known
    ]
    return told + others


def _render(view: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.j2").render(view)


def _view(study: Study, pictures: list[Picture], command: str, failed: list[Unfinished], out: Path) -> dict[str, Any]:
    """Everything that the template shows, as text."""
    commands = [command] if command else repeating(_commands(study))
    return {
        "title": _title(study),
        "subtitle": _subtitle(study, len(failed)),
        "story": story(study),
        "findings": findings(study),
        "notes": notes(study),
        "crossed": crossed(study),
        "no_trade": no_trade(study),
        "pictures": [_embedded(picture) for picture in pictures],
        "cells": cells_table(study),
        "measure": study.measure.label,
        "tests": tests_tables(study),
        "fairness": client_words(study),
        "ledger": ledger_table(study),
        "differences": differences(study),
        "shared": without_credentials(shared_config(study)),
        "failed": [_failure(one, out) for one in failed],
        "commands": [without_credentials(one) for one in commands[:MOST_LISTED]],
        "more_commands": max(len(commands) - MOST_LISTED, 0),
        "machine": machine_table(study),
        "runs": _runs(study, out),
        "all_runs": len(study.runs),
    }


def _commands(study: Study) -> list[str]:
    runs = study.tables.runs
    return [str(one) for one in runs["command"].dropna()] if "command" in runs else []


def _embedded(picture: Picture) -> dict[str, str]:
    data = base64.b64encode(picture.png).decode()
    return {"name": picture.name, "section": picture.section, "alt": picture.alt, "data": data}


def _names(study: Study, column: str) -> list[str]:
    runs = study.tables.runs
    return sorted({value_text(value) for value in runs[column].dropna()}) if column in runs else []


def _title(study: Study) -> str:
    names = _names(study, "experiment")
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "A study"


def _subtitle(study: Study, failed: int) -> str:
    parts = [", ".join(_names(study, column)[:4]) for column in ("dataset.name", "model", "strategy", "partition")]
    parts = [part for part in parts if part]
    counts = ((len(study.runs), "run"), (len(study.cells), "cell"))
    parts.append(" in ".join(f"{count_text(count)} {word}{'s' if count != 1 else ''}" for count, word in counts))
    return " · ".join([*parts, f"{failed} not finished"] if failed else parts)


def _failure(one: Unfinished, out: Path) -> list[str]:
    shown = os.path.relpath(one.folder, out) if one.folder is not None else DASH
    return [without_credentials(one.what), text(one.state), without_credentials(text(one.reason)), shown]


def _runs(study: Study, out: Path) -> list[dict[str, str]]:
    """The runs themselves, with where their own reports lie as seen from this one."""
    listed = study.runs.sort_values(["cell", "seed", "run"], kind="stable").head(MOST_ROWS)
    rows = []
    columns = [listed[name] for name in ("run", "cell", "seed", study.measure.name)]
    for run, cell, seed, value in zip(*columns, strict=True):
        folder = Path(str(run))
        link = os.path.relpath(folder / PAGE, out).replace(os.sep, "/") if (folder / PAGE).is_file() else ""
        row = {"label": study.label(int(cell)), "seed": value_text(seed), "value": study.measure.show(value)}
        rows.append(row | {"link": link, "folder": folder.name})
    return rows
