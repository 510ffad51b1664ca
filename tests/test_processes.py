"""Worker processes: the bits of one process, whoever dies on the way; and what is told where they cannot be used."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import failing, parts, run_into, same_bits, start_command, tiny, tiny_dataset
from torch import nn

from fedsim import flower
from fedsim.algorithms import Algorithm, fedavg
from fedsim.data.dataset import Dataset
from fedsim.grids import wire
from fedsim.grids.auto import Auto
from fedsim.grids.base import SimulationGrid
from fedsim.grids.inprocess import InProcess
from fedsim.grids.pool import ATTEMPTS, PoolGrid
from fedsim.grids.processes import ProcessCrew, Processes, ended
from fedsim.grids.worker import Answer
from fedsim.parts import Parts
from fedsim.training import ClientHalf, Device
from fedsim.types import FedsimError, Params

PROMISE = ("privacy.noise_multiplier=0.3", "privacy.delta=1e-3")
PATIENCE = 120.0
KINDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "adam": ("strategy=fedadam", "client.momentum=0.9"),
    "a reply each": ("strategy=fedmedian",),
    "states": ("strategy=local_only",),
    "adaptive": ("privacy=user", *PROMISE, "privacy.clipping=adaptive"),
    "per layer": ("privacy=user", *PROMISE, "privacy.clipping=per_layer"),
    "tree": ("privacy=user", *PROMISE, "privacy.mechanism=tree", "sampler=fixed", "sampler.cohort_size=4", "rounds=2"),
    "banded": (
        "privacy=user",
        *PROMISE,
        "privacy.mechanism=banded",
        "sampler=fixed",
        "sampler.cohort_size=4",
        "rounds=2",
    ),
    "example": ("privacy=example", *PROMISE, "privacy.clipping=adaptive"),
    "local": ("privacy=local", *PROMISE),
    "distributed": ("privacy=distributed", *PROMISE, "privacy.dropout=0.2"),
    "failures": tuple(failing(raising=[1, 4], diverging=[6])),
}


def processes(*overrides: str, workers: int = 2) -> Parts:
    return parts("rounds=3", "grid.chunk_size=2", "grid=processes", f"grid.workers={workers}", *overrides)


def played(made: Parts) -> tuple[Params, list[dict[str, Any]], dict[int, Params], dict[int, int]]:
    """What is left of a run: the model, the rows less times, the clients' states, the failures."""
    grid = made.grid()
    try:
        made.server.run(grid)
    finally:
        grid.close()
    state = made.server.state
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in state.rows]
    return state.arrays, rows, dict(grid.states.committed), dict(state.failures)


def assert_same(left: Any, right: Any) -> None:
    assert same_bits(left[0], right[0])
    assert left[1] == right[1] and left[3] == right[3]
    assert left[2].keys() == right[2].keys() and all(same_bits(left[2][client], right[2][client]) for client in left[2])


@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_four_workers_give_the_bits_of_one_process(kind: str) -> None:
    here = played(parts("rounds=3", "grid.chunk_size=2", *KINDS[kind]))
    for workers in (1, 2, 4):
        assert_same(played(processes(*KINDS[kind], workers=workers)), here)


def crew_of(grid: SimulationGrid) -> ProcessCrew:
    assert isinstance(grid, PoolGrid) and isinstance(grid.crew, ProcessCrew)
    return grid.crew


@pytest.mark.parametrize("kind", ["plain", "states", "distributed"])
def test_a_worker_killed_in_each_round_changes_nothing(kind: str) -> None:
    """Before each round's second chunk is asked for, one of the workers is killed, with what it was doing."""
    made, killed = processes(*KINDS[kind]), []
    grid = made.grid()
    crew = crew_of(grid)
    give = crew.give

    def give_and_kill(worker: int, task: Any) -> None:
        give(worker, task)
        round = made.server.state.round + 1
        if task.message.metadata.message_type == "train" and round not in killed and len(crew._seats) == 2:
            killed.append(round)
            victim = crew._seats[(worker + round) % 2].process
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)

    crew.give = give_and_kill  # type: ignore[method-assign]
    made.server.run(grid)
    grid.close()
    assert killed == [1, 2, 3]
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in made.server.state.rows]
    found = made.server.state.arrays, rows, dict(grid.states.committed), dict(made.server.state.failures)
    assert_same(found, played(parts("rounds=3", "grid.chunk_size=2", *KINDS[kind])))


class Deadly(ClientHalf):
    """Its first client takes the worker along that trains it."""

    def begin(self, device: Device) -> dict[str, float]:
        if device.data.client == 0 and parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def deadly() -> Algorithm:
    return fedavg()._replace(client=Deadly())


def test_a_chunk_that_no_worker_survives_ends_the_run_in_a_sentence() -> None:
    made = processes("strategy=custom", "strategy._target_=test_processes.deadly")
    grid = made.grid()
    started = []
    crew = crew_of(grid)
    start = crew.start
    crew.start = lambda worker: (started.append(worker) if worker not in crew._seats else None, start(worker))[1]  # type: ignore
    with pytest.raises(
        FedsimError, match=r"SIGKILL, which often means that memory ran out.*grid\.workers.*resume"
    ) as told:
        made.server.run(grid)
    assert "\n" not in str(told.value)
    assert ATTEMPTS <= len(started) <= ATTEMPTS + 1  # the other worker is well
    assert not crew._seats  # none is left


class Secretive(nn.Module):
    """A model of one's own that holds what cannot be pickled."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0], num_outputs)
        self.act = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.layer(x))  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_pickled_is_named() -> None:
    own = ("model=custom", "model._target_=test_processes.Secretive")
    with pytest.raises(FedsimError, match=r"^model=Secretive cannot be sent to worker processes .*grid=inprocess$"):
        played(processes(*own))
    assert played(parts(*own))[0]


class Elsewhere:
    """Pickled here, and raises there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return raise_elsewhere, (os.getpid(),)


def raise_elsewhere(here: int) -> None:
    if os.getpid() != here:
        raise ImportError("No module named 'only_here'")


def test_a_worker_that_cannot_be_set_up_is_one_sentence() -> None:
    made = processes()
    made.model.extra = Elsewhere()  # type: ignore[assignment]
    with pytest.raises(
        FedsimError, match=r"cannot be set up \(ImportError: No module named 'only_here'\); use grid=inprocess"
    ):
        played(made)


def test_a_broken_round_leaves_no_worker_and_the_next_begins_anew() -> None:
    made, interrupted = processes(), []
    grid = made.grid()
    crew = crew_of(grid)

    def interrupt(done: int, asked: int) -> None:
        if made.server.state.round == 1 and not interrupted:
            interrupted.extend(seat.process.pid for seat in crew._seats.values())
            raise KeyboardInterrupt

    grid.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        made.server.run(grid)
    assert len(interrupted) == 2 and not crew._seats
    assert not any(is_running(pid) for pid in interrupted)
    made.server.run(grid)
    grid.close()
    assert same_bits(made.server.state.arrays, played(parts("rounds=3", "grid.chunk_size=2"))[0])


def status(pid: int) -> tuple[str, int]:
    """A process's state (Z, or empty: it has ended) and its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def is_running(pid: int) -> bool:
    return status(pid)[0] not in ("", "Z")


def below(pid: int) -> list[int]:
    """All processes that a process started, and that these started."""
    everyone = {int(path.name): status(int(path.name))[1] for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in everyone.items() if parent == one]
    return found[1:]


SLOW = ("dataset=custom", "dataset._target_=helpers.tiny_dataset", "model=linear", "partition=iid", "device=cpu")
MANY = (
    "population.num_clients=8",
    "sampler=all",
    "rounds=100000",
    "evaluation.every=100000",
    "grid=processes",
    "grid.workers=2",
)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_run_that_ends_takes_its_workers_along(tmp_path: Path, how: signal.Signals) -> None:
    process = start_command(*SLOW, *MANY, "checkpoint.every=1", f"hydra.run.dir={tmp_path}/run")
    try:
        wait_until(lambda: any(tmp_path.glob("run/checkpoints/round_*")) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        started = below(process.pid)
        assert len(started) >= 4  # the fork server, multiprocessing's resource tracker, two workers
        process.send_signal(how)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in started))
    if how is signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in errors
        assert re.search(r"stopped after round \d+ of 100000; go on with: python -m fedsim resume=", errors)
    shared = Path("/dev/shm")
    assert not shared.exists() or not [path.name for path in shared.iterdir() if "fedsim" in path.name]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("kind", ["local", "example"])
def test_a_worker_names_the_noise_of_a_replayed_round_as_the_server_does(kind: str) -> None:
    """Where bits may differ the second time, as on CUDA, the noise must: the book that knows it is the server's alone."""
    server = parts(*KINDS[kind]).server.protection
    server.deterministic = False  # type: ignore[attr-defined]
    elsewhere = parts(
        *KINDS[kind]
    ).server.protection  # as a node makes it from the configuration, or a worker got it before
    for again in (1, 2, 3):
        server.charge(4, np.array([0, 1]))
        elsewhere.heed({"server-round": 4, **server.broadcast()})
        purpose = elsewhere.purpose("noise", 4)  # type: ignore[attr-defined]
        assert purpose == server.purpose("noise", 4) == ("noise" if again == 1 else f"noise {again}")  # type: ignore[attr-defined]
    server.charge(5, np.array([0, 1]))
    elsewhere.heed({"server-round": 5, **server.broadcast()})
    assert elsewhere.purpose("noise", 5) == "noise"  # type: ignore[attr-defined]


# Shared memory


def test_objects_travel_bit_by_bit_and_may_be_changed_there() -> None:
    array = np.arange(50_000, dtype=np.float64).reshape(100, 500)
    sent = {
        "large": torch.from_numpy(array),
        "half": torch.ones(70_000, dtype=torch.bfloat16),
        "small": torch.tensor([1.5, -0.0]),
        "flags": torch.tensor([True, False]),
        "turned": torch.arange(6).view(2, 3).t(),
        "scalar": torch.tensor(3),
        "none": torch.zeros(0, 3),
    }
    model, parcel = nn.Linear(300, 300), wire.pack(sent)
    assert (
        parcel.block is not None and 540_000 <= os.fstat(parcel.block).st_size < 541_000 and len(parcel.pickled) < 3_000
    )
    got, again = wire.unpack(parcel), wire.unpack(parcel)
    assert same_bits(got, sent) and [t.dtype for t in got.values()] == [t.dtype for t in sent.values()]
    got["large"][0, 0] = -1.0
    assert sent["large"][0, 0] == 0 and again["large"][0, 0] == 0
    parcel.close()
    same = wire.unpack(other := wire.pack(model), anything=True)
    assert same_bits(dict(same.state_dict()), dict(model.state_dict()))
    assert all(isinstance(weight, nn.Parameter) and weight.requires_grad for weight in same.parameters())
    other.close()


def test_what_goes_through_the_socket_is_small() -> None:
    """So that two sides that send at the same time cannot wait for each other."""
    many = {f"{number}": np.full(9_000, number) for number in range(3_000)} | {"text": "x" * 10**6}
    parcel = wire.pack(many)
    assert len(pickle.dumps(parcel)) < 1000
    got = wire.unpack(parcel)
    parcel.close()
    assert got.keys() == many.keys() and all(np.array_equal(got[name], array) for name, array in many.items())


def test_a_parcel_goes_over_a_connection_with_its_memory() -> None:
    left, right = Pipe()
    record = flower.to_record({"w": torch.randn(300, 300)})
    parcel = wire.pack(Answer(None, "", {3: {"w": torch.ones(40_000)}}, {}))
    sender = threading.Thread(
        target=lambda: (wire.send(left, "answer", parcel), wire.send(left, "more", wire.pack(record)))
    )
    sender.start()
    (label, answer), (_, arrays) = wire.receive(right), wire.receive(right)
    sender.join()
    assert label == "answer" and torch.equal(answer.states[3]["w"], torch.ones(40_000))
    assert same_bits(flower.from_record(arrays), flower.from_record(record))
    left.close()
    with pytest.raises(EOFError):
        wire.receive(right)


def wide_dataset() -> Dataset:
    return tiny_dataset(rows=4000, features=500)


def test_data_are_in_shared_memory_once() -> None:
    made = processes("dataset._target_=test_processes.wide_dataset", "rounds=1")
    grid = made.grid()
    made.server.run(grid)
    crew = crew_of(grid)
    assert crew._devices is not None and crew._devices.block is not None
    rows = made.population.dataset.train.x
    assert os.fstat(crew._devices.block).st_size > rows.nbytes > len(crew._devices.pickled)
    inode = os.fstat(crew._devices.block).st_ino
    for seat in crew._seats.values():
        if Path(f"/proc/{seat.process.pid}/maps").exists():
            assert f" {inode} " in Path(f"/proc/{seat.process.pid}/maps").read_text()
    grid.close()


# Which grid, and how many


def test_auto_is_this_process_where_there_is_nothing_to_share_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedsim.grids.auto as auto

    cpu = torch.device("cpu")
    monkeypatch.setattr(auto, "cores", lambda: 1)
    assert Auto(chunk_size=3).chosen(cpu) == InProcess(chunk_size=3)
    assert Auto(workers=2, width=4).chosen(cpu) == Processes(workers=2, width=4)
    monkeypatch.setattr(auto, "cores", lambda: 8)
    assert Auto().chosen(cpu) == Processes()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Auto().chosen(torch.device("cuda")) == InProcess()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Auto().chosen(torch.device("cuda")) == Processes()


def test_more_workers_than_cores_are_allowed_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    processes(workers=10_000).grid()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and re.match(
        r"grid\.workers=10000 is more than the \d+ cores", record.getMessage()
    )
    caplog.clear()
    processes(workers=1).grid()
    assert not caplog.records


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two"])
def test_wrong_numbers_of_workers_are_refused(workers: Any) -> None:
    with pytest.raises(FedsimError, match=r"grid\.workers"):
        Processes(workers=workers)


def test_how_a_worker_ended_in_words() -> None:
    assert ended(-9) == "was killed by SIGKILL, which often means that memory ran out"
    assert ended(-11) == "was killed by SIGSEGV" and ended(3) == "ended with exit status 3"


def test_modules_of_the_working_folder_are_found_in_workers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Linear):\n    def __init__(self, input_shape, num_outputs):\n"
        "        super().__init__(input_shape[0], num_outputs)\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "fedsim", *SLOW, "population.num_clients=4", "sampler=all", "rounds=1", "grid=processes",
         "grid.workers=2", "model=custom", "model._target_=mine.Net", "hydra.run.dir=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in (Path(__file__).parents[1], Path(__file__).parent))},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
@pytest.mark.usefixtures("no_pictures")
def test_the_memory_of_workers_is_counted(tmp_path: Path) -> None:
    alone, together = (
        run_into(tmp_path / name, tiny(f"grid={name}", *(["grid.workers=2"] if name == "processes" else [])))
        for name in ("inprocess", "processes")
    )
    assert together["peak_memory_mb"] > alone["peak_memory_mb"] + 20
    assert [(run["grid"], run["workers"]) for run in (alone, together)] == [("inprocess", 1), ("processes", 2)]
