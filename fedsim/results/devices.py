"""What a finished run tells of the devices in the field: what each client is, and every time that one was sent the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.results.finished import Run

CAUSES = {
    "late": "too late",
    "network": "connection lost",
    "battery": "battery empty",
    "user": "needed by its user",
    "failed": "training failed",
    "away": "not there when drawn",
}
"""Why the work of a client that was drawn was not used."""
TIMES = ("sent", "received", "trained", "arrived", "ended")


@dataclass(frozen=True)
class Devices:
    """The clients as devices, (clients,) each.

    kinds: names of the kinds of devices. kind: place in `kinds`, -1 where a client's is not known. unfit: the model is known
    not to fit in the client's memory. examples, participations, dropouts: numbers, 0 where they were not counted.
    counted: whether the client's examples were counted by class; the rows of `Run.class_counts` are those clients.
    """

    kinds: list[str]
    kind: np.ndarray
    unfit: np.ndarray
    examples: np.ndarray
    participations: np.ndarray
    dropouts: np.ndarray
    counted: np.ndarray

    @property
    def idle(self) -> np.ndarray:
        """(clients,) bool: the model fits, and yet nothing of what the client trained was ever used."""
        return ~self.unfit & (self.participations == 0)

    def share(self, who: np.ndarray, of: np.ndarray) -> float:
        """The share of `of` (clients,) that these clients (bool) have; NaN where there is nothing to share."""
        total = float(of.sum())
        return float(of[who].sum()) / total if total > 0 else float("nan")

    def class_shares(self, run: Run, who: np.ndarray) -> np.ndarray | None:
        """(classes,) share of each class's examples that these clients (bool) hold, NaN of a class that nobody holds; None where
        examples were not counted by class. Of many clients it is that of those who were counted."""
        counts = run.class_counts
        if counts is None or len(counts) != self.counted.sum():
            return None
        with np.errstate(invalid="ignore"):
            return np.asarray(counts[who[self.counted]].sum(0) / counts.sum(0))


def devices_of(run: Run) -> Devices | None:
    """The devices of a run; None where none were modelled."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run.folder / "clients.parquet"
    names = set(pq.read_schema(path).names)
    if "device" not in names:
        return None
    wanted = [name for name in ("device", "can_train", "class_counts") if name in names]
    table = pq.read_table(path, columns=wanted)
    device = table["device"].combine_chunks()
    if pa.types.is_null(device.type) or device.null_count == len(device):
        return None
    coded = device if pa.types.is_dictionary(device.type) else device.dictionary_encode()
    kinds, kind = _ordered(coded, list(((run.summary.get("fleet") or {}).get("kinds") or {}).keys()))
    fits = table["can_train"].to_numpy() if "can_train" in wanted else np.full(len(kind), None)
    counted = np.zeros(len(kind), dtype=bool)
    if "class_counts" in wanted:
        counted = table["class_counts"].is_valid().to_numpy()
    examples, took, lost = (np.nan_to_num(run.client(name)) for name in ("num_examples", "participations", "dropouts"))
    return Devices(kinds, kind, np.equal(fits, False), examples, took, lost, counted)


def _ordered(coded: Any, order: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of kinds, in `order` and then as they come, and each client's place among them; names that no client has left out."""
    found = coded.dictionary.to_pylist()
    kinds = sorted(found, key=lambda name: order.index(name) if name in order else len(order) + found.index(name))
    place = np.array([kinds.index(name) for name in found] + [-1])
    return kinds, place[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class Dispatches:
    """A row each time a client was sent the model (rows,); the newest 100,000 of a run.

    round: in which it was used or given up. version: finished rounds of the model that was sent. times: simulated seconds since
    the start, (rows, 5) by TIMES, NaN from where it was lost. outcome: `used`, or a key of CAUSES.
    """

    round: np.ndarray
    client: np.ndarray
    version: np.ndarray
    times: np.ndarray
    outcome: np.ndarray
    bytes_up: np.ndarray

    @property
    def sent(self) -> np.ndarray:
        """(rows,) when the server sent it."""
        return np.asarray(self.times[:, 0])

    @property
    def ended(self) -> np.ndarray:
        """(rows,) when it arrived or was lost."""
        return np.asarray(self.times[:, -1])

    @property
    def overlapping(self) -> bool:
        """Whether work on an older model than the newest was used: rounds do not wait for all that they sent."""
        return bool((self.version[self.outcome == "used"] < self.round[self.outcome == "used"] - 1).any())


def dispatches_of(run: Run) -> Dispatches | None:
    """The dispatches of a run; None where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = run.folder / "dispatches.parquet"
    if not path.is_file():
        return None
    table = pq.read_table(path)
    table = table.filter(pc.not_equal(table["outcome"].cast(pa.string()), "away"))  # which were sent nothing
    if table.num_rows == 0:
        return None

    def column(name: str) -> np.ndarray:
        return np.asarray(table[name].cast(pa.float64()).to_numpy())

    times = np.stack([column(name) for name in TIMES], axis=1)
    round, client, version = (column(name).astype(np.int64) for name in ("round", "client", "version"))
    outcome = np.array(table["outcome"].cast(pa.string()).to_pylist(), dtype=str)
    return Dispatches(round, client, version, times, outcome, column("bytes_up"))
