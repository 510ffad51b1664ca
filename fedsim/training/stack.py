"""Many copies of one model, each client's with weights of its own, that run as one.

The model's own `forward` runs; only its layers are exchanged, for those of `stand_ins.py`. A model with one copy is the
quickest way to train one client too: dense layers take their step without a gradient ever being written out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from fedsim.training.execution import Execution
from fedsim.training.stand_ins import DRAWS, Dense, Drop, NoStandIn, StandIn, stand_in
from fedsim.types import Params


class Call(NamedTuple):
    """A layer's call: what it took, and where the gradient of what it gave will arrive."""

    name: str
    layer: nn.Module
    inputs: Tensor
    edge: GradientEdge


class Copies:
    """`width` clients' arrays of one model, each array with a row for each client. `model` itself is neither changed nor run.

    active: how many clients train now; they are the first. sizes: rows of each client's batch that count, where it is filled up.
    draws, generators: whether there are random layers, and what each client's draw from. arrays: (width, ...) parameters and
    buffers by name, each once.
    calls: of the last run, see `Stack`. compiled: whether `torch.compile` runs the model, in which no call is noted.
    """

    def __init__(self, model: nn.Module, width: int, compiled: bool = False, precision: str = "float32") -> None:
        self.width, self.active, self.compiled, self._precision = width, 0, compiled, precision
        self.sizes: list[int] = []
        self.draws = False
        self.generators: list[torch.Generator] = []
        self.calls: list[Call] = []
        self.arrays: Params = {}
        self.aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, array in model.state_dict(keep_vars=True).items():
            self.aliases[name] = first.setdefault(id(array), name)
            if self.aliases[name] == name:
                self.arrays[name] = array.detach().new_empty(width, *array.shape)
        self.trained = [name for name, array in model.named_parameters() if array.requires_grad]
        self.num_trained = sum(self.arrays[name][0].numel() for name in self.trained)
        self._weights: Params = {}
        if hooked := [name for name, array in model.named_parameters() if array._backward_hooks]:
            raise NoStandIn(f"{hooked[0]} has a hook on its gradient")

    def __call__(self, x: Tensor) -> Tensor:
        """x: (active * b, ...) -> outputs, of every client's rows by its own weights."""
        raise NotImplementedError

    @torch.no_grad()
    def load(self, given: Sequence[Params], but: str | None = None) -> None:
        """One client's arrays each, at most `width` of them; all may be the very same object. but: a name to leave out."""
        shared = all(one is given[0] for one in given)
        for name, array in self.arrays.items():
            if name == but:
                continue
            if shared:
                array[: len(given)].copy_(given[0][name])
            else:
                for row, one in enumerate(given):
                    array[row].copy_(one[name])

    def narrow(self, active: int) -> None:
        """Let the first `active` clients train; the others keep what they have."""
        if active == self.active:
            return
        self.active = active
        trained = set(self.trained)
        self._weights = {n: array[:active].requires_grad_(n in trained) for n, array in self.arrays.items()}

    def weight(self, name: str) -> Tensor:
        """(active, ...) of a parameter, by any of its names."""
        return self._weights[self.aliases[name]]

    def weights(self) -> list[Tensor]:
        """(active, ...) what training changes, in the order of the model's parameters."""
        return [self._weights[name] for name in self.trained]

    def client(self, row: int, clone: bool = False) -> Params:
        """One client's arrays, under every name that the model's state dict has; no copies but where asked for."""
        own = {name: array[row].clone() if clone else array[row] for name, array in self.arrays.items()}
        return {name: own[first] for name, first in self.aliases.items()}

    def total(self, weights: Tensor) -> Params:
        """The sum of the first clients' arrays, each times its weight. weights: (clients,); one of weight 0 is left out."""
        found = weighted_sum(self.arrays, weights)
        return {name: found[first] for name, first in self.aliases.items()}

    def finite(self, clients: int) -> Tensor:
        """(clients,) whether all of a client's numbers are finite."""
        return finite_rows(self.arrays, clients)

    @property
    def exact(self) -> bool:
        """Whether a step's products are of the weights' own type."""
        return self._precision != "bfloat16"

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which numbers a step's products are computed."""
        if self.exact:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


class Stack(Copies):
    """Copies whose layers are those of `stand_ins.py`.

    captures: of which layers calls are noted in `calls`. Raises NoStandIn where the model cannot be stacked.
    """

    def __init__(self, model: nn.Module, width: int, compiled: bool = False, precision: str = "float32") -> None:
        super().__init__(model, width, compiled, precision)
        shared = {id(array): array for array in [*model.parameters(), *model.buffers()]}
        self.network = _exchanged(self, copy.deepcopy(model, shared))
        self.network.train()
        self.layers = {module.name: module for module in self.network.modules() if isinstance(module, StandIn)}
        self.draws = any(isinstance(layer, Drop) for layer in self.layers.values())
        self.captures: Callable[[str, nn.Module], bool] = lambda name, layer: False
        self._run = _compiled(self.network) if compiled else self.network

    def capture(self, name: str, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """See Holder."""
        if self.captures(name, layer):
            self.calls.append(Call(name, layer, inputs.detach(), torch.autograd.graph.get_gradient_edge(output)))

    def __call__(self, x: Tensor) -> Tensor:
        """See Copies; `calls` holds what was captured on the way."""
        self.calls.clear()
        return self._run(x)


class Mapped(Copies):
    """Copies of any model that `torch.func.vmap` can trace; every gradient is written out."""

    def __init__(self, model: nn.Module, width: int, compiled: bool = False, precision: str = "float32") -> None:
        super().__init__(model, width, compiled, precision)
        if draws := [name for name, module in model.named_modules() if isinstance(module, DRAWS)]:
            raise NoStandIn(f"{draws[0] or 'the model itself'} draws random numbers")
        if any(True for _ in model.buffers()):
            raise NoStandIn("it keeps arrays that are not trained")
        shared = {id(array): array for array in model.parameters()}
        self.network = copy.deepcopy(model, shared).train()

        def one(weights: Params, x: Tensor) -> Tensor:
            return torch.func.functional_call(self.network, weights, (x,), tie_weights=True)

        mapped = torch.func.vmap(one)
        self._run = _compiled(mapped) if compiled else mapped

    def __call__(self, x: Tensor) -> Tensor:
        """See Copies."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of batching rules that are slow
            return self._run(self._weights, x.unflatten(0, (self.active, -1))).flatten(0, 1)


def weighted_sum(arrays: Params, weights: Tensor) -> Params:
    """The sum of the first clients' rows, each times its weight. weights: (clients,); a row of weight 0 is left out."""
    rows = weights.nonzero().flatten()
    everyone, found = len(rows) == len(weights), dict[str, Tensor]()
    for name, array in arrays.items():
        own = array[: len(weights)] if everyone else array[rows]
        wide = torch.promote_types(own.dtype, torch.float32) if own.is_floating_point() else torch.float64
        found[name] = torch.tensordot(weights[rows].to(wide), own.to(wide), 1)
    return found


def finite_rows(arrays: Params, clients: int) -> Tensor:
    """(clients,) whether all numbers in a row are finite. A sum tells in a fraction of the time; it may overflow."""
    flat = [array[:clients].reshape(clients, -1) for array in arrays.values()]
    finite = torch.isfinite(torch.stack([array.sum(1) for array in flat])).all(0)
    return finite if finite.all() else torch.stack([torch.isfinite(array).all(1) for array in flat]).all(0)


def _compiled(function: Any) -> Any:
    """By torch.compile; on CUDA with CUDA graphs."""
    return torch.compile(function, mode="reduce-overhead" if torch.cuda.is_available() else None)


def fusible(stack: Stack) -> dict[str, list[str]]:
    """Dense layers whose step needs no written-out gradient, and their weights: trained, and nobody else's."""
    users: dict[str, int] = {}
    for first in stack.aliases.values():
        users[first] = users.get(first, 0) + 1
    found = {}
    for name, layer in stack.layers.items():
        if type(layer) is Dense:
            names = [f"{layer.dot}{key}" for key in ("weight", "bias") if getattr(layer.layer, key) is not None]
            if all(users[stack.aliases[n]] == 1 and n in stack.trained for n in names):
                found[name] = names
    return found


def _exchanged(stack: Stack, model: nn.Module) -> nn.Module:
    """The model with its layers exchanged for stand-ins; one that is used in two places stays one."""
    done: dict[int, nn.Module | None] = {}
    if (itself := stand_in(stack, "", model)) is not None:
        return itself
    for name, module in list(model.named_modules()):
        for key, child in list(module._modules.items()):  # named_children leaves out what has two names
            if child is None or isinstance(child, StandIn):
                continue
            if id(child) not in done:
                done[id(child)] = stand_in(stack, f"{name}.{key}" if name else key, child)
            if (new := done[id(child)]) is not None:
                setattr(module, key, new)
    return model


def make_copies(model: nn.Module, execution: Execution) -> Copies:
    """Of the execution's way, which is not `one`. Raises NoStandIn where that way does not take the model."""
    kind = Stack if execution.way == "lockstep" else Mapped
    return kind(model, execution.width, execution.compile, execution.precision)
