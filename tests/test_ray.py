"""The same two apps under Flower's own simulation engine, on Ray: a rehearsal of a real deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from helpers import assert_close, config, same_bits
from omegaconf import OmegaConf

from fedsim import flower
from fedsim.build import build, client_app_from
from fedsim.server import make_server_app
from fedsim.types import Params

OVERRIDES = (
    *(
        "dataset=digits",
        "model=mlp",
        "model.hidden=[16]",
        "population.num_clients=8",
        "sampler.cohort_size=4",
        "rounds=3",
    ),
    *("device=cpu", "seed=5", "client.momentum=0.5"),
)

PROMISE = ("privacy.noise_multiplier=0.3", "privacy.delta=1e-3")


def plain(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(config(*OVERRIDES, *overrides), resolve=True)  # type: ignore[return-value]


def node(client: int) -> Context:
    """The context of a real node, which is one client."""
    return Context(
        run_id=1, node_id=100 + client, node_config={"partition-id": client}, state=RecordDict(), run_config={}
    )


def test_the_client_app_travels_and_answers_for_one_client() -> None:
    """Pickled and unpickled as Ray does, with neither data nor model in it."""
    ray_pickle = pytest.importorskip("cloudpickle")
    flower.enter_runtime()
    packed = ray_pickle.dumps(client_app_from(plain()))
    assert len(packed) < 50_000
    app = ray_pickle.loads(packed)
    made = build(config(*OVERRIDES))
    content = RecordDict(
        {"arrays": flower.to_record(made.server.state.arrays), "config": ConfigRecord({"server-round": 1})}
    )
    replies = {}
    for client in (3, 6):
        message = Message(content, 100 + client, MessageType.TRAIN)
        flower.stamp(message, client)
        replies[client] = app(message, node(client))
    for client, reply in replies.items():
        (update,) = made.trainer.train(
            made.server.state.arrays, [client], made.population.training_data, lambda c: {}, 1
        )
        assert same_bits(flower.from_record(reply.content.array_records["arrays"]), update.arrays)  # type: ignore[union-attr]
        assert reply.content.metric_records["metrics"]["num-examples"] == update.num_examples  # type: ignore[union-attr]


def test_a_node_keeps_its_clients_state_in_its_own_context() -> None:
    flower.enter_runtime()
    app, made, context = (
        client_app_from(plain("strategy=local_only")),
        build(config(*OVERRIDES, "strategy=local_only")),
        node(2),
    )
    content = RecordDict(
        {"arrays": flower.to_record(made.server.state.arrays), "config": ConfigRecord({"server-round": 1})}
    )
    grid = made.grid()
    for number in (1, 2):
        message = Message(content, 102, MessageType.TRAIN)
        flower.stamp(message, number)
        app(message, context)
        again = Message(content, 2, MessageType.TRAIN)
        list(grid.send_and_receive([again]))
        grid.states.commit()
        kept = flower.from_record(context.state.array_records["2"])
        assert same_bits(kept, grid.states.committed[2]), number


@pytest.mark.ray
@pytest.mark.parametrize(
    "extra",
    [
        ("strategy=fedavg",),
        ("strategy=fedmedian",),
        ("privacy=user", *PROMISE, "privacy.clipping=adaptive", "strategy=fedadam"),
        ("privacy=local", *PROMISE, "strategy=fedmedian"),
        ("privacy=example", *PROMISE, "client.momentum=0"),
        ("privacy=distributed", *PROMISE),
    ],
    ids=lambda extra: extra[0],
)
def test_flowers_own_simulation_ends_where_ours_does(extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    overrides = [*OVERRIDES, *extra]
    ours = build(config(*overrides))
    ours.server.run(ours.grid())
    theirs = build(config(*overrides))
    start: Params = {name: array.clone() for name, array in theirs.server.state.arrays.items()}
    run_simulation(
        make_server_app(theirs.server),
        client_app_from(plain(*extra)),
        num_supernodes=8,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 1, "log_to_driver": False},
        },
    )
    assert theirs.server.state.round == 3
    assert_close(ours.server.state.arrays, theirs.server.state.arrays, 1e-5)
    assert not same_bits(start, theirs.server.state.arrays)
    for mine, other in zip(ours.server.state.rows, theirs.server.state.rows, strict=True):
        for key in ("cohort_size", "num_failed", "num_examples", "bytes_up", "bytes_down"):
            assert mine[key] == other[key], key
        for key in ("accuracy", "loss", "federated_accuracy", "train_loss"):
            assert mine[key] == pytest.approx(other[key], abs=1e-4), key
