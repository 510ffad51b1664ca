"""What all tests share."""

from __future__ import annotations

import os
import sys

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
