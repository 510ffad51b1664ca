"""What has been released so far, and from whom: written to disk before each release, so that no kill can lose one.

A ledger lives as long as its run. What it counts goes into every checkpoint; between checkpoints the journal, one JSON line
a round, says what may have been seen since.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.paths import sync_folder
from fedsim.types import FedsimError


class Entry(NamedTuple):
    """A journal's line. clients: none where the line is torn."""

    round: int
    clients: list[int]


class Ledger:
    """Counts the rounds that were released, and the rounds that each client took part in.

    journal: the file that a round is written to before it is released (None: none is kept; may be set later).
    repeats_count: a round that is played again after a kill differs from the first time (its noise is fresh, or the
    arithmetic is not reproducible), so both were released; else it gave the same bits again, and counts once.
    """

    def __init__(self, journal: Path | None = None, repeats_count: bool = False) -> None:
        self.journal, self.repeats_count = journal, repeats_count
        self.releases = 0
        self.charges: Counter[int] = Counter()
        self._attempts: Counter[int] = Counter()

    def charge(self, round: int, clients: Collection[int]) -> None:
        """Write down that this round is about to be released with these clients, then count it. It may have none."""
        entry = Entry(int(round), [int(client) for client in clients])
        if self.journal is not None:
            _append(self.journal, entry)
        self._attempts[entry.round] += 1
        self._count(entry)

    def recount(self, journal: Path, round: int) -> None:
        """Take in what a journal says happened after the checkpoint's `round`; call it once, after `load_state`.

        Those rounds were released and will be played again: they count now where `repeats_count`, and their attempts in
        any case. A line torn by a kill counts as a release, though a round is released only after its line is whole; its
        clients are not charged. Without the file nothing was released since.
        """
        self._attempts = Counter()
        for entry in read_journal(journal):
            self._attempts[entry.round] += 1
            if self.repeats_count and entry.round > round:
                self._count(entry)

    def attempts(self, round: int) -> int:
        """How often this round was begun, by the journal: above 1 it is played again."""
        return self._attempts[round]

    def at_most(self, num_clients: int, limit: int) -> np.ndarray:
        """Clients of 0..num_clients-1 with fewer than `limit` charges, ascending: one more brings them to it at most."""
        spent = [client for client, count in self.charges.items() if count >= limit and client < num_clients]
        if limit <= 0:
            return np.array([], dtype=np.int64)
        return np.setdiff1d(np.arange(num_clients), np.array(spent, dtype=np.int64), assume_unique=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        clients = sorted(self.charges)
        return {
            "releases": self.releases,
            "clients": clients,
            "charges": [self.charges[client] for client in clients],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; `recount` then adds what the journal knows. Raises FedsimError where it is corrupt."""
        try:
            self.releases = int(state["releases"])
            pairs = zip(state["clients"], state["charges"], strict=True)
            self.charges = Counter({int(client): int(count) for client, count in pairs})
        except (KeyError, TypeError, ValueError) as error:
            raise FedsimError(
                "resume: the privacy ledger in the checkpoint is corrupt, so what was spent is not known; start the experiment anew"
            ) from error

    def _count(self, entry: Entry) -> None:
        self.releases += 1
        self.charges.update(entry.clients)


def read_journal(path: Path) -> Iterator[Entry]:
    """The journal's lines in order. A line that is not whole stands for the round after the one before it."""
    if not path.exists():
        return
    last = 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        entry = _parse(line) or Entry(last + 1, [])
        last = entry.round
        yield entry


def _parse(line: bytes) -> Entry | None:
    try:
        value = json.loads(line)
        return Entry(int(value["round"]), [int(client) for client in value["clients"]])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _append(path: Path, entry: Entry) -> None:
    """Add a line and wait until the disk has it. It starts anew after a line that a kill has torn."""
    line = json.dumps(entry._asdict(), separators=(",", ":")).encode() + b"\n"
    new = not path.exists()
    with path.open("ab+") as file:
        if file.tell() and not _ends_whole(path):
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
