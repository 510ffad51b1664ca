"""Flower's own simulation on Ray: with a client as its users write it, and with fedsim's apps."""

from __future__ import annotations

import os
from functools import lru_cache, partial
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from omegaconf import DictConfig, OmegaConf

from experiments.benchmarks.loops import plain_fit
from experiments.benchmarks.measure import Laps
from experiments.benchmarks.workloads import make_parts
from fedsim.build import build, client_app_from
from fedsim.parts import Parts
from fedsim.server import make_server_app


def flower_fedsim(cfg: DictConfig, rounds: int, laps: Laps) -> None:
    """fedsim's two apps; Ray's actors train with fedsim's trainer, one client at a time."""
    server = build(cfg).server
    server.rounds = rounds + 1  # the last is evaluated, and makes a lap that nobody looks at
    server.on_round = lambda row: laps.lap()
    app = client_app_from(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    _simulate(make_server_app(server), app, server.num_clients, cfg.device)


def flower_plain(overrides: list[str], rounds: int, laps: Laps) -> None:
    """Flower's FedAvg, and a client that trains in plain PyTorch."""
    parts = make_parts(overrides)
    server = parts.server
    arrays, clients = ArrayRecord(parts.model.state_dict()), server.num_clients
    fraction = server.sampler.expected_size(clients) / clients
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(laps, fraction_train=fraction, fraction_evaluate=0.0, min_available_nodes=clients)
        strategy.start(grid, arrays, num_rounds=rounds)

    _simulate(app, plain_client(overrides), clients, str(parts.device))


class Timed(FedAvg):
    """FedAvg that tells when it has aggregated a round."""

    def __init__(self, laps: Laps, **keys: Any) -> None:
        super().__init__(**keys)
        self.laps = laps

    def aggregate_train(self, *arguments: Any, **keys: Any) -> Any:
        """See FedAvg."""
        found = super().aggregate_train(*arguments, **keys)
        self.laps.lap()
        return found


def plain_client(overrides: list[str]) -> ClientApp:
    """A ClientApp whose training is the raw loop's."""
    app = ClientApp()
    make = partial(_parts, tuple(overrides))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        parts = make()
        parts.model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        parts.model.train()
        data = parts.population.training_data(int(context.node_config["partition-id"]))
        plain_fit(parts, parts.model)(data, 1)
        content = RecordDict(
            {
                "arrays": ArrayRecord(parts.model.state_dict()),
                "metrics": MetricRecord({"num-examples": len(data.x)}),
            }
        )
        return Message(content, reply_to=message)

    return app


@lru_cache(maxsize=1)
def _parts(overrides: tuple[str, ...]) -> Parts:
    """Once in each of Ray's actors."""
    return make_parts(list(overrides))


def _simulate(server: ServerApp, client: ClientApp, clients: int, device: str) -> None:
    """An actor a core; on a GPU they share it."""
    from flwr.simulation import run_simulation

    cores = os.cpu_count() or 1
    resources: Any = {"num_cpus": 1, "num_gpus": 1 / cores if device.startswith("cuda") else 0.0}
    run_simulation(server, client, num_supernodes=clients, backend_config={"client_resources": resources})
