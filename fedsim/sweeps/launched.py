"""A cell as Hydra launches it: run, written down in sweep.json, told in a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedsim.build import build
from fedsim.experiment import Company, run
from fedsim.parts import Parts
from fedsim.session import Session
from fedsim.sweeps.cells import Outcome, run_cell
from fedsim.sweeps.line import line
from fedsim.sweeps.objectives import chosen_objectives, values_of
from fedsim.sweeps.state import record
from fedsim.types import FedsimError


class InSweep:
    """The company of a run in a sweep (`experiment.Company`): it says nothing when it ends, since the sweep does."""

    def build(self, cfg: DictConfig) -> Parts:
        """As alone."""
        return build(cfg)

    def begin(self, session: Session) -> None:
        """No closing line."""
        session.closes = False


def launched(
    cfg: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    sweep_dir: Path,
    debug: bool = False,
    company: Company | None = None,
) -> tuple[Outcome, Any]:
    """Run the cell and tell of it. Gives its outcome and, of a finished one, what `objectives` asks for (else the summary)."""

    def play(own: DictConfig, run_dir: Path, command: str) -> dict[str, Any]:
        chosen_objectives(own)  # refused before any work
        return run(own, run_dir, command, company or InSweep())

    outcome = run_cell(cfg, folder, overrides, play, debug)
    values: Any = outcome.summary
    if outcome.state == "finished" and outcome.summary is not None and (names := chosen_objectives(cfg)):
        try:
            values = values_of(outcome.summary, names)
        except FedsimError as error:
            outcome = outcome._replace(state="failed", reason=str(error))
    tell(outcome, folder, overrides, sweep_dir)
    return outcome, values


def tell(outcome: Outcome, folder: Path, overrides: Sequence[str], sweep_dir: Path) -> None:
    """Write the outcome into sweep.json, and its line on standard output."""
    if outcome.state == "planned":
        return
    found = outcome.summary or {}
    sweep, cell = record(
        sweep_dir,
        folder.name,
        overrides,
        state=outcome.state,
        reason=outcome.reason,
        before=outcome.before,
        seconds=outcome.seconds,
        accuracy=found.get("accuracy"),
        epsilon=found.get("epsilon"),
    )
    print(line(sweep, cell))
    sys.stdout.flush()
