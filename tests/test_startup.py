"""What a start costs: nothing heavy is imported before the first client has trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = {
    "absl", "datasets", "dp_accounting", "flwr_datasets", "jinja2", "matplotlib", "mlflow", "opacus", "pandas", "pyarrow", "ray",
    "scipy", "seaborn", "sklearn", "tensorboard", "torchvision", "wandb",
}  # fmt: skip
"""What some runs need, and the first client of a plain one does not."""

AT_FIRST_CLIENT = """
import gc, runpy, sys
from fedsim.results.progress import Progress

def cohort(progress, done, size):
    print("imported:", *sys.modules)
    print("collects:", gc.isenabled(), gc.get_freeze_count() > 100_000)
    raise KeyboardInterrupt

Progress.cohort = cohort
runpy.run_module("fedsim", run_name="__main__", alter_sys=True)
"""


def test_a_plain_run_imports_nothing_heavy_before_its_first_client_has_trained(tmp_path):
    overrides = ["+experiment=quickstart", "grid=inprocess", "sampler.cohort_size=1", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, "-c", AT_FIRST_CLIENT, *overrides]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert done.returncode == 130, done.stderr
    assert not HEAVY & {name.partition(".")[0] for name in lines["imported"].split()}
    assert lines["collects"] == "True True"
    assert not (tmp_path / "run").exists()
