"""`python -m experiments.benchmarks`: side by side in one process tree, on the same work, as ratios.

engines: client-rounds a second of a raw PyTorch loop, of fedsim's in-process grid, and of Flower's own simulation on
Ray, which runs fedsim's two apps on every core; the three take turns. population: what a round of 100 clients costs when
the population grows from a thousand to a million, each size in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from fedsim.build import build, client_app_from
from fedsim.data.dataset import Dataset, Examples
from fedsim.parts import Parts
from fedsim.paths import conf_dir
from fedsim.server import make_server_app
from fedsim.training.arrays import load_arrays

WORKLOADS = {
    "2NN, 199 k": ["model=mlp"],
    "CNN, 1.66 M": ["model=cnn"],
    "GroupNorm ResNet, 78 k": ["model=resnet", "client.batch_size=32"],
}
COMMON = ["population.num_clients=100", "population.holdout=0", "partition=iid", "evaluation.every=1000000"]
ROUNDS = 4  # the first warms up and does not count


def config(*overrides: str) -> DictConfig:
    """A configuration as the command line would give it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides])


def raw_loop(parts: Parts, rounds: int) -> list[float]:
    """Seconds of each round in plain PyTorch: for each client load, train with torch.optim.SGD, add to the mean."""
    server, model, settings = parts.server, parts.model, parts.settings
    arrays, seconds = dict(server.state.arrays), []
    for round in range(1, rounds + 1):
        start = time.perf_counter()
        cohort = server.sampler.cohort(server.seed, round, server.num_clients)
        mean = {name: torch.zeros_like(array) for name, array in arrays.items()}
        for client in cohort.tolist():
            data = parts.population.training_data(client)
            load_arrays(model, arrays)
            optimizer = torch.optim.SGD(model.parameters(), settings.lr)
            for rows in torch.randperm(len(data.x)).split(settings.batch_size or len(data.x)):
                optimizer.zero_grad()
                parts.trainer.objective(model(data.x[rows]), data.y[rows]).backward()
                optimizer.step()
            for name, array in model.state_dict().items():
                mean[name] += array / len(cohort)
        arrays = mean
        seconds.append(time.perf_counter() - start)
    return seconds


def fedsim_inprocess(parts: Parts, rounds: int) -> list[float]:
    """Seconds of each round of the real loop on the in-process grid."""
    server = parts.server
    server.rounds = rounds + 1  # the last round is evaluated, and left out
    server.run(parts.grid())
    return [row["seconds"] for row in server.state.rows[:rounds]]


def flower_on_ray(cfg: DictConfig, rounds: int) -> list[float]:
    """Seconds of each round of the same two apps on Flower's own simulation."""
    from flwr.simulation import run_simulation

    server = build(cfg).server
    server.rounds = rounds + 1
    run_simulation(
        make_server_app(server),
        client_app_from(OmegaConf.to_container(cfg, resolve=True)),
        num_supernodes=server.num_clients,
    )
    return [row["seconds"] for row in server.state.rows[:rounds]]


def engines(repeats: int, with_ray: bool) -> None:
    """The table of engines."""
    table = Table("workload", "engine", "client-rounds/s, median (min to max)", "ratio to raw loop", title="engines")
    for workload, overrides in WORKLOADS.items():
        cfg = config(*COMMON, "sampler.cohort_size=20", *overrides)
        ways: dict[str, Callable[[], list[float]]] = {
            "raw PyTorch loop, 1 thread": lambda cfg=cfg: raw_loop(build(cfg), ROUNDS),  # type: ignore[misc]
            "fedsim inprocess, 1 thread": lambda cfg=cfg: fedsim_inprocess(build(cfg), ROUNDS),  # type: ignore[misc]
        }
        if with_ray:
            ways["Flower on Ray, all cores, after start"] = lambda cfg=cfg: flower_on_ray(cfg, ROUNDS)  # type: ignore[misc]
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                speeds[name] += [20 / seconds for seconds in way()[1:]]
        base = statistics.median(next(iter(speeds.values())))
        for name, found in speeds.items():
            middle = statistics.median(found)
            table.add_row(
                workload, name, f"{middle:.1f} ({min(found):.1f} to {max(found):.1f})", f"{middle / base:.2f}"
            )
    Console(width=120).print(table)


def synthetic(num_rows: int) -> Dataset:
    """One row of 32 numbers for each client, two classes told apart by a plane."""
    x = torch.randn(num_rows, 32, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    return Dataset("synthetic", Examples(x, y), Examples(x[:1000], y[:1000]), "classification", ("below", "above"))


def one_population(num_clients: int) -> dict[str, float]:
    """Seconds of a round of 100 clients, and this process's peak memory, for a population of this size."""
    overrides = ["dataset=custom", "dataset._target_=experiments.benchmarks.__main__.synthetic"]
    cfg = config(*COMMON, *overrides, f"+dataset.num_rows={num_clients}", "model=linear", "sampler.cohort_size=100")
    cfg.population.num_clients = num_clients
    start = time.perf_counter()
    parts = build(cfg)
    built = time.perf_counter() - start
    seconds = statistics.median(fedsim_inprocess(parts, 20)[1:])
    return {"build": built, "round": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def populations() -> None:
    """The table of populations."""
    table = Table("clients", "start-up, s", "a round of 100 clients, ms", "peak memory, MB", title="population")
    for num_clients in (1_000, 10_000, 100_000, 1_000_000):
        command = [sys.executable, "-m", "experiments.benchmarks", "--one-population", str(num_clients)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        table.add_row(
            f"{num_clients:,}", f"{found['build']:.1f}", f"{found['round'] * 1e3:.0f}", f"{found['peak_mb']:.0f}"
        )
    Console(width=120).print(table)


def main() -> None:
    """Run what is asked for; all of it by default."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns that each engine takes")
    parser.add_argument("--no-ray", action="store_true", help="leave out Flower's own simulation")
    parser.add_argument("--one-population", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_population:
        print(json.dumps(one_population(given.one_population)))
        return
    populations()
    engines(given.repeats, not given.no_ray)


if __name__ == "__main__":
    main()
