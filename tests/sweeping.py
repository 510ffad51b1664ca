"""What the tests of sweeps share."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers import TINY
from hydra.core.global_hydra import GlobalHydra

from fedsim.__main__ import main

SWEEP = (*TINY, "hydra.sweep.dir=sweep")
DIGITS = (
    *("dataset=digits", "model=linear", "partition=iid", "population.num_clients=8", "sampler=all", "rounds=2"),
    *("device=cpu", "grid=inprocess", "evaluation.clients=2"),
)


def sweep(*arguments: str) -> int:
    """The exit status of `python -m fedsim -m ARGUMENTS`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(sys, "argv", ["fedsim", "-m", *arguments])
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
    return 0


def cells_in(folder: Path) -> dict[str, Path]:
    """The cells that finished, by what is left of their names without dataset and the like: `seed-0`."""
    found = {}
    for path in sorted(folder.glob("*/summary.json")):
        found[" ".join(re.findall(r"(?:seed|lr)-+[\d.]+", path.parent.name))] = path.parent
    return found


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
