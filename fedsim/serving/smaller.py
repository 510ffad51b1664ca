"""Two ways to a smaller model: a student that learns from the run's model, and weights set to zero."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.utils import prune

from fedsim import rng
from fedsim.build import make_model
from fedsim.checks import require_choice, require_int, require_number
from fedsim.paths import conf_dir
from fedsim.serving.rows import MOST_ROWS, training_rows
from fedsim.serving.source import Trained
from fedsim.training.objectives import IGNORED_TARGET, OBJECTIVES
from fedsim.types import FedsimError

MOST_NUMBERS = 50_000_000
"""Outputs of the teacher that are kept while the student learns."""

WIDTHS = ("hidden", "channels", "widths")
"""Keys of a model that say how wide it is."""


@dataclass(frozen=True)
class Distillation:
    """student: half (the run's own model at half its widths), or a model of conf/model/ by its name.

    temperature: of both models' probabilities. hard: weight of the true labels beside the teacher's (arXiv 1503.02531, section 2).
    epochs, batch_size, lr: of Adam over the rows.
    """

    student: str = "half"
    temperature: float = 4.0
    hard: float = 0.1
    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.001

    def __post_init__(self) -> None:
        require_number("distill.temperature", self.temperature, above=0)
        require_number("distill.hard", self.hard, low=0, high=1)
        require_int("distill.epochs", self.epochs, low=1)
        require_int("distill.batch_size", self.batch_size, low=1)
        require_number("distill.lr", self.lr, above=0)


def student_config(run: Trained, name: str) -> dict[str, Any]:
    """The `model` part of the configuration for the student. Raises FedsimError where the run's model has no width to halve."""
    options = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if path.stem != "custom")
    if require_choice("distill", name, ("half", *options)) != "half":
        return OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))  # type: ignore[return-value]
    own: dict[str, Any] = OmegaConf.to_container(run.cfg.model, resolve=True)  # type: ignore[assignment]
    narrow = {key: _half(own[key]) for key in WIDTHS if key in own}
    if not narrow:
        raise FedsimError(
            f"{own['_target_']} has none of {', '.join(WIDTHS)} to halve for a student; name one, as in distill=mlp"
        )
    return {**own, **narrow}


def _half(width: Any) -> Any:
    return [_half(one) for one in width] if isinstance(width, list) else max(1, int(width) // 2)


def distil(run: Trained, how: Distillation) -> tuple[nn.Module, dict[str, Any]]:
    """A student on the CPU, and what is to be told of it. Raises FedsimError for a run that promised privacy."""
    rows = training_rows(run, min(MOST_ROWS, max(1, MOST_NUMBERS // run.model(run.prepared(1)).numel())))
    model_cfg = student_config(run, how.student)
    student = make_model(OmegaConf.merge(run.cfg, {"model": None}, {"model": model_cfg}), run.dataset)  # type: ignore[arg-type]
    with torch.no_grad():
        x = torch.cat([run.population.preprocess(part) for part in rows.x.split(1024)])
        taught = torch.cat([run.model(part) for part in x.split(256)])
    _learn(student, x, taught, rows.y, run.dataset.task, how, run.seed)
    return student.eval(), {**asdict(how), "student": model_cfg, "rows": len(rows.x), "parameters": count(student)}


def _learn(student: nn.Module, x: Tensor, taught: Tensor, y: Tensor, task: str, how: Distillation, seed: int) -> None:
    """x: (n, ...) preprocessed, taught: (n, ...) the teacher's outputs, y: (n, ...) targets."""
    optimizer = torch.optim.Adam(student.parameters(), how.lr)
    draw = rng.generator(seed, 0, rng.SERVER, "export distil")
    student.train()
    with rng.seeded_globally(seed, 0, rng.SERVER, "export dropout"):
        for _ in range(how.epochs):
            for batch in torch.randperm(len(x), generator=draw).split(how.batch_size):
                optimizer.zero_grad()
                loss = distillation_loss(student(x[batch]), taught[batch], y[batch], task, how)
                loss.backward()
                optimizer.step()


def distillation_loss(outputs: Tensor, taught: Tensor, y: Tensor, task: str, how: Distillation) -> Tensor:
    """(1 - hard) T^2 KL(teacher at T || student at T) + hard x the task's own loss; for regression both are squared errors.

    T^2 keeps the two gradients' sizes in proportion whatever T is (arXiv 1503.02531, section 2). outputs, taught: (b, ...).
    """
    own = OBJECTIVES[task](outputs, y)
    if task == "regression":
        return (1 - how.hard) * F.mse_loss(outputs, taught) + how.hard * own
    known = y.flatten() != IGNORED_TARGET
    log_student, log_teacher = (
        F.log_softmax(one.flatten(0, -2)[known] / how.temperature, -1) for one in (outputs, taught)
    )
    soft = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return (1 - how.hard) * how.temperature**2 * soft + how.hard * own


def pruned(model: nn.Module, amount: float) -> tuple[nn.Module, dict[str, Any]]:
    """A copy with the smallest share `amount` of its layers' weights, by magnitude and over all layers together, set to zero.

    Biases, norms and embeddings keep theirs. Works on the weights alone: nothing is trained afterwards. Raises FedsimError
    where no layer has weights to prune.
    """
    require_number("prune", amount, above=0, below=1)
    masked, copied = copy.deepcopy(model), copy.deepcopy(model)
    chosen = _weights(masked)
    if not chosen:
        raise FedsimError("the model has no dense, convolutional or recurrent layer to prune; leave prune out")
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=amount)
    weights = [getattr(module, name).detach() for module, name in chosen]
    with (
        torch.no_grad()
    ):  # into a model that torch's pruning has not touched: recurrent layers keep a list of their own
        for (module, name), weight in zip(_weights(copied), weights, strict=True):
            getattr(module, name).copy_(weight)
    total, zero = sum(one.numel() for one in weights), sum(int((one == 0).sum()) for one in weights)
    return copied, {"amount": amount, "weights": total, "zero": zero}


def _weights(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every matrix or kernel of a layer that multiplies, once each."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase):
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim > 1:
                    found.setdefault(id(weight), (module, name))
    return list(found.values())


def count(model: nn.Module) -> int:
    """Parameters of a model, trainable and not."""
    return sum(parameter.numel() for parameter in model.parameters())
