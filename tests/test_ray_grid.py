"""`grid=ray` on a real head and a second node: the bits of the other grids, whatever is lost on the way."""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, parts, same_bits, start_command, tiny_dataset

from fedsim.data.dataset import Dataset
from fedsim.grids import ray as ray_grid
from fedsim.grids import ray_cluster
from fedsim.grids.base import SimulationGrid
from fedsim.grids.carried import Carried, own_modules
from fedsim.grids.ray import RayCrew
from fedsim.grids.ray_actor import how_it_died, pack_up
from fedsim.grids.wire import apart, together
from fedsim.grids.worker import Answer
from fedsim.parts import Parts
from fedsim.training import ClientHalf
from fedsim.types import FedsimError, MissingPackageError, Params

needs_ray = pytest.mark.ray
NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 2}
"""So that a node that is killed is missed within a second, not within fifteen."""

PROMISE = ("privacy.noise_multiplier=0.3", "privacy.delta=1e-3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node on this machine, a CPU each: servers, stores and workers of their own."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK})
    made.add_node(**NODE)
    yield made
    made.shutdown()


def on(cluster: Any, *overrides: str) -> tuple[Parts, SimulationGrid]:
    made = parts("grid=ray", f"grid.address={cluster.address}", "grid.chunk_size=2", *overrides)
    return made, made.grid()


def played(made: Parts, grid: SimulationGrid) -> tuple[Params, dict[int, Params]]:
    """The model and the clients' states at the end."""
    try:
        made.server.run(grid)
    finally:
        grid.close()
    return made.server.state.arrays, dict(grid.states.committed)


def here(*overrides: str, grid: str = "inprocess") -> tuple[Params, dict[int, Params]]:
    made = parts(f"grid={grid}", "grid.chunk_size=2", *overrides)
    return played(made, made.grid())


def crew_of(grid: SimulationGrid) -> RayCrew:
    crew = grid.crew  # type: ignore[attr-defined]
    assert isinstance(crew, RayCrew)
    return crew


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@needs_ray
@pytest.mark.parametrize(
    "extra",
    [
        ("strategy=fedavg", "client.momentum=0.5"),
        ("strategy=fedmedian",),
        ("strategy=local_only",),
        ("privacy=user", *PROMISE, "privacy.clipping=adaptive"),
        ("privacy=distributed", *PROMISE),
    ],
    ids=lambda extra: extra[0],
)
def test_two_nodes_give_the_bits_of_one_process(cluster: Any, extra: tuple[str, ...]) -> None:
    made, grid = on(cluster, *extra)
    seen = set()
    grid.on_progress = lambda done, asked: seen.add(len(crew_of(grid)._hands))
    arrays, states = played(made, grid)
    expected, expected_states = here(*extra)
    assert seen == {2}
    assert same_bits(arrays, expected)
    assert states.keys() == expected_states.keys()
    assert all(same_bits(states[client], expected_states[client]) for client in states)
    if extra[0] == "strategy=fedavg":
        assert same_bits(arrays, here(*extra, "grid.workers=2", grid="processes")[0])


@needs_ray
def test_a_worker_killed_each_round_changes_nothing_but_time(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    made, grid = on(cluster, "strategy=fedmedian", "rounds=3")
    draw, rounds = random.Random(1), set()

    def kill_one(done: int, asked: int) -> None:
        if made.server.state.round not in rounds:
            rounds.add(made.server.state.round)
            ray.kill(draw.choice(crew_of(grid)._hands).actor)

    grid.on_progress = kill_one
    with caplog.at_level(logging.WARNING):
        arrays, _ = played(made, grid)
    assert rounds == {0, 1, 2} and "trained by another" in caplog.text
    assert same_bits(arrays, here("strategy=fedmedian", "rounds=3")[0])


@needs_ray
def test_a_node_that_is_killed_is_done_without_and_a_new_one_used(
    cluster: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    made, grid = on(cluster, "strategy=local_only", "rounds=4")
    (second,) = cluster.worker_nodes

    def kill_and_replace(done: int, asked: int) -> None:
        if made.server.state.round == 1 and second in cluster.worker_nodes:
            cluster.remove_node(second, allow_graceful=False)
        if made.server.state.round == 2 and not cluster.worker_nodes:
            cluster.add_node(**NODE)
            while ray.available_resources().get("CPU", 0) < 1:
                time.sleep(0.05)

    grid.on_progress = kill_and_replace
    crew, hands = crew_of(grid), []
    placed = crew.place

    def place(records: Any) -> None:
        hands.append(len(crew._hands))  # as the last round left them
        placed(records)

    crew.place = place  # type: ignore[method-assign]
    capfd.readouterr()
    try:
        with caplog.at_level(logging.WARNING):
            arrays, states = played(made, grid)
    finally:
        if not cluster.worker_nodes:
            cluster.add_node(**NODE)
    seen = [number for number, _ in itertools.groupby(hands)]
    assert seen == [0, 2, 1, 2] and "trained by another" in caplog.text
    expected, expected_states = here("strategy=local_only", "rounds=4")
    assert same_bits(arrays, expected)
    assert all(same_bits(states[client], expected_states[client]) for client in range(8))
    assert "raylet" not in "".join(capfd.readouterr())


@needs_ray
def test_places_that_others_have_taken_are_not_waited_for(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """First there is room for one worker of two, then for none."""
    import ray

    class Other:
        def here(self) -> None:
            """Once it lives."""

    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        remote: Any = ray.remote(num_cpus=1)(Other)
        others = [remote.remote()]
        ray.get(others[0].here.remote())
        made, grid = on(cluster)
        grid.on_progress = lambda done, asked: monkeypatch.setattr(ray_grid, "START", 0)  # as if that long had passed
        arrays, _ = played(made, grid)
        assert same_bits(arrays, here()[0])
        assert ray.is_initialized(), "who joined a cluster leaves it"

        others.append(remote.remote())
        ray.get(others[1].here.remote())
        monkeypatch.setattr(ray_grid, "START", 1)
        made, grid = on(cluster)
        with pytest.raises(FedsimError, match=r"has given no worker in 1 seconds; see with `ray status`"):
            played(made, grid)
    finally:
        ray.shutdown()


def wide_dataset() -> Dataset:
    """A `dataset._target_`: a linear model of it has 1.2 MB."""
    return tiny_dataset(features=100_000)


@needs_ray
def test_old_rounds_leave_the_object_store(cluster: Any) -> None:
    from ray._private.internal_api import node_stats

    def used() -> list[int]:
        nodes = [(node.node_ip_address, node.node_manager_port) for node in (cluster.head_node, *cluster.worker_nodes)]
        return [node_stats(*node).store_stats.object_store_bytes_used for node in nodes]

    made, grid = on(cluster, "dataset._target_=test_ray_grid.wide_dataset", "rounds=14", "evaluation.every=14")
    data, model = 160 * 100_000 * 4, 3 * 100_001 * 4
    levels: list[list[int]] = []

    def look(done: int, asked: int) -> None:
        if done == asked and made.server.state.round == len(levels):
            levels.append(used())
            until = time.monotonic() + 10
            while len(levels) == 14 and sum(levels[-1]) > sum(levels[0]) + 4 * model and time.monotonic() < until:
                levels[-1] = used()  # Ray frees what it may free once a second

    grid.on_progress = look
    played(made, grid)
    assert all(data < level < 1.5 * data for level in levels[0]), "a node holds the data once"
    assert len(levels) == 14 and sum(levels[-1]) <= sum(levels[0]) + 4 * model


@needs_ray
@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "somebody else"])
def test_an_address_where_no_cluster_is(listens: bool, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as other:
        if listens:
            other.bind(("127.0.0.1", port))
            other.listen()
        began = time.monotonic()
        with pytest.raises(
            FedsimError, match=rf"grid\.address=127\.0\.0\.1:{port} is not a Ray cluster .* `ray start --head`"
        ):
            parts("grid=ray", f"grid.address=127.0.0.1:{port}")
        assert time.monotonic() - began < 20


@needs_ray
def test_the_command_with_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    began = time.monotonic()
    command = start_command(
        *TINY[:-1], "grid=ray", f"grid.address=127.0.0.1:{free_port()}", f"hydra.run.dir={tmp_path}/run"
    )
    out, err = command.communicate(timeout=60)
    assert command.returncode == 1 and out == "" and err.startswith("fedsim: grid.address=") and err.count("\n") == 1
    assert time.monotonic() - began < 20 and not (tmp_path / "run").exists()


@needs_ray
def test_ctrl_c_ends_a_round_and_a_cluster_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither processes nor files of it are left."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    before = set(Path("/tmp").glob("fedsim_ray_*")) | set(Path(tempfile.gettempdir()).glob("fedsim_ray_*"))
    command = start_command(
        *TINY[:-1],
        "grid=ray",
        "grid.workers=1",
        "rounds=1000000",
        f"hydra.run.dir={tmp_path}/run",
        "checkpoint.every=3",
    )
    while not list(tmp_path.glob("run/checkpoints/round_*")) and command.poll() is None:
        time.sleep(0.05)
    (folder,) = (
        set(Path("/tmp").glob("fedsim_ray_*")) | set(Path(tempfile.gettempdir()).glob("fedsim_ray_*"))
    ) - before
    assert processes_of(folder)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130 and err.startswith("fedsim: stopped after round ") and err.count("\n") == 1
    assert not folder.exists() and not processes_of(folder)


def processes_of(folder: Path) -> list[str]:
    lines = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


@needs_ray
def test_a_cluster_that_is_lost_leaves_the_checkpoint(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    own = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        run = tmp_path / "run"
        command = start_command(
            *(*TINY[:-1], "grid=ray", f"grid.address={own.address}", "rounds=1000000", "checkpoint.every=3"),
            f"hydra.run.dir={run}",
        )
        while not list(run.glob("checkpoints/round_*")) and command.poll() is None:
            time.sleep(0.05)
        own.head_node.kill_gcs_server()
        _, err = command.communicate(timeout=50)
    finally:
        own.shutdown()
    assert command.returncode == 1 and "is lost" in err and "resume=" in err and err.count("\n") == 1
    assert list(run.glob("checkpoints/round_*")) and not (run / "summary.json").exists()


@needs_ray
def test_an_answer_of_objects_that_run_code_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    crew = RayCrew(parts().devices, ray_cluster.Cluster("auto", 1), 1, "CPU")
    crew._seats[0] = ray_grid.Seat(ray_grid.Hand(None, None, 0.0), deque(["answer"]))
    monkeypatch.setattr(ray, "get", lambda ref: apart(Answer(None, "", {}, {0: {"layer": torch.nn.Linear(1, 1)}})))
    with pytest.raises(FedsimError, match=r"holds a torch\..*Linear, which is not taken from another process"):
        crew._read(0)


# What needs no cluster


@pytest.mark.parametrize("address", ["somewhere", "host:", "ray://host:10001", 6379, "host:123456"])
def test_an_address_that_is_none(address: object) -> None:
    with pytest.raises(FedsimError, match=r"grid\.address=.* is not the address of a cluster; give auto or host:port"):
        ray_grid.Ray(address=address)  # type: ignore[arg-type]


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'fedsim-flower\[ray\]'"):
        parts("grid=ray")


def test_what_cannot_be_pickled_is_named() -> None:
    made = parts()
    made.trainer.client_half = ClientHalf()  # not the one that all algorithms share
    made.trainer.client_half.begin = lambda device: {}  # type: ignore[method-assign]
    with pytest.raises(FedsimError, match=r"^strategy=\w+ cannot be sent to worker processes .*lambda"):
        pack_up(made.devices())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Task was killed due to the node running low on memory.\nMemory on the node was 15 / 16 GB",
            "its node ran out of memory",
        ),
        (
            "The actor died unexpectedly.\nThe actor died because its node has died. Node Id: 12",
            "was lost with its node",
        ),
        ("The actor 12 is unavailable: RpcError. The task may or may not have been executed", "could not be reached"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "ended unexpectedly"),
    ],
)
def test_how_a_worker_died_is_told_in_words(said: str, words: str) -> None:
    assert words in how_it_died(RuntimeError(said))


def test_ones_own_modules_travel_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was imported from the working folder is imported again where there are no files."""
    (tmp_path / "own_lab").mkdir()
    (tmp_path / "own_lab" / "deeper.py").write_text("from own_single import SEVEN\nEIGHT = SEVEN + 1\n")
    (tmp_path / "own_single.py").write_text("SEVEN = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_lab.deeper  # type: ignore[import-not-found]

    assert own_lab.deeper.EIGHT == 8
    carried = own_modules(tmp_path)
    assert set(carried) == {"own_lab", "own_lab.deeper", "own_single"}
    monkeypatch.undo()
    shutil.rmtree(tmp_path)
    for name in carried:
        sys.modules.pop(name, None)
    finder = Carried(carried)
    sys.meta_path.append(finder)
    try:
        from own_lab.deeper import EIGHT

        assert EIGHT == 8
    finally:
        sys.meta_path.remove(finder)
        for name in carried:
            sys.modules.pop(name, None)


def test_what_a_carrier_shares_is_not_copied_and_what_is_ones_own_is() -> None:
    packed = apart({"data": torch.arange(50_000), "small": torch.ones(3)})
    packed[1][0].flags.writeable = False
    shared, own = together(packed, shared=True), together(packed)
    assert shared["data"].data_ptr() == packed[1][0].ctypes.data and shared["data"][-1] == 49_999
    own["data"] += 1
    assert own["data"][0] == 1 and shared["data"][0] == 0
