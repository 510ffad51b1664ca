"""States of clients on disk: files that are written once and never changed, so that checkpoints share them by hard links.

A file holds clients whose states have the same arrays: `client` (n,) int64, and each array of a state stacked over the
clients, (n, ...), named `0000 NAME`, `0001 NAME` ... in the state's own order. Which row of which file is a client's
newest is the index, which a checkpoint holds as `clients.safetensors`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.paths import whole
from fedsim.results.files import read_arrays, write_arrays
from fedsim.types import FedsimError, Params

INDEX = "clients.safetensors"

PIECE = 64_000_000
"""Bytes of states that a file holds at most, unless one client's are more: writing it takes about twice its size."""

MOST_SMALL = 16
"""Files of less than half a piece that may lie side by side before they are made one."""

_ROWS = 1 << 32  # a place is file * _ROWS + row: one number a client

CLIENT = "client"

Layout = tuple[tuple[str, torch.dtype, torch.Size], ...]


class Block(NamedTuple):
    """Clients (n,) int64 whose states have the same arrays, and these, each (n, ...)."""

    clients: Tensor
    arrays: Params


class StateFiles(Mapping[int, Params]):
    """The newest state of each client that has one in `folder`; reading one costs what it is large, however many there are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place: dict[int, int] = {}
        self._rows: dict[int, int] = {}  # of each file
        self._live: dict[int, int] = {}  # of these, the rows that are somebody's newest
        self._next = 1

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[int]:
        return iter(self._place)

    def __contains__(self, client: object) -> bool:
        return client in self._place

    def __getitem__(self, client: int) -> Params:
        from safetensors import safe_open

        file, row = divmod(self._place[client], _ROWS)
        with safe_open(self.path(file), "pt") as opened:
            return {key[5:]: opened.get_slice(key)[row] for key in sorted(opened.keys()) if key != CLIENT}

    def path(self, file: int) -> Path:
        """Of a file by its number."""
        return self.folder / f"states_{file:06d}.safetensors"

    def write(self, states: Mapping[int, Params]) -> None:
        """Put these states beside the ones there are, each instead of the client's older one."""
        self._write(_alone(client, state) for client, state in states.items())
        sparse = [file for file, live in self._live.items() if 2 * live < self._rows[file]]
        small = [file for file in self._live if self.path(file).stat().st_size < PIECE // 2]
        if old := sorted({*sparse, *(small if len(small) > MOST_SMALL else ())}):
            self._write(map(self._newest, old))

    def adopt(self, other: StateFiles) -> None:
        """Take over all files of another folder, which is empty then; its states are newer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = {}
        for file in other._live:
            number[file] = self._new_file(other._rows[file])
            other.path(file).rename(self.path(number[file]))
        for client, place in other._place.items():
            file, row = divmod(place, _ROWS)
            self._settle(client, number[file], row)
        for emptied in (other._place, other._rows, other._live):
            emptied.clear()

    def link_into(self, folder: Path) -> StateFiles:
        """The same states in another folder, by hard links, with the index of them; copies where links cannot be had."""
        folder.mkdir(parents=True, exist_ok=True)
        linked = StateFiles(folder)
        linked._place, linked._rows, linked._live = dict(self._place), dict(self._rows), dict(self._live)
        linked._next = self._next
        for file in self._live:
            _link(self.path(file), linked.path(file))
        linked.write_index()
        return linked

    def write_index(self) -> None:
        """Write down who is where, so that `open_states` finds them."""
        place = torch.tensor(list(self._place.values()), dtype=torch.int64)
        clients = torch.tensor(list(self._place), dtype=torch.int64)
        write_arrays(self.folder / INDEX, {CLIENT: clients, "file": place // _ROWS, "row": place % _ROWS})

    def _write(self, blocks: Iterable[Block]) -> None:
        for clients, arrays in _pieces(blocks):
            file = self._new_file(len(clients))
            write_arrays(self.path(file), {CLIENT: clients, **arrays})
            for row, client in enumerate(clients.tolist()):
                self._settle(client, file, row)

    def _newest(self, file: int) -> Block:
        """What a file holds that is somebody's newest."""
        arrays = read_arrays(self.path(file), "the states of clients")
        clients = arrays.pop(CLIENT)
        rows = [row for row, client in enumerate(clients.tolist()) if self._place[client] == file * _ROWS + row]
        return Block(clients[rows], {name: array[rows] for name, array in arrays.items()})

    def _new_file(self, rows: int) -> int:
        file, self._next = self._next, self._next + 1
        self._rows[file], self._live[file] = rows, 0
        return file

    def _settle(self, client: int, file: int, row: int) -> None:
        """This row is the client's newest now; a file in which nobody's is goes."""
        before = self._place.get(client)
        self._place[client] = file * _ROWS + row
        self._live[file] += 1
        if before is not None:
            old = before // _ROWS
            self._live[old] -= 1
            if self._live[old] == 0:
                self.path(old).unlink(missing_ok=True)
                del self._live[old], self._rows[old]


def open_states(folder: Path, what: str) -> StateFiles:
    """The states of a checkpoint, read when asked for. Raises FedsimError naming `what` where a file is missing or corrupt."""
    index = read_arrays(folder / INDEX, what)
    opened = StateFiles(folder)
    try:
        columns = [index[name].tolist() for name in (CLIENT, "file", "row")]
        for client, file, row in zip(*columns, strict=True):
            opened._place[int(client)] = file * _ROWS + row
            opened._live[file] = opened._live.get(file, 0) + 1
    except (KeyError, ValueError, TypeError) as error:
        raise FedsimError(f"{what}: {folder / INDEX} is corrupt ({type(error).__name__}); it cannot be used") from error
    for file in opened._live:
        opened._rows[file] = _count(opened.path(file), what)
    for place in opened._place.values():
        if place % _ROWS >= opened._rows[place // _ROWS]:
            raise FedsimError(
                f"{what}: {opened.path(place // _ROWS)} is not the file that {INDEX} tells of; it cannot be used"
            )
    opened._next = max(opened._live, default=0) + 1
    return opened


def _count(path: Path, what: str) -> int:
    """Rows of a file; opening it checks that it is whole."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as opened:
            return int(opened.get_slice(CLIENT).get_shape()[0])
    except FileNotFoundError as error:
        raise FedsimError(f"{what}: {path} is not there") from error
    except Exception as error:  # safetensors' own error class is not exported
        raise FedsimError(f"{what}: {path} is corrupt ({type(error).__name__}); it cannot be used") from error


def _alone(client: int, state: Params) -> Block:
    return Block(
        torch.tensor([client]), {f"{n:04d} {name}": a.detach().cpu()[None] for n, (name, a) in enumerate(state.items())}
    )


def _pieces(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks whose arrays are alike as one, of at most a piece where a single block is not more."""
    waiting: dict[Layout, list[Block]] = {}
    sizes: dict[Layout, int] = {}
    for block in blocks:
        layout = tuple((name, array.dtype, array.shape[1:]) for name, array in block.arrays.items())
        size = sum(array.nbytes for array in block.arrays.values())
        if layout in waiting and sizes[layout] + size > PIECE:
            yield _joined(waiting.pop(layout))
        if layout not in waiting:
            waiting[layout], sizes[layout] = [], 0
        waiting[layout].append(block)
        sizes[layout] += size
    yield from map(_joined, waiting.values())


def _joined(blocks: list[Block]) -> Block:
    arrays = {name: torch.cat([block.arrays[name] for block in blocks]) for name in blocks[0].arrays}
    return Block(torch.cat([block.clients for block in blocks]), arrays)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        with whole(target) as temporary:
            shutil.copyfile(source, temporary)
