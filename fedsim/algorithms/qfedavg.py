"""q-FedAvg (arXiv 1905.10497): clients with a larger loss weigh more, so that accuracy is spread more evenly."""

from __future__ import annotations

import torch
from flwr.serverapp.strategy import QFedAvg

from fedsim.algorithms.base import TAKE_ALL_SHOWN, Algorithm
from fedsim.checks import require_number
from fedsim.training import ClientHalf, Device

LOSS_KEY = "received_loss"


class ReportsReceivedLoss(ClientHalf):
    """Sends F_k(w_t), the loss of the server's arrays on the device's own examples before training (algorithm 2)."""

    def begin(self, device: Device) -> dict[str, float]:
        """The mean loss over all examples, in evaluation mode."""
        device.model.eval()
        with torch.no_grad():
            loss = float(device.objective(device.model(device.data.x), device.data.y))
        device.model.train()
        return {LOSS_KEY: loss}


def qfedavg(q: float, client_lr: float) -> Algorithm:
    """q = 0 weighs all clients alike. client_lr: the clients' step size; 1 / client_lr stands for the Lipschitz constant."""
    require_number("strategy.q", q, low=0)
    require_number("strategy.client_lr", client_lr, above=0)
    strategy = QFedAvg(client_lr, q, LOSS_KEY, **TAKE_ALL_SHOWN)
    return Algorithm(strategy, ReportsReceivedLoss(), steps_buffers=True, one_vector=False)
