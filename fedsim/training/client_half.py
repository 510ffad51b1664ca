"""The client half of a federated algorithm: what it changes on the device.

FedAvg changes nothing, so the base class is FedAvg's. An algorithm overrides the hook that it needs; its server half
stands beside it in `fedsim/algorithms/`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from fedsim.training.objectives import Objective
from fedsim.types import ClientData, Params


class Device(NamedTuple):
    """What a client half may look at: the model that the device holds, its data, and what it knew before.

    received: the server's arrays of this round. state: what `finish` returned when this client last took part
    (empty at first). Neither may be changed in place.
    """

    model: nn.Module
    objective: Objective
    data: ClientData
    received: Params
    state: Params


class ClientHalf:
    """FedAvg's client half (arXiv 1602.05629): start from the server's arrays, follow the plain gradient, keep nothing.

    Where clients train in lockstep each has a shallow copy of the half to itself. elementwise: `correct` treats every number by
    itself and looks at nothing but its arguments, so that it may be given the arrays of many clients at once, one a row.
    sends_model: False where no step is made and `statistics` are sent in the place of trained arrays. alone: clients are trained
    one at a time, as they must be where the half has `statistics` or an `extra_loss`.
    """

    elementwise: bool = False
    sends_model: bool = True
    alone: bool = False

    def check(self, model: nn.Module, objective: Objective, by_example: bool) -> None:
        """Raise FedsimError, before any work, where this half does not fit. by_example: clients train by DP-SGD."""

    def initial(self, received: Params, state: Params) -> Params:
        """The arrays that local training starts from, and that evaluation on this device uses."""
        return received

    def begin(self, device: Device) -> dict[str, float]:
        """Metrics to send that must be taken before the first step; `device.model` holds the initial arrays."""
        return {}

    def extra_loss(self, outputs: Tensor, rows: Tensor | None) -> Tensor | None:
        """What a step lowers beside the objective: a scalar of the outputs (b, ...) of the device's examples `rows` (None: all)."""
        return None

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        """Change a step's gradients in place. `anchors` are the weights that local training started from."""

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        """The state to keep on the device until it takes part again; `device.model` holds the trained arrays."""
        return {}

    def statistics(self, device: Device) -> Params:
        """Arrays to send where `sends_model` is False; means over the device's examples, as an update is one by weight."""
        raise NotImplementedError
