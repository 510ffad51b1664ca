"""`python -m fedsim.report RUNS...`: one page, figures and a table of what many runs say together."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedsim.checks import did_you_mean, require_choice
from fedsim.errors import Failure, exit_with_sentence
from fedsim.types import FedsimError

USAGE = """\
Write what many runs say together: one HTML page that needs no network, figures as PNG and SVG, and table.csv.

  python -m fedsim.report RUNS...
  python -m fedsim.report sweeps/privacy_vs_clients out=DIR report.style=paper

  RUNS                  folders of runs, or folders above them
  out=DIR               where it goes; where it is left out, into the one folder that was named, or else ./report
  report.style=screen   paper: for two columns of print, without titles, told apart in grey too
"""
KEYS = ("out", "report.style")
STYLES = ("screen", "paper")


class Request(NamedTuple):
    """paths: what was named. out: folder of the report."""

    paths: tuple[Path, ...]
    out: Path
    style: str = "screen"


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0, 1 for a mistake (one sentence), 130 when stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        print(USAGE, end="")
        return
    try:
        print(report(parse(given)))
    except KeyboardInterrupt as error:
        stopped = FedsimError("stopped; the report is not complete, the runs are as they were")
        stopped.exit_code = 130
        exit_with_sentence([Failure(stopped if not _wants_traceback() else error)])
    except Exception as error:
        if _wants_traceback():
            raise
        exit_with_sentence([Failure(error)])


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")


def parse(arguments: Sequence[str]) -> Request:
    """The command line. Raises FedsimError where it cannot be meant."""
    keys = [one for one in arguments if one.split("=")[0] in KEYS or ("=" in one and not Path(one).exists())]
    paths = tuple(Path(one) for one in arguments if one not in keys)
    values: dict[str, str] = {}
    for key, _, value in (one.partition("=") for one in keys):
        if key not in KEYS:
            close = did_you_mean(key, KEYS)
            raise FedsimError(
                f"{key}={value} is neither a folder nor a key of fedsim.report{close}; the keys are {' and '.join(KEYS)}"
            )
        if key in values:
            raise FedsimError(f"{key} is given twice; give it once")
        if not value:
            raise FedsimError(f"{key}= is empty; give a value, or leave it out")
        values[key] = value
    if not paths:
        raise FedsimError("no folder is named; give folders of runs, as in python -m fedsim.report sweeps/NAME")
    style = require_choice("report.style", values.get("report.style", "screen"), STYLES)
    return Request(paths, Path(values["out"]) if "out" in values else _beside(paths), style)


def _beside(paths: Sequence[Path]) -> Path:
    """Into the one folder that holds runs; a run's own folder has a report of its own already."""
    above_runs = len(paths) == 1 and paths[0].is_dir() and not (paths[0] / "summary.json").exists()
    return paths[0] if above_runs else Path("report")


def report(request: Request) -> str:
    """Write it; what was written, in a line."""
    from fedsim.studies.report import write_study  # seconds, which a misspelt key need not wait for

    command, failed = _swept(request.paths)
    page = write_study(request.paths, request.out, command, failed, request.style)
    drawn = len(list((request.out / "figures").glob("*.svg")))
    return f"{page}: open it in a browser; {drawn} figures in {request.out / 'figures'}, numbers in {request.out / 'table.csv'}"


def _swept(paths: Sequence[Path]) -> tuple[str, list[tuple[str, str, str, Path]]]:
    """What the sweeps among the folders remember: the command, where all runs are one sweep's, and cells that did not finish."""
    from fedsim.sweeps.state import read_state

    command = ""
    failed: list[tuple[str, str, str, Path]] = []
    for path in paths:
        sweep = read_state(path)
        if sweep is None:
            continue
        command = sweep.command if len(paths) == 1 else ""
        open_ones = [cell for cell in sweep.cells if cell["state"] != "finished"]
        failed += [(sweep.words(one), one["reason"] or "", one["state"], path / one["folder"]) for one in open_ones]
    return command, failed


if __name__ == "__main__":
    main()
