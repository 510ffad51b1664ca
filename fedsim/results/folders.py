"""Which folders below some others are runs: finished ones hold summary.json, the others what a run leaves on its way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fedsim.types import FedsimError

OWN = ("baselines", "checkpoints", "export", "plots", "tensorboard", "wandb")
"""Folders of a run's own, below which no other run is looked for."""

Paths = Iterable[Path | str] | Path | str


class Found(NamedTuple):
    """runs: finished. unfinished: with a configuration or checkpoints, but no summary. Each sorted, without duplicates."""

    runs: list[Path]
    unfinished: list[Path]


def find_runs(paths: Paths) -> list[Path]:
    """Folders of finished runs: these, and all below them but baselines, which count where they are named themselves.

    Raises FedsimError where there is none.
    """
    return find(paths).runs


def find(paths: Paths) -> Found:
    """See `find_runs`; with the runs that are not finished."""
    given = [paths] if isinstance(paths, Path | str) else list(paths)
    if not given:
        raise FedsimError("no folder is named; give folders of runs, or folders above them such as a sweep's")
    runs: list[Path] = []
    unfinished: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for path in given:
        if not Path(path).is_dir():
            raise FedsimError(f"{path} is not a folder; give folders of runs, or folders above them such as a sweep's")
        for folder, finished in _walk(Path(path), seen):
            (runs if finished else unfinished).append(folder)
    if not runs:
        where, *more = map(str, given)
        others = f" or the {len(more)} folders named after it" if more else ""
        half = f" (of {len(unfinished)} that are not, {unfinished[0]} is one)" if unfinished else ""
        raise FedsimError(f"no finished run lies in {where}{others}{half}; give folders that hold a summary.json")
    return Found(sorted(runs), sorted(unfinished))


def _walk(start: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """Runs at and below `start`, and whether they are finished; a folder that was seen, by whatever name, is left out."""
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # links may lead around in circles
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            inside = {entry.name: entry.is_dir() for entry in entries}
        finished = inside.get("summary.json") is False
        run = finished or _begun(folder, inside)
        if run:
            yield folder, finished
        below = (name for name, is_folder in inside.items() if is_folder and not name.startswith("."))
        waiting += [folder / name for name in below if not (run and name in OWN)]


def _begun(folder: Path, inside: dict[str, bool]) -> bool:
    """Whether a run without a summary was begun there; a dry run leaves a plan and begins nothing."""
    if inside.get("checkpoints") and any((folder / "checkpoints").glob("round_*")):
        return True
    return bool(inside.get(".hydra")) and "plan.json" not in inside
