"""Checkpoints: everything comes back, nothing in one can run, and a damaged one is refused in a sentence."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from helpers import parts, play, resume, run_into, same_bits, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.algorithms.state import load_strategy_state, strategy_state
from fedsim.results.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from fedsim.types import FedsimError

NUMBERS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
ARRAYS = st.builds(
    lambda shape, dtype: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["float32", "float64", "int64"]),
)
VALUES = st.recursive(
    NUMBERS | ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)

pytestmark = pytest.mark.usefixtures("no_pictures")


class Remembers(FedAvg):
    """A strategy of one's own, with anything to remember."""

    def __init__(self, memory: object) -> None:
        super().__init__()
        self.memory = memory


def alike(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray):
        return (
            isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and np.array_equal(left, right)
            and left.shape == right.shape
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and left.keys() == right.keys() and all(alike(v, right[k]) for k, v in left.items())
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(alike, left, right))
    return type(left) is type(right) and left == right


def through_a_file(folder: Path, strategy: dict) -> dict:
    save_checkpoint(folder, 1, Checkpoint({"w": torch.ones(1)}, {}, strategy, [], {}), keep=1)
    return load_checkpoint(folder).strategy


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_whatever_a_strategy_remembers_comes_back(tmp_path_factory: pytest.TempPathFactory, memory: object) -> None:
    state = through_a_file(tmp_path_factory.mktemp("checkpoint"), strategy_state(Remembers(memory)))
    fresh = Remembers("nothing")
    load_strategy_state(fresh, state)
    assert alike(memory, fresh.memory)


def test_arrays_records_of_flowers_come_back(tmp_path: Path) -> None:
    record = ArrayRecord({"b": Array(np.arange(3.0)), "a": Array(np.array(2.5, dtype=np.float32))})
    fresh = Remembers(None)
    load_strategy_state(fresh, through_a_file(tmp_path, strategy_state(Remembers(record))))
    assert isinstance(fresh.memory, ArrayRecord) and list(fresh.memory) == ["b", "a"]
    assert all(np.array_equal(record[name].numpy(), fresh.memory[name].numpy()) for name in record)


def test_what_a_checkpoint_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(FedsimError, match=r"Remembers\.memory is a set"):
        strategy_state(Remembers({1, 2}))


def test_a_strategy_may_decide_for_itself() -> None:
    class Own(Remembers):
        def state_dict(self) -> dict:
            return {"sum": 3}

        def load_state_dict(self, state: dict) -> None:
            self.memory = state["sum"]

    strategy = Own({1, 2})
    load_strategy_state(strategy, strategy_state(strategy))
    assert strategy.memory == 3


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm", "fedyogi", "fedadagrad"])
def test_a_server_optimiser_goes_on_where_it_was(strategy: str, tmp_path: Path) -> None:
    """Its moments through a file, into a strategy made anew; without them the next round would be another."""
    whole, loaded, forgetful = (parts(f"strategy={strategy}", "rounds=2") for _ in range(3))
    start = play(whole)
    load_strategy_state(loaded.algorithm.strategy, through_a_file(tmp_path, whole.server.state.strategy))
    ends = []
    for made in (whole, loaded, forgetful):
        made.server.state.arrays, made.server.state.round, made.server.rounds = start, 2, 3
        ends.append(play(made))
    assert same_bits(ends[0], ends[1]) and not same_bits(ends[0], ends[2])


def test_clients_states_come_back(tmp_path: Path) -> None:
    made = parts("strategy=local_only")
    grid = made.grid()
    made.server.run(grid)
    assert len(grid.states.committed) == 8
    checkpoint = Checkpoint(
        made.server.state.arrays, grid.states.committed, made.server.state.strategy, [], {"round": 2}
    )
    save_checkpoint(tmp_path, 2, checkpoint, keep=1)
    loaded = load_checkpoint(tmp_path)
    assert loaded.clients.keys() == grid.states.committed.keys() and loaded.progress["round"] == 2
    assert all(same_bits(loaded.clients[client], state) for client, state in grid.states.committed.items())
    assert same_bits(loaded.arrays, made.server.state.arrays)


def test_only_the_newest_are_kept_and_half_written_ones_are_not_seen(tmp_path: Path) -> None:
    for round in (1, 2, 9, 10):
        save_checkpoint(tmp_path, round, Checkpoint({"w": torch.full((1,), float(round))}, {}, {}, [], {}), keep=2)
    (tmp_path / ".round_000011.tmp").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["round_000009", "round_000010"]
    assert load_checkpoint(tmp_path).arrays["w"] == 10


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_into(folder, tiny("checkpoint.every=1", "strategy=fedadam"))
    return folder


@pytest.fixture
def finished(run_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.mark.parametrize("name", ["arrays.safetensors", "clients.safetensors", "remembered.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone", "empty"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(finished: Path, name: str, damage: str) -> None:
    path = checkpoints(finished / "checkpoints")[-1] / name
    content = path.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "garbage": b"\x80\x04evil" * 20, "empty": b""}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    with pytest.raises(FedsimError) as caught:
        load_checkpoint(finished / "checkpoints")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "3", '{"format": 1}', '{"format": 99}', '{"format": 1, "strategy": {}, "round": 1}'),
        '{"format": 1, "strategy": {"x": {"$array": "77"}}}',
    ],
)
def test_json_that_is_no_checkpoint_is_refused_in_one_sentence(finished: Path, text: str) -> None:
    (checkpoints(finished / "checkpoints")[-1] / "state.json").write_text(text)
    with pytest.raises(FedsimError) as caught:
        resume(finished, 3)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_data_or_of_another_experiment_is_refused(finished: Path) -> None:
    config = finished / ".hydra" / "config.yaml"
    saved = config.read_text()
    config.write_text(saved.replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(FedsimError, match="another experiment"):
        resume(finished, 3)
    config.write_text(saved)
    state = checkpoints(finished / "checkpoints")[-1] / "state.json"
    text = state.read_text()
    fingerprint = parts().population.dataset.fingerprint
    assert fingerprint in text
    state.write_text(text.replace(fingerprint, "0" * 64))
    with pytest.raises(FedsimError, match="data of dataset tiny have changed"):
        resume(finished, 3)


FORBIDDEN = {"eval", "exec", "compile"}


def dangers(source: str) -> list[str]:
    """Calls that run what a file says: pickle's, torch.load and np.load that may unpickle, eval and exec."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).endswith("Unpickler"):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keys = {key.arg: ast.unparse(key.value) for key in node.keywords}
        unsafe = name in FORBIDDEN or name.split(".")[-1] == "read_pickle"
        unsafe |= name.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "cloudpickle") and name.split(".")[
            -1
        ] in ("load", "loads")
        unsafe |= name == "torch.load" and keys.get("weights_only") != "True"
        unsafe |= name in ("np.load", "numpy.load") and keys.get("allow_pickle") != "False"
        unsafe |= name in ("yaml.load", "yaml.unsafe_load")
        if unsafe:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_in_fedsim_runs_what_a_file_says() -> None:
    files = sorted(Path(fedsim.__file__).parent.rglob("*.py"))
    assert len(files) > 40
    found = {str(path): calls for path in files if (calls := dangers(path.read_text()))}
    calls = {Path(path).name: [call.split(": ")[1] for call in calls] for path, calls in found.items()}
    # Both refuse all but a few names (`find_class`): CIFAR's files, and what a worker process says. A worker itself reads whatever
    # the main process sends, which is how it is made.
    assert calls == {"_unpickle.py": ["pickle.Unpickler"], "wire.py": ["pickle.Unpickler"] * 2}


def test_what_a_worker_says_is_read_without_calling_anything() -> None:
    from fedsim.grids import wire

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("echo must not run",)

    for hostile in (Hostile(), {"state": [Hostile()]}, torch.nn.Linear(2, 2)):
        parcel = wire.pack(hostile)
        with pytest.raises(wire.UnexpectedObject, match=r"posix\.system|Linear"):
            wire.unpack(parcel)
        parcel.close()


@pytest.mark.parametrize(
    "line",
    [
        *(
            "pickle.load(f)",
            "torch.load(p)",
            "np.load(p)",
            "np.load(p, allow_pickle=True)",
            "eval(x)",
            "pd.read_pickle(p)",
        ),
        "pickle.Unpickler(f)",
    ],
)
def test_a_dangerous_line_would_be_found(line: str) -> None:
    assert dangers(line)
