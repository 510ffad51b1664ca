"""What all tests share."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test write no plots and no report, which take longer than training on tiny data."""
    import fedsim.results.plots
    import fedsim.results.report

    monkeypatch.setattr(fedsim.results.plots, "write_plots", lambda run_dir, summary: [])
    monkeypatch.setattr(fedsim.results.report, "write_report", lambda run_dir, summary: None)
