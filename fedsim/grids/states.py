"""What clients keep between rounds, in the server's process: in memory up to a bound, in files beyond it.

States are kept only for clients that have some. What a round changes counts once the round is committed: one that is broken
off leaves nothing behind in a checkpoint, not even where its states had to go to files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsim.results.state_files import StateFiles
from fedsim.types import Params


class States(Mapping[int, Params]):
    """The newest state of each client, in memory or else in files; `folder` is made when the first file is written.

    bytes: of the arrays in memory.
    """

    def __init__(self, files: StateFiles) -> None:
        self.files = files
        self.bytes = 0
        self._held: dict[int, Params] = {}
        self._unwritten: set[int] = set()  # of those held

    def __len__(self) -> int:
        return len(self.files) + sum(client not in self.files for client in self._held)

    def __iter__(self) -> Iterator[int]:
        yield from self._held
        yield from (client for client in self.files if client not in self._held)

    def __contains__(self, client: object) -> bool:
        return client in self._held or client in self.files

    def __getitem__(self, client: int) -> Params:
        return self._held[client] if client in self._held else self.files[client]

    def __setitem__(self, client: int, state: Params) -> None:
        self._drop(client)
        self._held[client] = state
        self._unwritten.add(client)
        self.bytes += _bytes(state)

    def take(self, newer: States) -> None:
        """Everything of another, in place of the own states of the same clients; the other is empty then."""
        for client in newer.files:
            self._drop(client)
        if newer.files:
            self.files.adopt(newer.files)
        for client, state in newer._held.items():
            self[client] = state
        newer._held.clear()
        newer._unwritten.clear()
        newer.bytes = 0

    def write(self) -> StateFiles:
        """See that all of them are in files; what is in memory stays there."""
        if self._unwritten:
            self.files.write({client: self._held[client] for client in sorted(self._unwritten)})
            self._unwritten.clear()
        return self.files

    def shed(self) -> None:
        """Keep none in memory."""
        self.write()
        self._held.clear()
        self.bytes = 0

    def _drop(self, client: int) -> None:
        if client in self._held:
            self.bytes -= _bytes(self._held.pop(client))
            self._unwritten.discard(client)


class MemoryStates:
    """Clients' states, and what they keep for a conversation. Not for several threads.

    Without `keep_in` all of them stay in memory.
    """

    def __init__(self) -> None:
        self._folder, self._bound = Path(), float("inf")
        self._memories: dict[int, dict[str, Any]] = {}
        self._begin(StateFiles(self._folder))

    def keep_in(self, folder: Path, megabytes: float) -> None:
        """States beyond so many megabytes go to files in `folder`, which is this run's alone and goes with `close`."""
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: its checkpoints have links of their own
        self._folder, self._bound = folder, megabytes * 1e6
        self._begin(StateFiles(folder / "committed"))

    def _begin(self, files: StateFiles) -> None:
        self._committed, self._pending = States(files), States(StateFiles(self._folder / "pending"))

    @property
    def committed(self) -> Mapping[int, Params]:
        """The states at the end of the last round that is over."""
        return self._committed

    @committed.setter
    def committed(self, states: Mapping[int, Params]) -> None:
        if isinstance(states, StateFiles) and self._bound < float("inf"):
            folder = self._folder / "committed"
            self._begin(states.link_into(folder) if states else StateFiles(folder))
            return
        self._begin(StateFiles(self._folder / "committed"))
        for client, state in states.items():
            self._committed[client] = state

    def get(self, client: int) -> Params:
        """The newest: of the round under way where the client took part in it. Not to be changed in place."""
        return self._pending.get(client) or self._committed.get(client, {})

    def put(self, client: int, state: Params) -> None:
        """Keep, once the round that is under way is over."""
        if state:
            self._pending[client] = {name: _alone(array) for name, array in state.items()}
            self._make_room()

    def memory(self, client: int) -> dict[str, Any]:
        """What a client keeps for a conversation within a round (keys, shares); never in a checkpoint."""
        return self._memories.setdefault(client, {})

    def remember(self, client: int, memory: dict[str, Any]) -> None:
        """Keep it; one that a worker process sends back is another object than the one here."""
        self._memories[client] = memory

    def commit(self) -> None:
        """The round is over: its states count."""
        self._memories.clear()
        self._committed.take(self._pending)
        self._make_room()

    def written(self) -> Mapping[int, Params]:
        """The committed states as a checkpoint wants them: as files, where there is a folder for them."""
        return self._committed.write() if self._bound < float("inf") else self._committed

    def close(self) -> None:
        """Take the files away; checkpoints keep their links."""
        if self._bound < float("inf"):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make_room(self) -> None:
        """What is committed goes first, since it may be in a file already."""
        if self._committed.bytes + self._pending.bytes > self._bound:
            self._committed.shed()
        if self._pending.bytes > self._bound:
            self._pending.shed()


def _alone(array: Tensor) -> Tensor:
    """On the CPU, and not as a piece of a cohort's array, which would stay in memory as long as one of its clients."""
    array = array.detach().cpu()
    return array.clone() if array.untyped_storage().nbytes() > array.nbytes else array


def _bytes(state: Params) -> int:
    return sum(array.nbytes for array in state.values())
