"""The experiments at their full size reach what the project promises of them. Minutes each: `make test-slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROMISED = {  # experiment: (test accuracy, minutes on one core)
    "quickstart": (0.94, 10),
    "watch": (0.75, 10),
    "fashion_mnist": (0.85, 30),
    "shakespeare": (0.30, 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PROMISED)
def test_the_experiment_reaches_its_accuracy_in_time(experiment: str, tmp_path: Path) -> None:
    accuracy, minutes = PROMISED[experiment]
    command = [sys.executable, "-m", "fedsim", f"+experiment={experiment}", f"hydra.run.dir={tmp_path / 'run'}"]
    subprocess.run(command, check=True, timeout=60 * minutes)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] >= accuracy
