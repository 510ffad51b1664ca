"""Answers through shared slots: what is kept of one outlives the slot, whoever dies; and nothing stays open."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as until_ready
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import parts, same_bits, tiny_dataset
from test_processes import assert_same, crew_of, played

from fedsim.data.dataset import Dataset
from fedsim.grids import wire
from fedsim.grids.pool import DEPTH, Event
from fedsim.grids.worker import Answer
from fedsim.parts import Parts

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")


@pytest.fixture
def ends() -> tuple[Connection, Connection, wire.Slots, wire.Slots]:
    """The main process's end of a pipe and the worker's, with the slots that they share."""
    main, worker = Pipe()
    lent = wire.Slots.lend(main, DEPTH)
    return main, worker, lent, wire.Slots.borrow(worker, DEPTH)


def say(connection: Connection, obj: object, slots: wire.Slots) -> wire.Parcel:
    parcel = wire.pack(obj, slots)
    wire.send(connection, "answer", parcel)
    parcel.close()
    return parcel


def test_what_was_received_is_not_written_over(ends: Any) -> None:
    """With as many answers under way as there may be, for many more rounds of the slots."""
    main, worker, lent, borrowed = ends
    made = [{"large": torch.randn(40_000), "small": torch.randn(3), "counts": torch.arange(20_000)} for _ in range(20)]
    slots = [say(worker, answer, borrowed).slot for answer in made[:DEPTH]]
    got = []
    for answer in made[DEPTH:]:
        got.append(wire.receive(main, lent)[1])
        slots.append(say(worker, answer, borrowed).slot)
    got += [wire.receive(main, lent)[1] for _ in range(DEPTH)]
    assert slots == [turn % DEPTH for turn in range(20)]
    assert all(same_bits(mine, theirs) for mine, theirs in zip(got, made, strict=True))
    got[0]["large"].zero_()  # it is the receiver's own
    assert all(same_bits(mine, theirs) for mine, theirs in zip(got[1:], made[1:], strict=True))


def test_what_is_too_large_for_a_slot_has_a_block_and_a_long_pickle_none(
    ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, worker, lent, borrowed = ends
    long = {f"{number}": torch.full((9_000,), number) for number in range(150)} | {"text": "x" * 10**6}
    parcel = say(worker, long, borrowed)
    assert parcel.slot == 0 and parcel.block is None and len(parcel.pickled) < 100 and not parcel.spans
    got = wire.receive(main, lent)[1]
    assert got.keys() == long.keys() and all(np.array_equal(got[name], array) for name, array in long.items())
    monkeypatch.setattr(wire, "SLOT", 1 << 17)
    for size in (1 << 14, (1 << 14) + 1):  # in int64: just as large as a slot, and larger
        parcel = say(worker, torch.arange(size), borrowed)
        assert (parcel.slot is not None) == (size == 1 << 14) and (parcel.block is None) == (size == 1 << 14)
        assert torch.equal(wire.receive(main, lent)[1], torch.arange(size))


def test_what_an_answer_calls_is_refused_from_a_slot_too(ends: Any) -> None:
    main, worker, lent, borrowed = ends
    say(worker, {"state": torch.ones(40_000), "layer": torch.nn.Linear(2, 2)}, borrowed)
    with pytest.raises(wire.UnexpectedObject, match="Linear"):
        wire.receive(main, lent)


class Unknown:
    """Says that it is of torch, which has no such name."""


def test_a_name_that_torch_has_not_is_refused_as_any_other(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    main, worker, lent, _ = ends
    monkeypatch.setattr(Unknown, "__module__", "torch")
    monkeypatch.setattr(torch, "Unknown", Unknown, raising=False)
    parcel = wire.pack(Unknown())
    monkeypatch.delattr(torch, "Unknown")
    wire.send(worker, "answer", parcel)
    with pytest.raises(wire.UnexpectedObject, match="Unknown"):
        wire.receive(main, lent)


# Runs


def broad_dataset() -> Dataset:
    """Of so many features that a linear model's weights are too large for a pickle: 3 x 6000 float32."""
    data = tiny_dataset(features=6000)
    assert 4 * 3 * data.train.x.shape[1] > wire.LARGE
    return data


SUMS, REPLIES, STATES = (), ("strategy=fedmedian",), ("strategy=local_only",)
ALL = pytest.mark.parametrize("kind", [SUMS, REPLIES, STATES], ids=["sums", "a reply each", "states"])


def broad(*overrides: str) -> Parts:
    """24 clients, each a chunk of its own."""
    return parts(
        *("dataset._target_=test_wire.broad_dataset", "population.num_clients=24", "grid.chunk_size=1", "rounds=3"),
        *overrides,
    )


def processes(*overrides: str) -> Parts:
    return broad("grid=processes", "grid.workers=2", *overrides)


@ALL
def test_many_more_chunks_than_slots_give_the_bits_of_one_process(kind: tuple[str, ...]) -> None:
    assert_same(played(processes(*kind)), played(broad(*kind)))


@ALL
def test_a_worker_killed_with_answers_in_its_slots_changes_nothing(kind: tuple[str, ...]) -> None:
    """In each round: one whose answer is there and not read yet; what it said counts, and the rest is done by another."""
    made, killed = processes(*kind), []
    grid = made.grid()
    crew = crew_of(grid)
    wait = crew.wait

    def kill_and_wait() -> list[Event]:
        round = made.server.state.round + 1
        if round not in killed:
            ready = until_ready([seat.connection for seat in crew._seats.values()])
            (victim, *_) = (seat.process.pid for seat in crew._seats.values() if seat.connection in ready)
            assert victim is not None
            killed.append(round)
            os.kill(victim, signal.SIGKILL)
        return wait()

    crew.wait = kill_and_wait  # type: ignore[method-assign]
    found = played_on(made, grid)
    assert killed == [1, 2, 3]
    assert_same(found, played(broad(*kind)))


def played_on(made: Parts, grid: Any) -> Any:
    """See `played`."""
    made.grid = lambda: grid  # type: ignore[method-assign]
    return played(made)


def test_no_worker_has_more_tasks_than_slots() -> None:
    made = processes()
    grid = made.grid()
    crew, under_way, most = crew_of(grid), Counter[int](), 0
    give, read = crew.give, crew._read

    def counted_give(worker: int, task: Any) -> None:
        nonlocal most
        under_way[worker] += 1
        most = max(most, under_way[worker])
        give(worker, task)

    def counted_read(worker: int) -> Event:
        event = read(worker)
        under_way[worker] -= 1
        assert isinstance(event.answer, Answer)
        return event

    crew.give, crew._read = counted_give, counted_read  # type: ignore[method-assign]
    played_on(made, grid)
    assert most == DEPTH and not any(under_way.values())


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:fedsim")


@linux
@ALL
def test_no_descriptor_is_left_open(kind: tuple[str, ...]) -> None:
    """Nor is one held for each answer that is kept; a worker that is killed takes its own along."""
    made = processes(*kind, "rounds=12")
    grid = made.grid()
    crew = crew_of(grid)
    counts: list[tuple[int, int]] = []

    def look(done: int, asked: int) -> None:
        counts.append((opened(), mapped()))
        if done == asked and made.server.state.round == 5:
            crew._seats[0].process.kill()

    grid.on_progress = look
    before = opened(), mapped()
    made.server.run(grid)
    steady = {*counts[3 * 24 : 6 * 24], *counts[7 * 24 :]}  # in the seventh round the dead one is replaced
    assert len(steady) == 1 and {maps for _, maps in steady} == {2}
    grid.close()
    after = opened(), mapped()
    assert after[1] == before[1] == 0 and after[0] - before[0] <= 2  # the fork server's, which stays
