"""Folders of the runs of a study with plausible numbers, written as fedsim writes them; nothing is trained."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.results.files import write_json, write_table
from fedsim.results.store import read
from fedsim.rng import numpy_generator
from fedsim.studies.study import Study, study_of

CONFIG: dict[str, Any] = {
    "name": "privacy_vs_clients",
    "seed": 0,
    "rounds": 30,
    "size": "small",
    "dataset": {"_target_": "fedsim.data.sources.mnist5k.load", "root": None},
    "partition": {"_target_": "fedsim.data.partition.dirichlet", "alpha": 0.5},
    "population": {"num_clients": 100, "holdout": 0.1},
    "sampler": {"_target_": "fedsim.samplers.PoissonSampler", "fraction": 0.1, "cohort_size": None},
    "model": {"_target_": "fedsim.models.Linear"},
    "client": {"_target_": "fedsim.training.LocalTraining", "lr": 0.1, "epochs": 1},
    "strategy": {"_target_": "fedsim.algorithms.fedavgm", "server_lr": 1.0, "server_momentum": 0.9},
    "privacy": {"_target_": "fedsim.privacy.UserPrivacy", "epsilon": 8.0, "delta": 1e-5, "clip_norm": 0.15},
    "grid": {"_target_": "fedsim.grids.inprocess.InProcess", "workers": 1},
}
NO_PRIVACY = {"_target_": "fedsim.privacy.NoPrivacy"}
FEDADAM = {"_target_": "fedsim.algorithms.fedadam", "server_lr": 0.01, "beta_1": 0.9}
FEDAVG = {"_target_": "fedsim.algorithms.fedavg"}
GRID: dict[str, list[Any]] = {"population.num_clients": [10, 100, 1000], "privacy.epsilon": [1.0, 2.0, 4.0, 8.0]}
GAINS = {"fedavgm": 0.0, "fedadam": 0.012, "fedavg": -0.03}


def make_study(folder: Path, axes: Mapping[str, Iterable[Any]], seeds: Iterable[int] = (0, 1, 2), **more: Any) -> Path:
    """A folder of runs, one for each combination of the axes' values and each seed. A value that is a dict is a whole group."""
    keys = list(axes)
    for number, values in enumerate(product(*axes.values())):
        for seed in seeds:
            make_cell(folder / f"{number}_{seed}", dict(zip(keys, values, strict=True)), seed, **more)
    return folder


def make_cell(
    folder: Path, values: Mapping[str, Any], seed: int, clients_told: int = 100, classes: int = 10, **summary: Any
) -> Path:
    """A run's folder. values: of configuration keys, by dotted name. summary: keys of summary.json that are set to this."""
    config = copy.deepcopy(CONFIG) | {"seed": seed}
    for key, value in values.items():
        _set(config, key, value)
    random = numpy_generator(seed, 0, abs(hash_of(values)) % 1000, "fake study")
    clients, epsilon = config["population"]["num_clients"], _epsilon(config)
    final = _final(config, clients, epsilon) + random.normal(0, 0.008)
    rounds, fraction = config["rounds"], config["sampler"]["fraction"] or 0.1
    t = np.arange(1, rounds + 1)
    curve = final - (final - 0.1) * np.exp(-t / (rounds / 5)) + random.normal(0, 0.004, rounds)
    curve[-1] = final
    sent = np.full(rounds, int(max(clients * fraction, 1) * 31_400 * 4))
    told = min(clients, clients_told)
    own = np.clip(random.beta(8 * final, 8 * (1 - final) + 0.4, told), 0, 1)
    write_table(
        folder / "rounds.parquet",
        {
            "round": t,
            "cohort_size": np.full(rounds, max(clients * fraction, 1)),
            "accuracy": curve,
            "loss": 2.3 * (1 - curve),
            "bytes_up": sent,
            "bytes_down": sent,
            "seconds": np.full(rounds, 0.3),
        },
    )
    write_table(folder / "clients.parquet", _clients(random, config, told, classes, own, epsilon))
    ordered = np.sort(own)
    tenth = max(1, math.ceil(told / 10))
    facts = {
        "experiment": config["name"],
        "seed": seed,
        "rounds": rounds,
        "num_clients": clients,
        "cohort_size": clients * fraction,
        "accuracy": final,
        "loss": 2.3 * (1 - final),
        "best_accuracy": float(curve.max()),
        "macro_f1": final - 0.01,
        "epsilon": None if epsilon is None else 0.998 * epsilon,
        "delta": None if epsilon is None else 1e-5,
        "noise_multiplier": None if epsilon is None else 1.3 / epsilon,
        "seconds": 9.0 + clients / 200 + random.uniform(0, 1),
        "bytes_up": int(sent.sum()),
        "bytes_down": int(sent.sum()),
        "device": "cpu",
        "strategy": config["strategy"]["_target_"].rsplit(".", 1)[1],
        "model": "Linear",
        "partition": "dirichlet",
        "command": _command(config, values, seed),
        "dataset": {"name": "mnist5k", "classes": [str(one) for one in range(classes)], "task": "classification"},
        "federated": {
            "accuracy_mean": float(own.mean()),
            "accuracy_std": float(own.std()),
            "accuracy_worst10": float(ordered[:tenth].mean()),
            "accuracy_best10": float(ordered[-tenth:].mean()),
            "num_clients": told,
        },
        "host": {"cpu": "A Processor 3000", "cores": 2, "memory_gb": 25.3, "system": "Linux x86_64"},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0"},
    }
    write_json(folder / "privacy.json", _ledger(facts))
    write_json(folder / "summary.json", facts | summary | {"config": config})
    return folder


def hash_of(values: Mapping[str, Any]) -> int:
    """The same in every process, unlike `hash`."""
    return sum(place * byte for place, byte in enumerate(repr(sorted(map(str, values.items()))).encode()))


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    config[name] = value


def _epsilon(config: dict[str, Any]) -> float | None:
    return config["privacy"].get("epsilon")


def _final(config: dict[str, Any], clients: int, epsilon: float | None) -> float:
    """Noise costs less the more clients share it."""
    best = 0.88 + GAINS.get(config["strategy"]["_target_"].rsplit(".", 1)[1], 0.0)
    best -= 0.12 * math.exp(-4 * float(config["partition"].get("alpha") or 100))
    best -= 0.06 * abs(math.log10(config["client"]["lr"] / 0.1))
    noise = 0.0 if epsilon is None else 10 / (epsilon * clients)
    return 0.1 + (best - 0.1) * math.exp(-1.1 * noise) - 0.015 * (epsilon is not None)


def _clients(
    random: np.random.Generator,
    config: dict[str, Any],
    clients: int,
    classes: int,
    accuracy: np.ndarray,
    epsilon: float | None,
) -> dict[str, Any]:
    import pyarrow as pa

    shares = random.dirichlet(np.full(classes, float(config["partition"].get("alpha") or 100)), clients)
    counts = np.array([random.multinomial(40, share) for share in shares], dtype=np.int32)
    offsets = pa.array(np.arange(clients + 1, dtype=np.int32) * classes)
    return {
        "client": np.arange(clients, dtype=np.int32),
        "user": pa.nulls(clients, pa.string()),
        "num_examples": np.full(clients, 36),
        "num_holdout": np.full(clients, 4),
        "class_counts": pa.ListArray.from_arrays(offsets, pa.array(counts.ravel())),
        "participations": random.binomial(config["rounds"], 0.1, clients).astype(np.int32),
        "failures": np.zeros(clients, np.int32),
        "accuracy": accuracy,
        "loss": 1 - accuracy,
        "epsilon": pa.nulls(clients, pa.float64()) if epsilon is None else np.full(clients, epsilon),
    }


def _ledger(facts: dict[str, Any]) -> dict[str, Any]:
    if facts["epsilon"] is None:
        return {"mechanism": "none", "epsilon": None, "delta": None, "noise_multiplier": None, "caveats": []}
    return {
        "mechanism": "Gaussian, flat clipping",
        "unit": "client",
        "adjacency": "add-or-remove-one",
        "noise_multiplier": facts["noise_multiplier"],
        "delta": 1e-5,
        "epsilon": facts["epsilon"],
        "epsilon_by": {"pld": facts["epsilon"], "rdp": 1.1 * facts["epsilon"], "prv": None},
        "accountant": "PLD, dp-accounting 0.6.0",
        "generator": "seeded with the run's seed: for research only",
        "caveats": [],
    }


def _command(config: dict[str, Any], values: Mapping[str, Any], seed: int) -> str:
    words = [f"{key}={value}" for key, value in values.items() if not isinstance(value, dict)]
    names = [f"{key}={value['_target_'].rsplit('.', 1)[1]}" for key, value in values.items() if isinstance(value, dict)]
    return " ".join(["python -m fedsim", f"+experiment={config['name']}", *names, *words, f"seed={seed}"])


def studied(folder: Path) -> Study:
    """The study of the runs below a folder."""
    return study_of(read([folder]))


def edit(folder: Path, **changes: Any) -> None:
    """Set keys of a run's summary.json."""
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def plain(words: str) -> str:
    """With common spaces."""
    return words.replace("\N{NO-BREAK SPACE}", " ")


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), "an event handler"
        if tag == "img":
            assert given["alt"]
            self.images.append(given["src"] or "")
        if "href" in given:
            self.links.append(given["href"] or "")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style" and not self.style:
            self.style = data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))
