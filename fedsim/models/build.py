"""From a model's factory to a module that fits the dataset, with the weights that the run starts from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.data.dataset import Dataset
from fedsim.training.arrays import all_finite, load_arrays, model_arrays
from fedsim.types import FedsimError, Params

MIXING_LAYERS = (nn.modules.batchnorm._BatchNorm,)
"""Layers whose output for one example depends on the others of its batch."""


def build_model(factory: Callable[..., nn.Module], dataset: Dataset, seed: int) -> nn.Module:
    """The module, initialised by the run's seed and tried on one example. `factory` gets what it asks for by name of
    `input_shape` (one preprocessed example) and `num_outputs`.
    """
    offered = {"input_shape": dataset.input_shape, "num_outputs": dataset.num_outputs}
    wanted = inspect.signature(factory).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    with rng.seeded_globally(seed, 0, rng.SERVER, "model"):
        model = factory(**{k: v for k, v in offered.items() if k in wanted or takes_all})
    if not isinstance(model, nn.Module):
        raise FedsimError(f"model._target_ gives a {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise FedsimError("model._target_ gives a module without trainable parameters; nothing could be learnt")
    _try_on_one_example(model, dataset)
    return model


def moving_arrays(model: nn.Module) -> dict[str, str]:
    """Each trainable array's name, and the name by which it is known first: layers that share a weight have it under two.

    Frozen weights and buffers are not among them: under a client-level mechanism they stay as the server has them.
    """
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        name: first.setdefault(array.data_ptr(), name)
        for name, array in state.items()
        if isinstance(array, nn.Parameter) and array.requires_grad
    }


def made_up_batch(dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """x (size, ...) and y (size, ...) in the dataset's shapes and types and of no value of its own: a plan reads none."""
    one = dataset.preprocess(dataset.one_row[0])
    draw = rng.generator(0, 0, rng.SERVER, "made-up batch")
    if one.is_floating_point():
        x = torch.randn(size, *one.shape[1:], generator=draw).to(one.dtype)
    else:
        x = torch.randint(2, (size, *one.shape[1:]), generator=draw).to(one.dtype)
    if dataset.task == "regression":
        return x, torch.randn(size, generator=draw)
    return x, torch.randint(dataset.num_outputs, (size, *dataset.one_row[1].shape[1:]), generator=draw)


@torch.no_grad()
def _try_on_one_example(model: nn.Module, dataset: Dataset) -> None:
    x, _ = made_up_batch(dataset, 1)
    expected: Sequence[int] = (1, dataset.num_outputs)
    if dataset.task == "next_token":
        expected = (1, x.shape[1], dataset.num_outputs)
    try:
        given = tuple(model.eval()(x).shape)
    except FedsimError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FedsimError(
            f"the model cannot take inputs of shape {tuple(x.shape)} ({reason}); choose another model=..."
        ) from error
    if given != tuple(expected):
        raise FedsimError(
            f"the model gives outputs of shape {given} where {dataset.name} needs {tuple(expected)}; check model=..."
        )


def mixing_layers(model: nn.Module) -> list[str]:
    """Names of the layers that mix examples (BatchNorm)."""
    return [name for name, module in model.named_modules() if isinstance(module, MIXING_LAYERS)]


def refuse_mixing(model: nn.Module, why: str) -> None:
    """Refuse a model that mixes examples; `why` names what cannot take it, as in `privacy=example`."""
    if names := mixing_layers(model):
        raise FedsimError(
            f"{why} cannot take BatchNorm ({', '.join(names[:3])}), which mixes the examples of a batch; "
            "use torch.nn.GroupNorm in its place, or model=resnet, which does"
        )


def load_initial_weights(model: nn.Module, path: str | Path, partial: bool) -> None:
    """Start from a safetensors file or a state dict saved by torch (read with weights_only=True: no code runs).

    partial: take the arrays whose name and shape fit (a backbone under a new head) and leave the rest as initialised.
    """
    given, own = _read_arrays(Path(path)), model_arrays(model)
    fitting = {name: array for name, array in given.items() if name in own and own[name].shape == array.shape}
    wrong = sorted((given.keys() | own.keys()) - fitting.keys())
    if wrong and not partial:
        raise FedsimError(
            f"init.weights={path} does not fit the model at {', '.join(wrong[:4])}"
            f"{' ...' if len(wrong) > 4 else ''}; set init.partial=true to take only what fits, or change model=..."
        )
    if not fitting:
        raise FedsimError(f"init.weights={path} has no array that fits the model; check model=...")
    if not all_finite(fitting.values()):
        raise FedsimError(f"init.weights={path} holds NaN or Inf; give another file")
    load_arrays(model, {**own, **fitting})


def _read_arrays(path: Path) -> Params:
    if not path.is_file():
        raise FedsimError(f"init.weights={path} is not there; give a .safetensors file or a state dict saved by torch")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        arrays = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FedsimError(
            f"init.weights={path} cannot be read as weights alone ({type(error).__name__}); save a state dict"
        ) from error
    if isinstance(arrays, dict) and isinstance(arrays.get("state_dict"), dict):
        arrays = arrays["state_dict"]
    if not isinstance(arrays, dict) or not all(isinstance(a, torch.Tensor) for a in arrays.values()):
        raise FedsimError(f"init.weights={path} is not a state dict (names to tensors); save model.state_dict()")
    return arrays
