"""pfl's simulated backend and FederatedAveraging on the same models and arrays; runs in pfl's own environment.

    python pfl_loop.py WORK.npz '{"rounds": 4, ...}'

WORK.npz: x, y of all clients one after the other, `sizes` of each client, and the weights as `weight/NAME`. pfl trains with its
own SGD bridge, on the batches in the order of the rows, and samples clients one after the other. Under torchrun each process
trains its share of the cohort.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

MARK = "turn over: "


class Laps(TrainingProcessCallback):
    """Seconds of each round; the first is from the start of the process on, and not counted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.stamps: list[float] = []
        self.last = time.perf_counter()

    def after_central_iteration(self, *arguments: Any, **keys: Any) -> tuple[bool, Metrics]:
        """A round is over."""
        if pytorch_ops.get_default_device().type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.stamps.append(time.time())
        self.last = time.perf_counter()
        return False, Metrics()


class Trainable(torch.nn.Module):
    """A model with what pfl asks of one."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (b, ...), y (b,) or of a text (b, length)."""
        given = self.model(x)
        return torch.nn.functional.cross_entropy(given.flatten(0, -2), y.flatten())

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """None: nothing is evaluated."""
        return {}


def load(path: str, spec: dict[str, Any]) -> tuple[Trainable, dict[int, PyTorchTensorDataset]]:
    """The model with its initial weights, and each client's tensors."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    module, _, name = spec["model"].rpartition(".")
    model = getattr(importlib.import_module(module), name)(**spec["arguments"])
    model.load_state_dict({k.removeprefix("weight/"): a for k, a in arrays.items() if k.startswith("weight/")})
    device, sizes = pytorch_ops.get_default_device(), arrays["sizes"].tolist()
    columns = zip(arrays["x"].split(sizes), arrays["y"].split(sizes), strict=True)
    data = {client: PyTorchTensorDataset((x.to(device), y.to(device))) for client, (x, y) in enumerate(columns)}
    return Trainable(model.train()), data


def play(path: str, spec: dict[str, Any]) -> dict[str, Any]:
    """seconds: of each timed round. first_round_over: the time. weights: after the last round, where they are asked for."""
    laps = Laps()
    module, data = load(path, spec)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = FederatedDataset(data.__getitem__, get_user_sampler("minimize_reuse", list(data)))
    rounds = NNAlgorithmParams(
        central_num_iterations=spec["rounds"] + 1,
        evaluation_frequency=spec["rounds"] + 2,
        train_cohort_size=spec["cohort"],
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(
        local_batch_size=spec["batch_size"], local_num_epochs=spec["epochs"], local_learning_rate=spec["lr"]
    )
    backend = SimulatedBackend(training_data=users, val_data=users)
    FederatedAveraging().run(rounds, backend, model, local, callbacks=[laps], send_metrics_to_platform=False)
    found: dict[str, Any] = {"seconds": laps.seconds[1:], "first_round_over": laps.stamps[0]}
    if "weights" in spec:
        np.savez(spec["weights"], **{name: a.detach().cpu().numpy() for name, a in module.model.state_dict().items()})
    return found


def main() -> None:
    """Print what was found, once however many processes there are."""
    spec = json.loads(sys.argv[2])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    found = play(sys.argv[1], spec)
    if pytorch_ops.distributed.global_rank == 0:
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
