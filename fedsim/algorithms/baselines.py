"""The two ends that federated learning lies between, on the same path: all data in one place, and no exchange at all."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.training import ClientHalf, Device
from fedsim.types import Params


def central() -> Algorithm:
    """One client holds everybody's data: what could be had if data might leave the devices."""
    return Algorithm(FedAvg(**TAKE_ALL_SHOWN), linear=True, pools_data=True)


class KeepsOwnModel(ClientHalf):
    """Goes on from the model that the device trained last, and never takes the server's."""

    def initial(self, received: Params, state: Params) -> Params:
        """The device's own arrays; the server's only the first time, so that all start alike."""
        return state or received

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        """All of the model's arrays."""
        return {name: array.detach().clone() for name, array in device.model.state_dict().items()}


class NoExchange(FedAvg):
    """Lets the cohort train and leaves the server's arrays as they were."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The clients' metrics alone."""
        _, metrics = super().aggregate_train(server_round, replies)
        return None, metrics


def local_only() -> Algorithm:
    """Every client trains a model of its own on its own data: what could be had without federation.

    The run's model.safetensors is the start that all had in common; the clients' models are in its checkpoints.
    """
    return Algorithm(NoExchange(**TAKE_ALL_SHOWN), KeepsOwnModel(), linear=True, shares_model=False)
