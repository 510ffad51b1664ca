"""Clients' states on disk past a bound: the same bits as in memory, whole under a kill, in no more files than needed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TINY, config, resume, run_into, same_bits, start_command, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.build import check_top_level
from fedsim.grids.states import MemoryStates
from fedsim.results import state_files
from fedsim.results.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from fedsim.results.state_files import StateFiles, open_states
from fedsim.server import Server
from fedsim.session import Stopped
from fedsim.types import FedsimError, Params

LOCAL = ("strategy=local_only", "evaluation.local_models=3", "checkpoint.every=1")

pytestmark = pytest.mark.usefixtures("no_pictures")


def state(value: float, size: int = 3) -> Params:
    return {
        "w": torch.full((size, 2), value),
        "count": torch.tensor(int(value)),
        "b": torch.full((size,), -value).double(),
    }


def same_states(left: Mapping[int, Params], right: Mapping[int, Params]) -> bool:
    return set(left) == set(right) and all(same_bits(left[client], right[client]) for client in right)


def kept(folder: Path, megabytes: float = 0.0) -> MemoryStates:
    states = MemoryStates()
    states.keep_in(folder / ".client_states", megabytes)
    return states


def save(folder: Path, round: int, states: MemoryStates, keep: int = 2) -> Path:
    return save_checkpoint(
        folder / "checkpoints", round, Checkpoint({"w": torch.ones(1)}, states.written(), {}, [], {}), keep
    )


ROUNDS = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=8), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.sampled_from([0.0, 0.0001, 0.0004, 10.0]), st.sets(st.integers(0, 5)), st.booleans())
def test_states_on_disk_are_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, rounds: list, megabytes: float, saved: set, again: bool
) -> None:
    """Any rounds in which any clients put states of several shapes, with any bound, checkpoints between, and resumed or not."""
    folder = tmp_path_factory.mktemp("states")
    states, expected, value = kept(folder, megabytes), {}, 0.0
    for number, changes in enumerate(rounds):
        pending = {}
        for client, size in changes:
            value += 1
            states.put(client, state(value, size))
            pending[client] = state(value, size)
            assert same_bits(states.get(client), pending[client])
            held = states._committed.bytes + states._pending.bytes
            assert held <= megabytes * 1e6
        assert same_states(states.committed, expected)
        states.commit()
        expected |= pending
        assert same_states(states.committed, expected) and len(states.committed) == len(expected)
        if number in saved:
            save(folder, number, states)
            assert same_states(load_checkpoint(folder / "checkpoints").clients, expected)
            if again:
                states = kept(folder, megabytes)
                states.committed = load_checkpoint(folder / "checkpoints").clients
    assert all(list(state) == ["w", "count", "b"] for state in states.committed.values())
    states.close()
    assert not (folder / ".client_states").exists()


def test_a_broken_round_leaves_nothing_of_its_files_in_a_checkpoint(tmp_path: Path) -> None:
    states = kept(tmp_path)
    states.put(1, state(1))
    states.commit()
    for client in (1, 2):
        states.put(client, state(7))
    assert states.get(2) and list((tmp_path / ".client_states" / "pending").iterdir())
    save(tmp_path, 1, states)
    loaded = load_checkpoint(tmp_path / "checkpoints").clients
    assert same_states(loaded, {1: state(1)}) and same_states(states.committed, {1: state(1)})


def test_checkpoints_share_what_did_not_change(tmp_path: Path) -> None:
    """A second checkpoint writes the one state that changed, and links the file of the others."""
    states = kept(tmp_path, 10.0)
    for client in range(9):
        states.put(client, state(client, 5000))
    states.commit()
    first = save(tmp_path, 1, states)
    states.put(0, state(100, 5000))
    states.commit()
    second = save(tmp_path, 2, states)
    (old,) = first.glob("states_*")
    new = set(second.glob("states_*"))
    shared = [path for path in new if path.samefile(old)]
    assert len(new) == 2 and len(shared) == 1
    (written,) = new - set(shared)
    assert written.stat().st_size < old.stat().st_size / 8
    states.close()
    shutil.rmtree(first)
    assert same_states(open_states(second, "it"), {0: state(100, 5000)} | {c: state(c, 5000) for c in range(1, 9)})


@pytest.mark.parametrize("piece", [40_000, 64_000_000])
def test_old_states_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Forty rounds of a few clients each: what is on disk is what `keep` checkpoints hold, in few files."""
    monkeypatch.setattr(state_files, "PIECE", piece)
    states, draw, newest = kept(tmp_path, 0.05), np.random.default_rng(0), {}
    for round in range(1, 41):
        for client in draw.choice(20, 4, replace=False).tolist():
            newest[client] = state(round + client / 100, 200)
            states.put(client, newest[client])
        states.commit()
        save(tmp_path, round, states)
    assert same_states(load_checkpoint(tmp_path / "checkpoints").clients, newest)
    live = sum(array.nbytes for one in newest.values() for array in one.values())
    files = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("states_*")}
    assert live <= sum(files.values()) < 4 * live
    last = checkpoints(tmp_path / "checkpoints")[-1]
    assert len(list(last.glob("states_*"))) <= state_files.MOST_SMALL + 3 * live // piece + 1


def test_where_there_are_no_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    states = kept(tmp_path)
    states.put(3, state(3))
    states.commit()
    path = save(tmp_path, 1, states)
    states.close()
    assert same_states(open_states(path, "it"), {3: state(3)}) and not list(path.glob("*.tmp"))


def test_a_piece_of_a_cohorts_array_does_not_keep_the_cohort(tmp_path: Path) -> None:
    states, cohort = kept(tmp_path, 10.0), torch.randn(100, 50)
    states.put(1, {"w": cohort[1]})
    assert states.get(1)["w"].untyped_storage().nbytes() == 50 * 4 and torch.equal(states.get(1)["w"], cohort[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint8])
def test_every_type_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    files = StateFiles(tmp_path)
    one = {
        "scalar": torch.ones((), dtype=dtype),
        "empty": torch.ones(0, 3, dtype=dtype),
        "a.b/c d": torch.eye(4).to(dtype).t(),
    }
    files.write({5: one, 6: one, 7: {"other": torch.ones(2, dtype=dtype)}})
    assert same_bits(files[5], one) and list(files[6]) == list(one) and list(files[7]) == ["other"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone", "swapped"])
def test_a_damaged_file_of_states_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    states = kept(tmp_path)
    for client in range(3):
        states.put(client, state(client))
        states.commit()
    save(tmp_path, 1, states)
    path = sorted(checkpoints(tmp_path / "checkpoints")[-1].glob("states_*"))[-1]
    content = path.read_bytes()
    path.unlink()
    if damage == "swapped":
        state_files.write_arrays(path, {"client": torch.zeros(0, dtype=torch.int64)})
    elif damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\x80\x04evil" * 20)
    with pytest.raises(FedsimError) as caught:
        load_checkpoint(tmp_path / "checkpoints")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("megabytes", [0, 0.0005])
def test_a_run_with_states_on_disk_has_the_bits_of_one_in_memory(tmp_path: Path, megabytes: float) -> None:
    runs = {name: tmp_path / name for name in ("memory", "disk")}
    run_into(runs["memory"], tiny(*LOCAL, "rounds=4", "sampler=poisson"))
    run_into(runs["disk"], tiny(*LOCAL, "rounds=4", "sampler=poisson", f"checkpoint.states_mb={megabytes}"))
    loaded = [load_checkpoint(folder / "checkpoints").clients for folder in runs.values()]
    assert same_states(*loaded) and len(loaded[0]) > 1
    tables = [pq.read_table(folder / "clients.parquet") for folder in runs.values()]
    assert tables[0].equals(tables[1])
    assert all(not (folder / ".client_states").exists() for folder in runs.values())


@pytest.mark.parametrize("bound", [0, 2048])
def test_a_run_broken_off_goes_on_with_its_states_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: float
) -> None:
    """Ctrl-C in the middle of round 3, some clients' new states on disk already; then to the end, with another bound."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    overrides = (*LOCAL, "rounds=5", "checkpoint.keep=1", "grid.chunk_size=2")
    run_into(whole, tiny(*overrides))
    original = Server._learn

    def learn(self, grid, nodes, round, cohort):
        found = original(self, grid, nodes, round, cohort)
        if round == 3:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Server, "_learn", learn)
        with pytest.raises(Stopped, match="stopped after round 2 of 5"):
            run_into(broken, tiny(*overrides, f"checkpoint.states_mb={bound}"))
    assert not (broken / ".client_states").exists()
    resume(broken)
    assert same_states(*(load_checkpoint(folder / "checkpoints").clients for folder in (whole, broken)))


def test_killed_between_and_resumed_it_ends_with_the_same_states(tmp_path: Path) -> None:
    """SIGKILL at two moments that nothing chose; what it left beside the checkpoints is gone in the end."""
    overrides = [*TINY, *LOCAL, "rounds=20", "grid=inprocess", "checkpoint.states_mb=0"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    arguments = [*overrides, f"hydra.run.dir={killed}"]
    for round in (2, 9):
        process = start_command(*arguments)
        try:
            while not any(int(path.name[6:]) >= round for path in (killed / "checkpoints").glob("round_*")):
                assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
        assert not (killed / "summary.json").exists()
        arguments = [f"resume={killed}"]
    assert (killed / ".client_states").exists()
    resume(killed)
    run_into(undisturbed, config(*overrides))
    assert same_states(*(load_checkpoint(folder / "checkpoints").clients for folder in (killed, undisturbed)))
    assert not (killed / ".client_states").exists()
    on_disk = {path.stat().st_ino for path in killed.rglob("states_*")}
    assert on_disk == {
        path.stat().st_ino for one in checkpoints(killed / "checkpoints") for path in one.glob("states_*")
    }


def test_a_bound_that_is_no_number_is_refused_by_its_key() -> None:
    with pytest.raises(FedsimError, match=r"checkpoint\.states_mb=-1 is out of range"):
        check_top_level(tiny("checkpoint.states_mb=-1"))
    with pytest.raises(FedsimError, match=r"checkpoint\.states_mb=much is not a finite number"):
        check_top_level(tiny("checkpoint.states_mb=much"))
