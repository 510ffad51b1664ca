"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from absl import logging as absl_logging

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

torch.set_num_threads(1)  # as in every grid; more threads wait for each other where tests run side by side

# dp-accounting logs by absl, whose handler closes the stream that it has when Hydra sets up logging anew: here pytest's
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test write no plots and no report, which take longer than training on tiny data."""
    import fedsim.results.plots
    import fedsim.results.report

    monkeypatch.setattr(fedsim.results.plots, "write_plots", lambda run_dir, summary: [])
    monkeypatch.setattr(fedsim.results.report, "write_report", lambda run_dir, summary: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Reports that were asked for; none is drawn, which takes longer than all the cells."""
    asked: list[dict[str, Any]] = []

    def write_study(runs: list[Path], out: Path, command: str = "", failed: Any = (), style: str = "screen") -> Path:
        asked.append({"runs": [run.name for run in runs], "out": out, "command": command, "failed": list(failed)})
        return out / "report.html"

    import fedsim.studies.report

    monkeypatch.setattr(fedsim.studies.report, "write_study", write_study)
    return asked


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was trained in this process: the cell's folder, and whether it went on from a checkpoint."""
    import fedsim.sweeps.launched

    calls: list[tuple[str, bool]] = []
    whole = fedsim.sweeps.launched.run

    def run(cfg: Any, folder: Path, *more: Any) -> Any:
        calls.append((folder.name, bool(cfg.resume)))
        return whole(cfg, folder, *more)

    monkeypatch.setattr(fedsim.sweeps.launched, "run", run)
    return calls
