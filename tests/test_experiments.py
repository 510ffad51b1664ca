"""One round of every file of conf/experiment/: it composes, runs, and leaves the files and keys that others read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import config, run_into, write_fashion_mnist, write_shakespeare, yaml_files
from omegaconf import DictConfig
from safetensors import safe_open

from fedsim.experiment import run

FILES = (
    "summary.json",
    "rounds.parquet",
    "clients.parquet",
    "lineage.parquet",
    "privacy.json",
    "model.safetensors",
    "report.html",
)
SUMMARY_KEYS = {
    *("experiment", "seed", "rounds", "num_clients", "accuracy", "loss", "best_accuracy", "epsilon", "delta"),
    *("noise_multiplier", "seconds", "client_rounds_per_second", "peak_memory_mb", "bytes_up", "bytes_down", "device"),
    *("versions", "dataset", "command"),
}
PLAN_KEYS = {
    *(
        "num_clients",
        "rounds",
        "cohort_size",
        "noise_multiplier",
        "unit",
        "adjacency",
        "sampling",
        "accountant",
        "delta",
    ),
    *("epsilon", "epsilon_by", "bytes_up", "bytes_down", "memory_mb"),
}
SMALL = ("rounds=1", "device=cpu", "client.max_steps=2", "evaluation.clients=5")
SMALLER = {
    "fashion_mnist": ("dataset.verify=false", "population.num_clients=10"),
    "shakespeare": ("dataset.verify=false", "dataset.min_chars=500"),
}
"""By dataset: what a tiny file of the same format needs to be taken."""

EXPERIMENTS = list(yaml_files("experiment"))


def tiny_files(whole: DictConfig, folder: Path) -> list[str]:
    """Overrides that read a tiny file of the format, where no package installs the real one."""
    dataset = whole.dataset._target_.split(".")[-2]
    writers = {
        "fashion_mnist": lambda: write_fashion_mnist(folder, train=200, test=20),
        "shakespeare": lambda: write_shakespeare(folder),
    }
    if dataset not in writers:
        return []
    writers[dataset]()
    cohort = ["sampler.cohort_size=2"] if "cohort_size" in whole.sampler else []
    cohort += ["sampler.fraction=null"] if "fraction" in whole.sampler else []
    return [f"dataset.root='{folder}'", *SMALLER[dataset], *cohort]


def test_there_are_experiments() -> None:
    assert {"quickstart", "fashion_mnist", "watch", "shakespeare", "flights"} <= {path.stem for path in EXPERIMENTS}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_one_round_of_each(path: Path, tmp_path: Path) -> None:
    experiment = f"+experiment={path.stem}"
    whole = config(experiment)
    assert whole.name == path.stem and path.read_text().startswith("# @package _global_\n# ")
    cfg = config(experiment, *SMALL, *tiny_files(whole, tmp_path))
    folder = tmp_path / "run"
    run_into(folder, cfg)
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert list((folder / "plots").glob("*.png")) and list((folder / "checkpoints").glob("round_000001/*"))
    assert not list(folder.rglob(".*.tmp"))

    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["experiment"] == path.stem and summary["rounds"] == 1 and summary["device"] == "cpu"
    assert math.isfinite(summary["loss"]) and 0 <= summary["accuracy"] <= 1 and summary["failures"]["count"] == 0
    assert summary["bytes_up"] > 0 and summary["seconds"] > 0 and summary["peak_memory_mb"] > 0

    rounds, clients = (pq.read_table(folder / f"{name}.parquet") for name in ("rounds", "clients"))
    assert rounds.num_rows == 1 and clients.num_rows == summary["num_clients"] > 1
    assert sum(clients["participations"].to_pylist()) == rounds["cohort_size"][0].as_py()
    assert pq.read_table(folder / "lineage.parquet").num_rows == clients.num_rows
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) >= summary["num_parameters"]  # noqa: SIM118
        assert file.metadata()["dataset"] == summary["dataset"]["fingerprint"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_plan_of_each(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = f"+experiment={path.stem}"
    whole = config(experiment)
    cfg = config(experiment, "dry_run=true", "device=cpu", *tiny_files(whole, tmp_path))
    folder = tmp_path / "plan"
    run(cfg, folder)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan.keys() >= PLAN_KEYS and plan["epsilon_by"].keys() == {"pld", "rdp", "prv"}
    assert plan["rounds"] == whole.rounds and plan["bytes_up"] > 0 and plan["sampling"] in ("fixed", "poisson", "all")
    assert [path.name for path in folder.iterdir()] == ["plan.json"]  # nothing was trained, nothing reads as a run
    assert str(plan["rounds"]) in capsys.readouterr().out


def test_the_plan_foretells_the_run(tmp_path: Path) -> None:
    overrides = ["+experiment=quickstart", "rounds=2", "device=cpu", "client.max_steps=1", "evaluation.every=2"]
    plan = run(config(*overrides, "dry_run=true"), tmp_path / "plan")
    summary = run_into(tmp_path / "run", config(*overrides))
    for key in ("bytes_up", "bytes_down", "num_clients", "rounds", "cohort_size", "num_parameters"):
        assert plan[key] == summary[key], key
    clients = pq.read_table(tmp_path / "run" / "clients.parquet")
    assert plan["train_rows"] == sum(clients["num_examples"].to_pylist())
