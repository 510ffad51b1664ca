"""An environment for pfl, which does not install beside fedsim (it wants dp-accounting below 0.6), and the command that runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from experiments.benchmarks.workloads import config
from fedsim.build import build
from fedsim.models.build import model_arrays
from fedsim.paths import data_dir
from fedsim.types import FedsimError

PFL = "0.6.0"
ROOT = Path(__file__).parents[2]


def make_environment() -> Path:
    """Its Python; made where there is none, with this process's version of torch. Raises FedsimError where pip cannot."""
    torch_version = torch.__version__.partition("+")[0]
    folder = data_dir(f"pfl-{PFL}-torch-{torch_version}")
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    packages = [f"pfl[pytorch]=={PFL}", f"torch=={torch_version}", "numpy"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines() or [str(error)]
        raise FedsimError(f"no environment for pfl could be made in {folder}: {lines[-1]}") from error
    done.touch()
    return python


def write_work(overrides: list[str], path: Path) -> dict[str, Any]:
    """Write a workload's arrays, and give what pfl_loop.py must know of it beside the number of rounds and threads."""
    cfg = config(*overrides, "grid=inprocess")
    parts = build(cfg)
    population, settings = parts.population, parts.settings
    data = [population.training_data(client) for client in range(population.num_clients)]
    weights: dict[str, Any] = {
        f"weight/{name}": array.cpu().numpy() for name, array in model_arrays(parts.model).items()
    }
    columns: dict[str, Any] = {
        column: torch.cat([getattr(one, column) for one in data]).cpu().numpy() for column in ("x", "y")
    }
    np.savez(path, sizes=np.array([len(one.x) for one in data]), **columns, **weights)
    model: dict[str, Any] = OmegaConf.to_container(cfg.model, resolve=True)  # type: ignore[assignment]
    target, dataset = model.pop("_target_"), population.dataset
    return {
        "model": target,
        "arguments": {**model, "input_shape": list(dataset.input_shape), "num_outputs": dataset.num_outputs},
        "cohort": round(parts.server.sampler.expected_size(population.num_clients)),
        "batch_size": settings.batch_size,
        "epochs": settings.epochs,
        "lr": settings.lr,
    }


def command(python: Path, path: Path, spec: dict[str, Any], processes: int) -> list[str]:
    """That trains the work; processes above 1 share each round's cohort by torch.distributed."""
    loop = [str(Path(__file__).with_name("pfl_loop.py")), str(path), json.dumps(spec)]
    if processes == 1:
        return [str(python), *loop]
    return [str(python), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *loop]


def environment(device: str) -> dict[str, str]:
    """Variables for that command: where fedsim's models are, and the device."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PFL_PYTORCH_DEVICE": device}
