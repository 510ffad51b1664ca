"""`dry_run=true`: what a run will do and cost, before it does anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.parts import Parts
from fedsim.streams.account import warnings
from fedsim.traffic import message_bytes
from fedsim.training.arrays import model_arrays

MANY_JUDGES = 10_000
"""Clients asked in an evaluation from which on it is worth a word, where they are ten times a cohort as well."""


def make_plan(parts: Parts) -> dict[str, Any]:
    """The plan, ready for JSON. Bytes are those of encoded messages; memory is an estimate of the arrays alone."""
    population, server = parts.population, parts.server
    cohort = server.sampler.expected_size(server.num_clients)
    down, up = message_bytes(parts.model, server.protection, server.compression)
    examples = population.partition.sizes - population.holdout_sizes
    if parts.algorithm.pools_data:
        examples = np.array([examples.sum()])
    sizes, clients = np.unique(examples, return_counts=True)
    steps = float(np.average([parts.settings.steps(int(size)) for size in sizes], weights=clients))
    private = server.protection.plan()
    client_rounds = cohort * server.rounds
    dataset = population.dataset
    return {
        "experiment": parts.name,
        "dataset": dataset.name,
        "train_rows": int(examples.sum()),
        "test_rows": len(dataset.test),
        "num_clients": server.num_clients,
        "examples_per_client": {
            "smallest": int(examples.min()),
            "median": float(np.median(examples)),
            "largest": int(examples.max()),
        },
        "rounds": server.rounds,
        "cohort_size": cohort,
        "sampling": server.sampler.kind,
        "steps_per_client_round": steps,
        "num_parameters": parts.num_parameters,
        **private,
        "warnings": [*private["warnings"], *warnings_of(parts)],
        "bytes_up": int(up * client_rounds),
        "bytes_down": int(down * client_rounds),
        "memory_mb": round(_memory_mb(parts), 1),
        **server.field.plan(),
        "device": parts.device.type,
        "execution": parts.execution,
    }


def warnings_of(parts: Parts) -> list[str]:
    """What a user should know of the cost before the first round."""
    server = parts.server
    judges, chosen = len(server.holders), server.plan.clients
    asked = judges if chosen is None else min(judges, chosen)
    cohort = server.sampler.expected_size(server.num_clients)
    moving = {name: server.state.arrays[name].shape for name in dict.fromkeys(server.protection.moving.values())}
    words = server.compression.notes(moving)
    if server.online is not None:
        population = server.online.population
        words += warnings(population.stream, server.rounds, population.quality)
    if not parts.algorithm.shares_model or asked <= max(MANY_JUDGES, 10 * cohort):
        return words
    return [
        *words,
        f"every evaluation asks {asked:,} clients, which takes longer than their rounds of training; set evaluation.clients=1000 "
        "to ask some by chance, or population.holdout=0 for the test set alone",
    ]


def _memory_mb(parts: Parts) -> float:
    """The dataset, and five copies of the model: the server's, the one that trains, its gradients, the sum, a message.

    Where clients keep models of their own, those of all that may take part.
    """
    dataset = parts.population.dataset
    rows = dataset.train.nbytes + dataset.test.nbytes
    server, model = parts.server, sum(array.nbytes for array in model_arrays(parts.model).values())
    taking_part = min(server.num_clients, int(server.sampler.expected_size(server.num_clients) * server.rounds))
    own = 0 if parts.algorithm.shares_model else taking_part  # of which checkpoint.states_mb are in memory
    return (rows + (5 + own) * model) / 1e6


def print_plan(plan: dict[str, Any]) -> None:
    """The plan as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table("plan", "", show_edge=False)
    for name, value in plan.items():
        if isinstance(value, list):
            value = "; ".join(map(str, value)) or None
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_show(k, v)}" for k, v in value.items())
        table.add_row(name, _show(name, value))
    Console().print(table)


def _show(name: str, value: object) -> str:
    if value is None:
        return "–"
    if name.startswith("bytes"):
        return f"{value / 1e6:,.1f} MB"  # type: ignore[operator]
    if isinstance(value, int | float):
        return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    return str(value)
