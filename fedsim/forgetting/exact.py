"""Exact forgetting: the same experiment without the clients, from the last checkpoint that knew nothing of them.

All that a model has of a client came through the rounds in which the client took part, and every draw of a run is named by
round and client; so the rounds before are those of a run without it, bit for bit, and need not be run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fedsim.experiment import digest, run, save_config
from fedsim.forgetting.source import Source
from fedsim.paths import conf_dir
from fedsim.results.checkpoint import checkpoints
from fedsim.results.files import read_json, write_json
from fedsim.types import FedsimError


class Retrained(NamedTuple):
    """summary: of the new run. checkpoint: that it went on from, or None. from_round: the last round that was kept.

    cohort_sizes: (rounds,) of the new run. seconds: what it took.
    """

    summary: dict[str, Any]
    checkpoint: Path | None
    from_round: int
    cohort_sizes: np.ndarray
    seconds: float

    @property
    def client_rounds(self) -> int:
        """That were trained again."""
        return int(self.cohort_sizes[self.from_round :].sum())

    def spared(self, source: Source, every: int) -> int:
        """Client-rounds that need not have been trained if every checkpoint, one in `every` rounds, had been kept."""
        could = (source.first_round - 1) // every * every
        return int(self.cohort_sizes[self.from_round : could].sum()) if could > self.from_round else 0


def without(cfg: DictConfig, clients: Sequence[int], name: str) -> DictConfig:
    """The configuration of the same experiment without the clients, called `name`; a run that goes on later keeps to it."""
    changed = cfg.copy()
    clients = list(clients)
    changed.sampler = {"_target_": "fedsim.exclusion.WithoutClients", "clients": clients, "sampler": cfg.sampler}
    scheme = {"_target_": "fedsim.exclusion.without_clients", "_partial_": True}
    changed.partition = {**scheme, "clients": clients, "partition": cfg.partition}
    changed.logger = OmegaConf.load(conf_dir() / "logger" / "none.yaml")
    changed.name, changed.baselines, changed.resume, changed.dry_run = name, False, None, False
    return changed


def retrain(source: Source, folder: Path, name: str) -> Retrained:
    """Train what must be trained again, into `folder`, which is a run of its own then."""
    import pyarrow.parquet as pq

    cfg = without(source.cfg, source.clients, name)
    save_config(cfg, folder)
    checkpoint = best_checkpoint(source)
    before, from_round = 0.0, 0
    if checkpoint is not None:
        state = carry_over(checkpoint, folder / "checkpoints" / checkpoint.name, digest(cfg), source.clients)
        before, from_round = state["seconds"], state["round"]
        cfg.resume = str(folder)
    summary = run(cfg, folder)
    sizes = pq.read_table(folder / "rounds.parquet", columns=["cohort_size"])["cohort_size"].to_numpy()
    return Retrained(summary, checkpoint, from_round, sizes, summary["seconds"] - before)


def best_checkpoint(source: Source) -> Path | None:
    """The newest that was written before the clients' first round; None where none is kept."""
    found = [path for path in checkpoints(source.folder / "checkpoints") if round_of(path) < source.first_round]
    return found[-1] if found else None


def round_of(checkpoint: Path) -> int:
    """The round after which it was written."""
    return int(checkpoint.name.removeprefix("round_"))


def carry_over(checkpoint: Path, to: Path, config: str, clients: Sequence[int]) -> dict[str, Any]:
    """Copy a checkpoint into the new run, less what was measured with the clients' held-out rows; gives its progress.

    config: the digest of the new run's configuration. What was trained is untouched: the clients had no part in it.
    """
    state = read_json(checkpoint / "state.json", str(checkpoint))
    shutil.copytree(checkpoint, to)
    for client in map(str, clients):
        if client in state["participations"]:
            raise FedsimError(
                f"{checkpoint} knows of client {client} already, so it is corrupt; delete it, and try again"
            )
        state["client_metrics"].pop(client, None)
        if state["failures"].pop(client, None) and str(state["first_failure"]).startswith(f"client {client} "):
            state["first_failure"] = None
    for row in state["rows"]:
        row.update({column: None for column in row if column.startswith("federated_")})
    state["config"] = config
    write_json(to / "state.json", state)
    return state
