"""`python -m fedsim.explore RUNS...`: one page over many runs, to filter, compare and click through."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedsim.checks import did_you_mean
from fedsim.errors import Failure, exit_with_sentence
from fedsim.types import FedsimError

USAGE = """\
Write one HTML page over many runs: filter, choose axes, hover, click for a run's report. It needs no network.

  python -m fedsim.explore RUNS...
  python -m fedsim.explore sweeps/privacy_vs_clients runs/quickstart out=both.html

  RUNS          folders of runs, or folders above them
  out=FILE.html where the page goes; where it is left out, explore.html in the folder that was named, or here
"""


class Request(NamedTuple):
    """paths: what was named. out: the page."""

    paths: tuple[Path, ...]
    out: Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0, 1 for a mistake (one sentence), 130 when stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        print(USAGE, end="")
        return
    try:
        request = parse(given)
        print(explore(request))
    except KeyboardInterrupt as error:
        stopped = FedsimError("stopped; nothing was written")
        stopped.exit_code = 130
        exit_with_sentence([Failure(stopped if not os.environ.get("HYDRA_FULL_ERROR") else error)])
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            raise
        exit_with_sentence([Failure(error)])


def parse(arguments: Sequence[str]) -> Request:
    """The command line. Raises FedsimError where it cannot be meant."""
    keys = [one for one in arguments if one.startswith("out=") or ("=" in one and not Path(one).exists())]
    paths = tuple(Path(one) for one in arguments if one not in keys)
    values = dict(one.split("=", 1) for one in keys)
    for key in values:
        if key != "out":
            close = did_you_mean(key, ["out"])
            raise FedsimError(
                f"{key}={values[key]} is neither a folder nor a key of fedsim.explore{close}; the one key is out=FILE.html"
            )
    if len(keys) > 1:
        raise FedsimError("out= is given twice; give it once")
    if not paths:
        raise FedsimError("no folder is named; give folders of runs, as in python -m fedsim.explore sweeps/NAME")
    if "out" in values and Path(values["out"]).suffix.lower() not in (".html", ".htm"):
        raise FedsimError(f"out={values['out']} is not a name for a page; give one that ends in .html")
    return Request(paths, Path(values["out"]) if "out" in values else _beside(paths))


def _beside(paths: Sequence[Path]) -> Path:
    """Where the page goes by itself: into the one folder above runs, or else into the folder that one is in."""
    above_runs = len(paths) == 1 and paths[0].is_dir() and not (paths[0] / "summary.json").exists()
    return (paths[0] if above_runs else Path()) / "explore.html"


def explore(request: Request) -> str:
    """Write the page; what was written, in a line."""
    from fedsim.results.store import read  # seconds, which a misspelt key need not wait for
    from fedsim.studies.explore import write_page

    store = read(request.paths)
    write_page(store, request.out, store.unfinished)
    count, half = len(store.folders), len(store.unfinished)
    told = f"{count:,} run{'s' if count != 1 else ''}"
    if half:
        told += f", {half:,} left out that {'are' if half > 1 else 'is'} not finished"
    return f"{request.out}: {told}, {request.out.stat().st_size / 1e6:.1f} MB; open it in a browser"


if __name__ == "__main__":
    main()
