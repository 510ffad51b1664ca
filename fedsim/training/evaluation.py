"""How good a model is: predictions on examples, and the metrics that are read off them.

Metrics are read off sums (`Tally`), batch by batch or client by client. Sums of batches are joined in order, so that whoever
made them, and in however many pieces, the metrics are the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.training.objectives import IGNORED_TARGET

CALIBRATION_BINS = 15

SECTION = 16
"""Batches whose predictions are in memory together; on a GPU the host waits once a section."""


class Predictions(NamedTuple):
    """One element a target; a sequence has many. All on the CPU.

    row: (t,) the example that the target belongs to. loss: (t,). For classes, also target, predicted: (t,) int64 and
    confidence: (t,) the probability of the predicted class; for regression these three are None.
    """

    row: Tensor
    loss: Tensor
    target: Tensor | None
    predicted: Tensor | None
    confidence: Tensor | None


class Tally(NamedTuple):
    """Sums over the targets of each of n owners (batches, or clients), float64.

    size: (n,) how many targets. loss: (n,). correct: (n,), or (0,) for regression. gaps: (n, bins) correctness less
    confidence, by bin of confidence.
    classes: (3, classes) hits, targets and predictions of each class, of all owners together (whole numbers add up exactly).
    """

    size: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    gaps: np.ndarray
    classes: np.ndarray


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensor, y: Tensor, task: str, batch_size: int, preprocess: nn.Module | None = None
) -> Predictions:
    """Run `model` in evaluation mode over x (n, ...), y (n, ...), a batch at a time."""
    model.eval()
    parts = list(_predict_batches(model, x, y, task, batch_size, preprocess))
    row, loss, target, predicted, confidence = (
        None if column[0] is None else torch.cat(column).cpu() for column in zip(*parts, strict=True)
    )
    assert row is not None and loss is not None  # every task has these two
    return Predictions(row, loss, target, predicted, confidence)


def _predict_batches(
    model: nn.Module, x: Tensor, y: Tensor, task: str, batch_size: int, preprocess: nn.Module | None
) -> Iterator[tuple[Tensor | None, ...]]:
    device, run = next(model.parameters()).device, Forward(model)
    for start in range(0, len(x), batch_size):
        batch, target = x[start : start + batch_size].to(device), y[start : start + batch_size].to(device)
        outputs = run(batch if preprocess is None else preprocess(batch))
        row = torch.arange(start, start + len(batch), device=outputs.device)
        if task == "regression":
            yield row, (outputs.squeeze(-1) - target).square(), None, None, None
            continue
        if task == "next_token":
            row = row[:, None].expand_as(target).flatten()
            outputs, target = outputs.flatten(0, 1), target.flatten()
            known = target != IGNORED_TARGET
            row, outputs, target = row[known], outputs[known], target[known]
        log_probabilities = F.log_softmax(outputs, dim=-1)  # (targets, classes)
        confidence, predicted = log_probabilities.max(dim=-1)
        loss = -log_probabilities.gather(-1, target[:, None]).squeeze(-1)
        yield row, loss, target, predicted, confidence.exp()


class Forward:
    """A model's forward pass, on a CPU with pictures laid out channels last where the model has convolutions.

    That way they take two thirds of the time (their library need not turn every picture twice), and err by no more.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.channels_last = on_cpu and any(isinstance(module, nn.Conv2d) for module in model.modules())

    def __call__(self, x: Tensor) -> Tensor:
        """x: (b, ...) -> the model's outputs."""
        if self.channels_last and x.ndim == 4:
            try:
                return self.model(channels_last(x))
            except RuntimeError:  # a model that calls `view` needs its pictures as they are; other errors come again
                self.channels_last = False
        return self.model(x)


def channels_last(x: Tensor) -> Tensor:
    """x: (b, c, h, w), the same in torch's channels_last layout; said of one channel too, where torch has no need to."""
    _, channels, height, width = x.shape
    if channels == 1 and x.is_contiguous():
        return x.as_strided(x.shape, (height * width, 1, width, 1), x.storage_offset())
    return x.contiguous(memory_format=torch.channels_last)


def mixes_rows(model: nn.Module) -> bool:
    """Whether an example's prediction depends on its batch even in evaluation: BatchNorm that keeps no statistics."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        for module in model.modules()
    )


def tally_of(found: Predictions, owner: np.ndarray, owners: int, num_classes: int) -> Tally:
    """The sums of each of `owners`; owner: (t,) whose each target is. num_classes is not read for regression."""

    def total(values: Tensor) -> np.ndarray:
        return np.bincount(owner, weights=values.double().numpy(), minlength=owners)

    size, loss = np.bincount(owner, minlength=owners).astype(np.float64), total(found.loss)
    if found.target is None or found.predicted is None or found.confidence is None:
        return Tally(size, loss, np.zeros(0), np.zeros((owners, 0)), np.zeros((3, 0)))
    correct = found.predicted == found.target
    gaps = _gaps(correct, found.confidence, owner, owners, CALIBRATION_BINS)
    return Tally(size, loss, total(correct), gaps, _class_counts(found.target, found.predicted, num_classes))


def tally_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    task: str,
    num_classes: int,
    batch_size: int,
    preprocess: nn.Module | None = None,
) -> Tally:
    """The sums of each batch of x (n, ...), y (n, ...), of which there is one at least."""
    found, size = [], SECTION * batch_size
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        part = predict(model, rows, y[start : start + size], task, batch_size, preprocess)
        found.append(tally_of(part, part.row.numpy() // batch_size, -(-len(rows) // batch_size), num_classes))
    return join(found)


def join(tallies: Sequence[Tally]) -> Tally:
    """The owners of all, one after the other."""
    size, loss, correct, gaps, classes = zip(*tallies, strict=True)
    size, loss, correct, gaps = (np.concatenate(column) for column in (size, loss, correct, gaps))
    return Tally(size, loss, correct, gaps, np.sum(classes, axis=0))


def metrics_of(predictions: Predictions, num_classes: int) -> dict[str, float | None]:
    """loss, accuracy, macro_f1 and ece of all targets; the last three are None for regression, all where there are none."""
    everybody = np.zeros(len(predictions.row), dtype=np.int64)
    return metrics_of_tally(tally_of(predictions, everybody, 1, num_classes))


def metrics_of_tally(tally: Tally) -> dict[str, float | None]:
    """As `metrics_of`, of all owners together."""
    count = float(tally.size.sum())
    if count == 0:
        return {"loss": None, "accuracy": None, "macro_f1": None, "ece": None}
    loss = finite_or_none(float(tally.loss.sum()) / count)
    if len(tally.correct) == 0:
        return {"loss": loss, "accuracy": None, "macro_f1": None, "ece": None}
    return {
        "loss": loss,
        "accuracy": float(tally.correct.sum()) / count,
        "macro_f1": _macro_f1(tally.classes),
        "ece": float(np.abs(tally.gaps.sum(0)).sum()) / count,
    }


def macro_f1(target: Tensor, predicted: Tensor, num_classes: int) -> float:
    """Mean of the classes' F1 over the classes that occur among targets or predictions, as scikit-learn has it."""
    return _macro_f1(_class_counts(target, predicted, num_classes))


def _class_counts(target: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    hits = target[target == predicted]
    return np.stack([np.bincount(of.numpy(), minlength=num_classes) for of in (hits, target, predicted)]).astype(float)


def _macro_f1(classes: np.ndarray) -> float:
    """classes: (3, classes) as in Tally."""
    hits, either = classes[0], classes[1] + classes[2]
    occurs = either > 0
    return float((2 * hits[occurs] / either[occurs]).mean())


def expected_calibration_error(correct: Tensor, confidence: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their size (arXiv 1706.04599, eq. 3)."""
    gaps = _gaps(correct, confidence, np.zeros(len(correct), dtype=np.int64), 1, bins)
    return float(np.abs(gaps).sum() / len(correct))


def _gaps(correct: Tensor, confidence: Tensor, owner: np.ndarray, owners: int, bins: int) -> np.ndarray:
    """(owners, bins) summed correctness less confidence of the targets in each bin."""
    bin_of = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # intervals (a, b], as in the paper
    gap = correct.double() - confidence.double()
    sums = np.bincount(owner * bins + bin_of.numpy(), weights=gap.numpy(), minlength=owners * bins)
    return sums.reshape(owners, bins)


def across_clients(values: Sequence[float]) -> dict[str, float]:
    """How a metric spreads over clients: mean, std, and the means of the worst and best tenth (arXiv 1905.10497, table 1).

    values: one a client, each client counting alike; larger is better; at least one.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    tenth = max(1, math.ceil(len(ordered) / 10))
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst10": float(ordered[:tenth].mean()),
        "best10": float(ordered[-tenth:].mean()),
    }


def finite_or_none(value: float) -> float | None:
    """A number that JSON and Parquet can hold: a model that has diverged has no loss."""
    return value if math.isfinite(value) else None
