"""Sweeps by launchers that other packages bring, and without these packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import config, run_into, start_command
from omegaconf import OmegaConf
from sweeping import DIGITS, cells_in, lines, sweep

import fedsim
from fedsim.sweeps.state import read_state

pytestmark = pytest.mark.usefixtures("no_pictures", "reports")


def assert_launches(folder: Path, *arguments: str) -> None:
    """Three cells, one of which cannot be; then the same cells again by no launcher, which trains nothing."""
    command = ["-m", *DIGITS, "client.lr=0.1,0.2,-1", "hydra.sweep.dir=sweep", *arguments]
    process = start_command(*command)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    said = [line for line in lines(err) if line.startswith("fedsim:")]
    assert said[0].startswith("fedsim: cell client.lr=-1: client.lr=-1 is out of range") and "1 of 3 cells" in said[1]
    state = read_state(folder / "sweep")
    assert state is not None and sorted(cell["state"] for cell in state.cells) == ["failed", "finished", "finished"]
    assert (folder / "sweep" / "report.html").exists()
    run_into(folder / "alone", config(*DIGITS, "client.lr=0.2"))
    cell = cells_in(folder / "sweep")["lr-0.2"]
    assert (cell / "model.safetensors").read_bytes() == (folder / "alone" / "model.safetensors").read_bytes()
    kept = (cell / "summary.json").stat().st_mtime_ns
    assert sweep(*command[1 : -len(arguments)]) == 1, "without the launcher it goes on where that stopped"
    assert (cell / "summary.json").stat().st_mtime_ns == kept


def test_joblib(here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert_launches(here, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "grid=auto")


@pytest.mark.slow
def test_submitit_on_this_machine(here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert_launches(here, "hydra/launcher=submitit_local")


@pytest.mark.ray
def test_ray(here: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    assert_launches(here, "hydra/launcher=ray", "grid=auto")


def test_slurm_is_asked_for_what_the_configuration_says(here: Path) -> None:
    submitit = pytest.importorskip("submitit")
    from hydra import compose, initialize_config_dir
    from submitit.slurm.slurm import _make_sbatch_string

    from fedsim.paths import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["hydra/launcher=slurm", "hydra.launcher.partition=cpu"], return_hydra_config=True)
    launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    assert isinstance(launcher, dict) and launcher.pop("_target_").endswith("SlurmLauncher")
    executor = submitit.AutoExecutor(here, cluster="debug")
    shared = {
        "name",
        "timeout_min",
        "mem_gb",
        "nodes",
        "cpus_per_task",
        "gpus_per_node",
        "tasks_per_node",
        "stderr_to_stdout",
    }
    known = {key: value for key, value in launcher.items() if key in shared}
    asked = {
        f"slurm_{key}": value
        for key, value in launcher.items()
        if key not in {*shared, "submitit_folder", "max_num_timeout"}
    }
    executor.update_parameters(**known, **asked)  # refuses what submitit does not know
    text = _make_sbatch_string(
        command="true", folder=here, job_name=launcher["name"], time=launcher["timeout_min"], partition=launcher["partition"],
        cpus_per_task=launcher["cpus_per_task"], mem=f"{launcher['mem_gb']}GB", nodes=launcher["nodes"], map_count=12,
        ntasks_per_node=launcher["tasks_per_node"], array_parallelism=launcher["array_parallelism"],
        signal_delay_s=launcher["signal_delay_s"],
    )  # fmt: skip
    for wanted in (
        "--job-name=fedsim",
        "--time=240",
        "--partition=cpu",
        "--cpus-per-task=2",
        "--mem=8GB",
        "--array=0-11%12",
    ):
        assert f"#SBATCH {wanted}" in text
    assert launcher["max_num_timeout"] == 20


WITHOUT_PLUGINS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hydra_plugins":
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
from fedsim.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("hydra/launcher=joblib seed=0", 1, "hydra/launcher=joblib pip install 'fedsim-flower[joblib]'"),
        ("+experiment=tune", 1, "hydra/sweeper=optuna pip install 'fedsim-flower[optuna]'"),
        ("dataset=digits seed=range(0,0)", 1, "no cells"),
    ],
)
def test_without_the_optional_packages_a_sentence_says_what_to_install(
    here: Path, arguments: str, status: int, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGINS, "-m", *arguments.split()],
        env={**os.environ, "PYTHONPATH": str(Path(fedsim.__file__).parents[1]), "HYDRA_FULL_ERROR": "0"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    (said,) = lines(done.stderr)
    assert done.returncode == status and [word for word in words.split() if word not in said] == []
