"""How much work training is: FLOPs of an example and of a step, and the bytes that it needs at a time.

FLOPs are counted as papers do: 2 for a multiply-add of matrix products and convolutions (torch.utils.flop_counter), none for what
is done number by number (ReLU, normalisation, pooling, the loss), for a strategy's correction or for clipping a step's gradient.

Bytes are what must be held as a backward pass begins: parameters and buffers, gradients, the optimiser's state, what the backward
pass will read, and the batch. A framework's own size and its kernels' scratch memory are not among them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedsim import rng
from fedsim.training.arrays import distinct, model_arrays, trained_weights
from fedsim.training.dpsgd import MAX_NUMBERS, MAX_ROWS
from fedsim.training.objectives import Objective
from fedsim.training.settings import LocalTraining
from fedsim.types import FedsimError

STEP, MOMENTUM, DECAY, STATE = 2, 2, 2, 6
"""FLOPs a weight: of w - lr v, of momentum v + g, of g + decay w; and of each number of another optimiser's state (AdamW: 14)."""

PRIVATE = 4
"""FLOPs a weight and example of DP-SGD: its gradient's square norm, and adding it, scaled, to the sum (arXiv 1607.00133)."""


@dataclass(frozen=True)
class Work:
    """What training asks of a device.

    flops_per_example: forward and backward pass. flops_per_step: the optimiser's. fixed_bytes: whatever the batch.
    bytes_per_example: with each example of a batch. most_rows: examples that are in memory at a time, inf for the whole batch.
    """

    flops_per_example: float
    flops_per_step: float
    fixed_bytes: float
    bytes_per_example: float
    most_rows: float = math.inf

    def flops(self, examples: np.ndarray | float, steps: np.ndarray | float) -> np.ndarray:
        """FLOPs (n,) of so many examples, each counted as often as it is used, in so many steps."""
        return self.flops_per_example * np.asarray(examples, dtype=np.float64) + self.flops_per_step * np.asarray(steps)

    def memory(self, batch: np.ndarray | float) -> np.ndarray:
        """Bytes (n,) at a time, for batches (n,) of so many examples."""
        return self.fixed_bytes + self.bytes_per_example * np.minimum(batch, self.most_rows)


def count_work(
    model: nn.Module, objective: Objective, settings: LocalTraining, x: Tensor, y: Tensor, private: bool = False
) -> Work:
    """Count by running a copy of the model on the CPU, on all of the batch and on half of it: both are linear in its size.

    x: (n, ...), y: (n, ...), n even and at least 4. private: each example's gradient is held, written out, as DP-SGD does where
    no shorter way is known of a layer, of at most as many examples at a time as `dpsgd.py` takes: this overestimates dense
    layers, whose gradients `layer_gradients.Outer` never writes out. The model stays as it is. Raises FedsimError where it, or
    the optimiser, does not run.
    """
    assert len(x) >= 4 and len(x) % 2 == 0, "a half of it must still be a batch"
    try:
        return _count(copy.deepcopy(model).cpu().train(), objective, settings, x.cpu(), y.cpu(), private)
    except FedsimError:
        raise
    except Exception as error:  # whatever a model or an optimiser of somebody's own raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FedsimError(
            f"what training costs a device cannot be counted on the CPU ({reason}); use fleet=ideal, or change model=... or "
            "client=..."
        ) from error


def count_prediction(model: nn.Module, x: Tensor) -> float:
    """FLOPs of predicting one example: a forward pass alone. x: (n, ...), n even and at least 4. It has run before."""
    assert len(x) >= 4 and len(x) % 2 == 0, "a half of it must still be a batch"
    own = copy.deepcopy(model).cpu().eval()
    flops = []
    for part in (x.cpu()[: len(x) // 2], x.cpu()):
        with _decomposed(), torch.no_grad(), _Counter() as counter:
            own(part.clone())
        flops.append(counter.flops)
    return (flops[1] - flops[0]) / (len(x) // 2)


def _count(
    model: nn.Module, objective: Objective, settings: LocalTraining, x: Tensor, y: Tensor, private: bool
) -> Work:
    """See `count_work`; the model is changed."""
    weights = trained_weights(model)
    half = len(x) // 2
    few, many = (_pass(model, weights, objective, x[:n].clone(), y[:n].clone()) for n in (half, 2 * half))
    numbers = sum(weight.numel() for weight in weights)
    optimiser = _optimiser(settings, weights, many.gradients)
    flops, held = (many.flops - few.flops) / half, (many.held - few.held) / half
    fixed = _bytes_of(model_arrays(model).values()) + sum(g.nbytes for g in many.gradients) + optimiser.held
    return Work(
        flops_per_example=flops + PRIVATE * numbers * private,
        flops_per_step=many.flops - 2 * half * flops + optimiser.flops,
        fixed_bytes=many.held - 2 * half * held + fixed,
        bytes_per_example=held + sum(g.nbytes for g in many.gradients) * private,
        most_rows=max(1, min(MAX_ROWS, MAX_NUMBERS // numbers)) if private else math.inf,
    )


class _Counted(NamedTuple):
    """flops; held: bytes beside the model; gradients: of the weights."""

    flops: float
    held: float
    gradients: list[Tensor]


def _pass(model: nn.Module, weights: list[Tensor], objective: Objective, x: Tensor, y: Tensor) -> _Counted:
    """One forward and backward pass. held: what the backward pass reads of it, each storage once, and the batch."""
    known = {array.untyped_storage().data_ptr() for array in (*model_arrays(model).values(), x, y)}
    saved: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage  # held, so that its address comes only once
        return tensor

    with _decomposed(), _Counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = objective(model(x), y)
        gradients = distinct(torch.autograd.grad(loss, weights, materialize_grads=True))
    held = sum(storage.nbytes() for storage in saved.values()) + x.nbytes + y.nbytes
    return _Counted(counter.flops, held, gradients)


@contextmanager
def _decomposed() -> Iterator[None]:
    """Inside, layers are made of products that can be counted, and the draws of dropout leave no trace outside.

    oneDNN runs an LSTM as one operation of which nothing is known; so do the fused kernels of attention.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mkldnn: Any = torch.backends.mkldnn  # whose own `flags` sets others too, and warns of them
    before, mkldnn.enabled = mkldnn.enabled, False
    try:
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            rng.seeded_globally(0, 0, rng.SERVER, "counted work"),
        ):
            yield
    finally:
        mkldnn.enabled = before


class _Counter(TorchDispatchMode):
    """Adds up FLOPs by torch's formulas, in a hundredth of the time that its FlopCounterMode takes to start."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._formulas: dict[Any, Callable[..., int]] = {
            **flop_registry,
            torch.ops.aten.convolution_backward: _convolution_backward,
        }

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip it torch would import it, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *others: Any, out_val: Any) -> int:
    """FLOPs of the gradients of a convolution: each as many as the forward pass, strided, grouped, transposed or not.

    gradient: of what it gave. The last of the others says which gradients are wanted: the input's, the weight's, the bias's.
    """
    transposed, wanted = others[4], others[7]
    positions = math.prod((x if transposed else gradient).shape[2:])
    return 2 * len(x) * positions * weight.numel() * (bool(wanted[0]) + bool(wanted[1]))


class _Optimiser(NamedTuple):
    """flops: of a step. held: bytes of its state."""

    flops: float
    held: float


def _optimiser(settings: LocalTraining, weights: list[Tensor], gradients: list[Tensor]) -> _Optimiser:
    """What a step costs and keeps: plain SGD's by its formula, a torch optimiser's by what it keeps after one step."""
    numbers = sum(weight.numel() for weight in weights)
    optimizer = settings.make_optimizer(weights, settings.lr)
    if optimizer is None:
        flops = STEP + MOMENTUM * (settings.momentum > 0) + DECAY * (settings.weight_decay > 0)
        return _Optimiser(flops * numbers, sum(g.nbytes for g in gradients) * (settings.momentum > 0))
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    state = [kept for one in optimizer.state.values() for kept in one.values() if isinstance(kept, Tensor)]
    return _Optimiser(STEP * numbers + STATE * sum(kept.numel() for kept in state if kept.dim()), _bytes_of(state))


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Each storage once: layers may share a weight."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
