"""Messages: how they are cut into chunks, what becomes of clients that fail, and what a broken round leaves."""

from __future__ import annotations

import gc
import os
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, RecordDict
from helpers import assert_close, failing, parts, play, run_into, same_bits, tiny
from hypothesis import given
from hypothesis import strategies as st

from fedsim import flower
from fedsim.grids.base import MemoryStates, cut
from fedsim.grids.pool import AHEAD
from fedsim.grids.wire import pack, unpack
from fedsim.nodes import node_ids
from fedsim.replies import Reply, Total
from fedsim.training import ClientUpdate
from fedsim.types import FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 10))
def test_cutting_keeps_order_size_and_content(runs: list[int], size: int) -> None:
    flower.enter_runtime()
    contents = [RecordDict({"config": ConfigRecord({"run": number})}) for number in range(len(runs))]
    owners = [number for number, length in enumerate(runs) for _ in range(length)]
    messages = [Message(contents[owner], client, "train") for client, owner in enumerate(owners)]
    chunks = list(cut(messages, size))
    assert [m.metadata.dst_node_id for chunk in chunks for m in chunk] == list(range(len(messages)))
    assert all(1 <= len(chunk) <= size and len({id(m.content) for m in chunk}) == 1 for chunk in chunks)
    assert len(chunks) == sum(-(-length // size) for length in runs)
    for number in range(len(runs)):
        sizes = [len(chunk) for chunk in chunks if chunk[0].content is contents[number]]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)  # none has a rest to itself


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_a_client_that_raises_is_left_out_of_the_mean(chunk_size: int) -> None:
    made = parts(*failing(raising=[1, 4]), f"grid.chunk_size={chunk_size}", "rounds=1")
    received = {name: array.clone() for name, array in made.server.state.arrays.items()}
    arrays = play(made)
    row = made.server.state.rows[0]
    assert row["num_failed"] == 2 and row["cohort_size"] == 8
    assert dict(made.server.state.failures) == {1: 1, 4: 1}
    assert sorted(made.server.state.participations) == [0, 2, 3, 5, 6, 7]
    total, weight = {name: torch.zeros_like(array) for name, array in arrays.items()}, 0
    for update in made.trainer.train(received, [0, 2, 3, 5, 6, 7], made.population.training_data, lambda c: {}, 1):
        weight += update.num_examples  # type: ignore[union-attr]
        total = {n: total[n] + update.num_examples * a for n, a in update.arrays.items()}  # type: ignore[union-attr]
    assert_close(arrays, {name: array / weight for name, array in total.items()}, 1e-6)
    assert row["num_examples"] == weight


def test_failures_are_counted_in_the_run(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*failing(raising=[1], diverging=[6]), "grid.chunk_size=3", "rounds=3"))
    assert summary["failures"]["count"] == 6 and summary["failures"]["clients"] == 2
    assert "client 1 lost its battery" in summary["failures"]["first_reason"]
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    assert clients["failures"] == [0, 3, 0, 0, 0, 0, 3, 0] and clients["participations"] == [3, 0, 3, 3, 3, 3, 0, 3]
    assert pq.read_table(tmp_path / "rounds.parquet").to_pydict()["num_failed"] == [2, 2, 2]


def test_an_update_that_is_not_finite_is_a_failure_of_its_client() -> None:
    made = parts(*failing(diverging=[2]), "rounds=1")
    arrays = play(made)
    assert all(torch.isfinite(array).all() for array in arrays.values())
    assert dict(made.server.state.failures) == {2: 1} and "not finite" in str(made.server.state.first_failure)


def test_all_clients_failing_stops_with_the_first_cause() -> None:
    made = parts(*failing(raising=range(8)))
    with pytest.raises(
        FedsimError, match=r"all 8 clients of round 1 failed.* client 0, said: .*client 0 lost its battery"
    ):
        play(made)
    assert made.server.state.round == 0 and made.server.state.rows == []


def test_a_node_that_raises_fails_its_whole_chunk() -> None:
    made = parts("grid.chunk_size=3", "rounds=1")
    grid, seen = made.grid(), []
    app = grid._app  # type: ignore[attr-defined]

    def breaks_once(message, context):
        seen.append(list(message.content["cohort"]["clients"]))
        if len(seen) == 2:
            raise MemoryError("no room")
        return app(message, context)

    grid._app = breaks_once  # type: ignore[attr-defined]
    made.server.run(grid)
    assert seen[:3] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert sorted(made.server.state.failures) == [3, 4, 5] and "no room" in str(made.server.state.first_failure)


def test_progress_is_told_chunk_by_chunk() -> None:
    made, told = parts("grid.chunk_size=3", "rounds=1", "evaluation.clients=0"), []
    grid = made.grid()
    grid.on_progress = lambda done, asked: told.append((done, asked))
    made.server.run(grid)
    assert told == [(3, 8), (6, 8), (8, 8)]


def test_states_of_a_broken_round_are_not_committed() -> None:
    states = MemoryStates()
    states.put(1, {"w": torch.tensor([1.0])})
    assert states.committed == {} and states.get(1)["w"] == 1
    states.commit()
    states.put(1, {"w": torch.tensor([2.0])})
    assert states.committed[1]["w"] == 1 and states.get(1)["w"] == 2 and states.get(2) == {}


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian", "local_only"])
def test_a_broken_round_leaves_no_trace_in_the_server(strategy: str) -> None:
    """Ctrl-C in the middle of round 2, then the same round again: the end is as if nothing had happened."""
    whole = parts(f"strategy={strategy}", "rounds=3", "grid.chunk_size=2")
    grid_whole = whole.grid()
    whole.server.run(grid_whole)

    broken = parts(f"strategy={strategy}", "rounds=3", "grid.chunk_size=2")
    grid, interrupted = broken.grid(), []

    def interrupt(done: int, asked: int) -> None:
        if broken.server.state.round == 1 and done == 4 and not interrupted:
            interrupted.append(done)
            raise KeyboardInterrupt

    grid.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        broken.server.run(grid)
    assert broken.server.state.round == 1 and interrupted
    saved = {client: dict(state) for client, state in grid.states.committed.items()}
    again = broken.grid()  # a new process would know what was committed, and nothing else
    again.states.committed = saved
    broken.server.run(again)
    assert same_bits(broken.server.state.arrays, whole.server.state.arrays)
    assert again.states.committed.keys() == grid_whole.states.committed.keys()
    assert all(same_bits(again.states.committed[c], s) for c, s in grid_whole.states.committed.items())
    left, right = (
        [{k: v for k, v in r.items() if "seconds" not in k} for r in made.server.state.rows] for made in (broken, whole)
    )
    assert left == right


def test_too_few_connected_nodes_are_waited_for_and_then_named() -> None:
    class Deployment:
        """A grid that is not ours, on which a node more is connected each time it is asked."""

        asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return list(range(self.asked))

        def send_and_receive(self, messages: list[Message]) -> list[Message]:
            assert [message.metadata.dst_node_id for message in messages] == [0, 1, 2]
            return []

    flower.enter_runtime()
    with pytest.raises(FedsimError, match=r"1 of 3 nodes are connected; .*population\.num_clients"):
        node_ids(Deployment(), 3, patience=-1)  # type: ignore[arg-type]
    assert node_ids(Deployment(), 3, patience=60) is not None  # type: ignore[arg-type]


def test_bytes_are_those_of_encoded_messages() -> None:
    made = parts("rounds=1", "sampler=fixed", "sampler.cohort_size=3")
    encoded = flower.encoded_bytes(flower.to_record(made.server.state.arrays))
    raw = sum(array.nbytes for array in made.server.state.arrays.values())
    assert raw < encoded < raw + 512 * len(made.server.state.arrays)
    play(made)
    row = made.server.state.rows[0]
    assert row["bytes_down"] == row["bytes_up"] == 3 * encoded  # each device sends, whether or not the simulation folds


@pytest.mark.parametrize(
    ("strategy", "grid"), [("fedavg", "inprocess"), ("fedavg", "processes"), ("fedmedian", "inprocess")]
)
def test_a_fold_takes_the_memory_of_a_few_models_however_many_clients(
    strategy: str, grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of replies that are alive while a round goes on; garbage is not collected, so what lives is referred to."""
    alive: dict[int, weakref.ref[Any]] = {}
    make = flower.HeldArray.__init__

    def forget(key: int, _: object) -> None:
        del alive[key]

    def counted(self: flower.HeldArray, held: np.ndarray) -> None:
        make(self, held)
        alive[id(self)] = weakref.ref(self, partial(forget, id(self)))

    monkeypatch.setattr(flower.HeldArray, "__init__", counted)
    made = parts(f"strategy={strategy}", f"grid={grid}", "population.num_clients=60", "grid.chunk_size=2", "rounds=1")
    opened, most = made.grid(), []
    opened.on_progress = lambda done, asked: most.append(len(alive))
    gc.disable()
    try:
        made.server.run(opened)
    finally:
        gc.enable()
        opened.close()
    models = max(most) / len(made.server.state.arrays)
    waiting = AHEAD * len(os.sched_getaffinity(0)) if grid == "processes" else 0
    assert models > 60 if strategy == "fedmedian" else models <= 4 + waiting


def test_a_sum_is_exact_in_whole_numbers_and_close_in_others() -> None:
    flower.enter_runtime()
    asked = Message(RecordDict(), 0, "train")
    flower.stamp(asked, 1)
    draw, total = np.random.default_rng(3), Total("", asked)
    numbers = draw.integers(-(2**31), 2**31, (50, 9), dtype=np.int64).astype(np.int32)
    fractions = draw.normal(0, 1, (50, 300_001)).astype(np.float32)
    for client in range(50):
        reply = Reply("", sums=True)
        arrays = {"whole": torch.from_numpy(numbers[client]), "fraction": torch.from_numpy(fractions[client])}
        reply.add(ClientUpdate(client, arrays, 1, 1, {}, {}))
        total.add(reply.content(chunked=True))
    content = total.reply().content
    found = flower.from_record(flower.arrays_of(content)["arrays"])
    assert found["whole"].dtype == torch.int32 and found["fraction"].dtype == torch.float32
    assert np.array_equal(found["whole"].numpy(), numbers.sum(0, dtype=np.int32))  # modulo 2^32
    assert np.array_equal(found["fraction"].numpy(), fractions.sum(0, dtype=np.float64).astype(np.float32))
    assert flower.record_of(content, "clients")["id"] == list(range(50))


def test_weights_that_add_up_to_nothing_are_one_sentence() -> None:
    flower.enter_runtime()
    total, reply = Total("zeal", Message(RecordDict(), 0, "train")), Reply("zeal")
    reply.add(ClientUpdate(0, {"w": torch.ones(2)}, 5, 1, {"zeal": 0.0}, {}))
    total.add(reply.content(chunked=True))
    with pytest.raises(FedsimError, match=r"weights \(zeal\) add up to 0, .*strategy\._target_"):
        total.reply()


def test_a_held_array_is_what_flowers_own_is() -> None:
    """Its bytes, their number, its name on the wire; and what is read from it is the reader's own."""
    for held in (
        np.eye(3, dtype=np.float32),
        np.arange(6).reshape(2, 3).T,
        np.array(2.5),
        np.zeros((0, 2)),
        np.array([True]),
    ):
        ours, theirs = flower.HeldArray(held), Array(held)
        assert ours.encoded_bytes == len(ours.data) and ours.data == theirs.data
        assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
        assert ours.object_id == theirs.object_id and ours.deflate() == theirs.deflate() and ours == theirs
        copy = ours.numpy()
        copy[...] = 1
        assert np.array_equal(ours.held, theirs.numpy()) and copy is not held
        again = unpack(pack(ours))
        assert isinstance(again, flower.HeldArray) and again == theirs
    shown = torch.zeros(3)
    record = flower.to_record({"w": shown})
    assert flower.from_record(record)["w"].data_ptr() == shown.data_ptr()  # nothing was copied
    record["w"].data = Array(np.ones(3, dtype=np.float32)).data
    assert torch.equal(flower.from_record(record)["w"], torch.ones(3)) and torch.equal(shown, torch.zeros(3))


def test_read_only_arrays_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    held = np.ones(3)
    held.flags.writeable = False
    record = flower.exact_record({})
    record["w"] = flower.HeldArray(held)
    assert torch.equal(flower.from_record(record)["w"], torch.ones(3, dtype=torch.float64)) and not recwarn.list


def test_arrays_travel_bit_by_bit() -> None:
    arrays = {
        "a": torch.randn(3, 4),
        "scalar": torch.tensor(2.5),
        "counter": torch.tensor(7),
        "empty": torch.zeros(0, 2),
    }
    assert same_bits(arrays, flower.from_record(flower.to_record(arrays)))
    assert np.array_equal(flower.to_record(arrays)["a"].numpy(), arrays["a"].numpy())
