"""Gradients of single examples, in three ways that agree: `fast`, `opacus` and `functorch`.

A way is a context manager that makes a model ready and gives a function (x, y) -> one `Gradients` a parameter; leaving it
leaves no hook behind. The loss of an example is the objective of a batch of that one example.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.training.layer_gradients import RULES, Gradients, NoRule, Stacked, own_layers
from fedsim.training.objectives import ONE_TARGET, Objective
from fedsim.training.unchanged import refuse_max_norm, unchanged
from fedsim.types import FedsimError, MissingPackageError

NOT_FINITE = (
    "an example's gradient is NaN or Inf, which no clipping bounds, so that nothing of this client may be sent; "
    "lower client.lr, or look for NaN in the dataset"
)


PerExample = Callable[[Tensor, Tensor], list[Gradients]]
"""(x, y) of b examples -> gradients of each, a parameter at a time, in the order of `trainable(model)`."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def sum_of_losses(objective: Objective, outputs: Tensor, y: Tensor) -> Tensor:
    """The examples' losses added up, each the objective of a batch of one."""
    if objective in ONE_TARGET:
        return objective(outputs, y) * len(y)
    return torch.func.vmap(lambda output, target: objective(output[None], target[None]))(outputs, y).sum()


@contextmanager
def functorch(model: nn.Module, objective: Objective) -> Iterator[PerExample]:
    """`torch.func.vmap` of the gradient: any module that it can trace, each example truly alone."""
    weights = trainable(model)

    def loss_of(arrays: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return objective(torch.func.functional_call(model, arrays, (x[None],)), y[None])

    gradient = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0), randomness="different")

    def per_example(x: Tensor, y: Tensor) -> list[Gradients]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of batching rules that are slow, such as an LSTM's
            rows = gradient({name: weight.detach() for name, weight in weights.items()}, x, y)
        return [Stacked(rows[name]) for name in weights]

    yield per_example


@contextmanager
def opacus(model: nn.Module, objective: Objective) -> Iterator[PerExample]:
    """Opacus's GradSampleModule: layers that it has rules for. Its hooks are added here once, and removed at the end."""
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError as error:
        raise MissingPackageError("privacy.way=opacus needs Opacus; pip install opacus") from error
    weights = list(trainable(model).values())
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)

    def per_example(x: Tensor, y: Tensor) -> list[Gradients]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of hooks on a layer whose input needs no gradient
            sum_of_losses(objective, wrapped(x), y).backward()
        rows = [getattr(weight, "grad_sample", None) for weight in weights]
        given = [Stacked(w.new_zeros(len(x), *w.shape) if r is None else r) for w, r in zip(weights, rows, strict=True)]
        wrapped.zero_grad(set_to_none=True)
        return list[Gradients](given)

    try:
        yield per_example
    finally:
        wrapped.to_standard_module()
        for weight in weights:
            weight.grad = None
        for module in model.modules():  # where a step broke off, these still hold what it took
            module.__dict__.pop("activations", None)
            module.__dict__.pop("max_batch_len", None)


@contextmanager
def fast(model: nn.Module, objective: Objective) -> Iterator[PerExample]:
    """One forward and one backward pass that stops at the layers' outputs; the rest follows from what layers took and gave.

    The clipped sum comes from the same arrays as the norms, so there is no second backward pass (Bu et al. 2022, arXiv
    2210.00038). Layers are those of RULES, each with weights of its own and called at most once.
    """
    layers = own_layers(model)
    weights = trainable(model)
    calls: dict[nn.Module, tuple[Tensor, torch.autograd.graph.GradientEdge]] = {}

    def capture(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in calls:
            raise NoRule(f"{layer} is called twice")
        # the edge, not the output: a ReLU in place would change what the output stands for
        calls[layer] = inputs[0].detach(), torch.autograd.graph.get_gradient_edge(output)

    def per_example(x: Tensor, y: Tensor) -> list[Gradients]:
        calls.clear()
        loss = sum_of_losses(objective, model(x), y)
        given: dict[int, Gradients] = {}
        outputs = torch.autograd.grad(loss, [edge for _, edge in calls.values()], allow_unused=True)
        for (layer, (inputs, _)), output in zip(calls.items(), outputs, strict=True):
            if output is not None:
                for name, gradients in RULES[type(layer)](layer, inputs, output).items():
                    given[id(getattr(layer, name))] = gradients
        calls.clear()
        return [given.get(id(w)) or Stacked(w.new_zeros(len(x), *w.shape)) for w in weights.values()]

    handles = [layer.register_forward_hook(capture) for layer in layers]
    try:
        yield per_example
    finally:
        for handle in handles:
            handle.remove()


Way = Callable[[nn.Module, Objective], AbstractContextManager[PerExample]]

WAYS: dict[str, Way] = {"fast": fast, "opacus": opacus, "functorch": functorch}
"""In the order in which `auto` tries them: quickest first."""


def choose(way: str, model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> str:
    """The way to use: `way` itself, or for `auto` the first of WAYS that gives the model's gradients; tried on three examples.

    x: (n, ...), y: (n, ...), at least one. Raises FedsimError where the model mixes examples, where running it changes its
    arrays, and where no way gives its gradients.
    """
    x, y = (x[:3], y[:3]) if len(x) > 1 else (torch.cat([x, x.flip(-1)]), torch.cat([y, y]))
    was_training, reasons = model.training, []
    try:
        model.train()
        refuse_max_norm(model)
        with unchanged(model):
            _refuse_mixing(model, x)
        for name in WAYS if way == "auto" else [way]:
            try:
                with unchanged(model):
                    wrong = _disagrees(name, model, objective, x, y)
            except FedsimError as error:
                if way != "auto" or not isinstance(error, MissingPackageError):
                    raise
                wrong = str(error)
            except Exception as error:  # whatever Opacus or functorch raise about a module of somebody's own
                wrong = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if not wrong:
                return name
            reasons.append(f"{name}: {wrong}")
    finally:
        model.train(was_training)
    raise FedsimError(
        f"the gradients of single examples, which privacy=example clips, cannot be had of this model ({'; '.join(reasons)}); "
        f"use another model=...{'' if way == 'auto' else ' or privacy.way=auto'}"
    )


def _disagrees(name: str, model: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> str:
    """What is wrong with a way on this model; empty where each example's gradient is the one that autograd gives.

    functorch's are autograd's own; it need only run (its dropout draws otherwise).
    """
    weights = list(trainable(model).values())
    with rng.seeded_globally(0, 0, rng.SERVER, "probe"):
        outputs = model(x)
    losses = [objective(outputs[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    expected = [torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True) for loss in losses]
    if not all(bool(torch.isfinite(gradient).all()) for row in expected for gradient in row):
        raise FedsimError(NOT_FINITE)
    with rng.seeded_globally(0, 0, rng.SERVER, "probe"), WAYS[name](model, objective) as per_example:
        given = per_example(x, y)
    for example, row in enumerate(expected if name != "functorch" else []):
        chosen = torch.eye(len(x), device=x.device, dtype=weights[0].dtype)[example]
        found = [torch.zeros_like(weight) for weight in weights]
        for gradients, into in zip(given, found, strict=True):
            gradients.add_to(into, chosen)
        gap = max(float((a - b).abs().max()) for a, b in zip(found, row, strict=True))
        if gap > 1e-3 * max(float(gradient.abs().max()) for gradient in row):
            return "its gradients are not autograd's, as where weights are used outside of their own layer"
    return ""


@torch.no_grad()
def _refuse_mixing(model: nn.Module, x: Tensor) -> None:
    """Refuse a model whose output for one example changes with its neighbour: then clipping bounds nothing."""
    given = []
    for neighbour in (x[:1], x[-1:], x[-1:].flip(-1)):
        with rng.seeded_globally(0, 0, rng.SERVER, "probe"):
            given.append(model(torch.cat([x[:1], neighbour]))[0])
    if not all(torch.allclose(given[0], one, rtol=1e-3, atol=1e-5, equal_nan=True) for one in given[1:]):
        raise FedsimError(
            "privacy=example cannot take a model that mixes the examples of a batch, as this one does (its output for one "
            "changes with another); use another model=..., or torch.nn.GroupNorm in place of what mixes"
        )
